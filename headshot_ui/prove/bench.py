"""What the checks share: the workshop they try things in, and what earlier ones left for later ones."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.prove.plan import PROMPT, ProvePlan

if TYPE_CHECKING:
    import numpy as np
    import torch

    from headshot_ui.dataset.types import Dataset
    from headshot_ui.export.lora import LoraExport
    from headshot_ui.families.protocol import BaseInfo, LoadedBase, PromptEmbeds
    from headshot_ui.generation.runner import GenerateResult
    from headshot_ui.jobs import Reporter
    from headshot_ui.training.cache import Item
    from headshot_ui.training.runner import TrainResult
    from headshot_ui.workshop import JobContext, Workshop


@dataclass
class Clock:
    """A reporter that also notes when each step was told, so that seconds per step can be read off."""

    report: Reporter
    prefix: str = ""  # before the name of each stage, for people: which check it belongs to
    times: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # stage → (step, when)
    notes: list[str] = field(default_factory=list)

    def __call__(
        self,
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """See ``jobs.Reporter``."""
        self.times.setdefault(stage, []).append((step, time.perf_counter()))
        if note is not None and note not in self.notes:
            self.notes.append(note)
        self.report(self.prefix + stage, step, total, preview, metrics, note)

    def seconds_per_step(self, stage: str) -> float | None:
        """The median over the steps of the last time this stage ran; None where fewer than two were told."""
        told = self.times.get(stage, [])
        begins = [index for index, (step, _) in enumerate(told) if step == 0]
        told = told[begins[-1] :] if begins else told
        paces = sorted(
            (after[1] - before[1]) / (after[0] - before[0])
            for before, after in zip(told, told[1:], strict=False)
            if after[0] > before[0]
        )
        return paces[len(paces) // 2] if paces else None


@dataclass(frozen=True)
class Latents:
    """The same noise drawn for a few steps by the same model."""

    embeds: PromptEmbeds
    negative: PromptEmbeds
    without: torch.Tensor  # (1, C, h, w) float32: the bare base, before training
    with_lora: torch.Tensor | None = None


@dataclass(frozen=True)
class MemoryNow:
    """Bytes of tensors that are alive."""

    tensors: int  # in main memory
    allocated: int  # on the graphics card, by torch's count
    process: int  # resident memory of the process; told, not judged, because the system keeps some of it


@dataclass
class Bench:
    """One proof while it runs. Only the engine's worker thread uses it."""

    shop: Workshop
    plan: ProvePlan
    info: BaseInfo
    job: JobContext
    clock: Clock
    before: MemoryNow | None = None
    dataset: Dataset | None = None
    items: Sequence[Item] = ()  # fixed photos that the loss is measured over
    losses: Sequence[float] = ()  # without a LoRA, in the order of ``fixed_losses``
    trained: TrainResult | None = None
    bare: GenerateResult | None = None  # drawn before training
    learned: GenerateResult | None = None  # the same with the LoRA
    refined: dict[str, GenerateResult] = field(default_factory=dict)  # by way
    latents: Latents | None = None
    exported: LoraExport | None = None  # the LoRA as other programs take it
    #: Of the way in which the base was made to fit first: all that is compared is computed in it. None before that.
    precision: str | None = None

    @property
    def lora(self) -> Path:
        """The file that training wrote; only checks that need the training ask."""
        assert self.trained is not None
        return Path(self.trained.lora_path)

    def with_lora(self) -> torch.Tensor:
        """The latents of ``few_steps`` with the LoRA; computed once."""
        assert self.latents is not None
        if self.latents.with_lora is None:
            with self.shop.loaded(self.info) as loaded:
                loaded.use_loras([(self.lora, 1.0)])
                self.make_ready(loaded)
                on = self.few_steps(loaded, self.latents.embeds, self.latents.negative)
            self.latents = replace(self.latents, with_lora=on)
        assert self.latents.with_lora is not None
        return self.latents.with_lora

    # --- drawing ----------------------------------------------------------------------------------
    def make_fit(self, loaded: LoadedBase, steps: int) -> None:
        """Have the base fit the memory for ``steps`` passes of one picture, in the same precision every time."""
        from headshot_ui.families.fits import DenoiserWork

        side = self.info.size_px
        fitting = loaded.fit(DenoiserWork(None, side, side, 1, steps, self.info.defaults.rank), self.precision)
        if fitting is not None and self.precision is None:
            self.precision = fitting.precision

    def make_ready(self, loaded: LoadedBase) -> None:
        """To be called before ``few_steps``, when the LoRAs are on."""
        self.make_fit(loaded, self.plan.amounts.latent_steps)
        loaded.keep(frozenset({"denoiser"}))

    def few_steps(self, loaded: LoadedBase, embeds: PromptEmbeds, negative: PromptEmbeds) -> torch.Tensor:
        """(1, C, h, w) float32 on the CPU: the same noise by the model as it is now.

        Without guidance, which would only multiply what two number formats differ by.
        """
        from headshot_ui.families.protocol import DenoiseRequest

        side = self.info.size_px
        request = DenoiseRequest(
            embeds=embeds, negative_embeds=negative, seeds=[self.plan.seed], steps=self.plan.amounts.latent_steps,
            guidance_scale=1.0, height=side, width=side,
        )  # fmt: skip
        *_, last = loaded.denoise(request)
        return last.latents.float().cpu()

    def prompts(self, loaded: LoadedBase) -> tuple[PromptEmbeds, PromptEmbeds]:
        """The prompt of every picture here and the empty one."""
        subject = f"{self.info.defaults.trigger} person"
        self.make_fit(loaded, self.plan.amounts.latent_steps)
        loaded.keep(frozenset({"text"}))
        embeds = loaded.encode_prompts([PROMPT.format(subject=subject)]), loaded.encode_prompts([""])
        loaded.keep(frozenset({"denoiser"}))
        return embeds

    # --- memory -----------------------------------------------------------------------------------
    def memory(self) -> MemoryNow:
        """What is alive now, after rubbish is cleared."""
        import torch

        from headshot_ui import pinned
        from headshot_ui.memory import give_back, own_ram_bytes

        pinned.settle()  # its thread may still hold what was dropped
        gc.collect()
        give_back()
        storages: dict[int, int] = {}
        for thing in gc.get_objects():
            if _is_tensor_in_ram(thing):
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        allocated = int(torch.cuda.memory_allocated()) if self.shop.settings.device == "cuda" else 0
        return MemoryNow(sum(storages.values()), allocated, own_ram_bytes())


