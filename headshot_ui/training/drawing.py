"""Pictures made while training: samples that show how far it is, and class pictures for prior preservation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headshot_ui.capture import graphs
from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, LoadedBase
from headshot_ui.jobs import Reporter
from headshot_ui.less_memory import decode
from headshot_ui.store import Store, save_png
from headshot_ui.training.cache import Embeds

if TYPE_CHECKING:
    from PIL import Image

SAMPLE_STAGE = "Drawing a sample"
CLASS_STAGE = "Drawing pictures of other people"
AT_ONCE = 4


def draw(
    loaded: LoadedBase,
    embeds: Sequence[Embeds],
    empty: Embeds,
    seeds: Sequence[int],
    after_step: Callable[[int, int], None],
    device: str,
    stay: bool = False,
) -> list[Image.Image]:
    """One picture per embedding at the base's own size and settings; ``after_step(step, total)`` may raise.

    On an NVIDIA card the step is recorded and repeated, also with a LoRA in training on: what is recorded is what the
    step computes. The recording is gone before the VAE, and so before the next step of training, needs its memory.
    Unless it is to ``stay``, the denoiser leaves the device for the VAE: on a small card there is no room for both.
    """
    info = loaded.info
    with graphs(device) as recorded:
        request = DenoiseRequest(
            embeds={name: torch.stack([entry[name] for entry in embeds]) for name in empty},
            negative_embeds={name: torch.stack([empty[name]] * len(embeds)) for name in empty},
            seeds=tuple(seeds),
            steps=info.defaults.sampling_steps,
            guidance_scale=info.defaults.guidance_scale,
            height=info.size_px,
            width=info.size_px,
            recorder=recorded.record,
        )
        for state in loaded.denoise(request):
            after_step(state.step, state.total)
    loaded.keep(frozenset({"vae", "denoiser"} if stay else {"vae"}))
    return loaded.decode_latents(state.latents) if stay else decode(loaded, state.latents, device)


def draw_sample(
    loaded: LoadedBase,
    path: Path,
    prompt: str,
    texts: Mapping[str, Embeds],
    seed: int,
    report: Reporter,
    device: str,
    stay: bool = False,
) -> None:
    """Write one PNG of the LoRA as it is now. The same seed each time, so that samples can be compared."""

    def after_step(step: int, total: int) -> None:
        report(SAMPLE_STAGE, step, total)

    pictures = draw(loaded, [texts[prompt]], texts[""], [seed], after_step, device, stay)
    save_png(path, pictures[0], {"prompt": prompt, "seed": seed, "base": loaded.info.id})
    loaded.keep(frozenset({"denoiser"}))


def class_pictures(
    loaded: LoadedBase,
    store: Store,
    person: str,
    prompts: Sequence[str],
    texts: Mapping[str, Embeds],
    report: Reporter,
) -> tuple[Path, ...]:
    """One PNG per prompt, in order; those there from an earlier or interrupted run are used again.

    Always drawn in the same groups, so that a group cut off and drawn again has the very same pixels.
    """
    device = store.settings.device
    folder = store.person_dir(person) / "class_pictures" / f"{loaded.info.id}-{_key(loaded.info, prompts)}"
    paths = tuple(folder / f"{number:04d}.png" for number in range(len(prompts)))
    for start in range(0, len(paths), AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, len(paths)))
        if all(paths[number].is_file() for number in numbers):
            continue

        def after_step(step: int, total: int, done: int = start) -> None:
            report(CLASS_STAGE, done, len(paths))

        embeds = [texts[prompts[number]] for number in numbers]
        pictures = draw(loaded, embeds, texts[""], numbers, after_step, device)
        for number, picture in zip(numbers, pictures, strict=True):
            save_png(paths[number], picture, {"prompt": prompts[number], "seed": number, "base": loaded.info.id})
    report(CLASS_STAGE, len(paths), len(paths))
    return paths


def _key(info: BaseInfo, prompts: Sequence[str]) -> str:
    """Names the folder after everything that decides the pictures, except the files of the base itself."""
    decides = [list(prompts), info.size_px, info.defaults.sampling_steps, info.defaults.guidance_scale]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]