def _is_tensor_in_ram(thing: Any) -> bool:
    import torch

    try:
        return issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu"
    except (RuntimeError, ReferenceError):  # an object half-way through its end
        return False


# --- pictures -----------------------------------------------------------------------------------------
def pixels_by_seed(drawn: GenerateResult) -> dict[int, np.ndarray]:
    """Seed → (H, W, 3) uint8, whatever the ranking."""
    return {picture.seed: pixels(picture.path) for picture in drawn.pictures}


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def difference(first: GenerateResult, second: GenerateResult) -> float:
    """Mean absolute difference over the pictures of the same seeds, in levels of 255."""
    import numpy as np

    one, other = pixels_by_seed(first), pixels_by_seed(second)
    assert one.keys() == other.keys()
    return float(np.mean([np.abs(one[seed].astype(float) - other[seed]).mean() for seed in one]))


def flaw(picture: np.ndarray) -> str:
    """Why a picture is none, in a few words: black (which is what numbers that are none become), or of one colour."""
    levels = picture.astype(float)
    spread = float((levels - levels.mean(axis=(0, 1))).std())
    if spread >= LEAST_SPREAD:
        return ""
    return "black" if levels.max() < LEAST_SPREAD else "of one colour"


#: Standard deviation of the levels (of 255) below which a picture shows nothing. Noise alone has 20 and more.
LEAST_SPREAD = 2.0
