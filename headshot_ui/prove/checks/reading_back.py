"""The trained LoRA in the hands of others: written for other programs and read again, here and by diffusers itself.

diffusers reads both files, into the pipeline that the base's own ``model_index.json`` names.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.export.lora import export_lora
from headshot_ui.prove.checks.drawing import REPORT_IT
from headshot_ui.prove.findings import Finding, fails, holds, not_possible
from headshot_ui.prove.plan import ALPHA_OVER_RANK, PERSON
from headshot_ui.store import read_json, readable_bytes

if TYPE_CHECKING:
    import torch

    from headshot_ui.prove.bench import Bench

ADAPTER = "prove"
READING = "Reading the LoRA with diffusers"
#: Largest relative error of a layer's change of weights: rounding of the number format it is loaded in.
_LAYER_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
#: Share of the LoRA's own effect on the latents by which diffusers' result may be off. Another alpha is off by half.
EFFECT_TOLERANCE = 0.1
#: The same without any LoRA: beyond it the two draw too differently to compare what the LoRA does.
BASE_TOLERANCE = 0.15
#: Graphics memory for what diffusers computes beside the weights.
WORKING = 3 * 2**30


def check_other_programs(bench: Bench) -> Finding:
    """The file that ``lora export`` writes, read here again, moves the latents as that of the training does."""
    import torch

    assert bench.latents is not None and bench.trained is not None
    ours, bare = bench.with_lora(), bench.latents.without
    bench.exported = export_lora(bench.shop.store, PERSON, bench.trained.run_dir.name)
    with bench.shop.loaded(bench.info) as loaded:
        loaded.use_loras([(bench.exported.path, 1.0)])
        bench.make_ready(loaded)
        theirs = bench.few_steps(loaded, bench.latents.embeds, bench.latents.negative)
        loaded.use_loras(())
    told = f"the file for {bench.exported.takers}, read again"
    if torch.equal(theirs, ours):
        return holds(f"{told}: the same latents, bit for bit")
    apart = float((theirs - ours).norm()) / max(float((ours - bare).norm()), 1e-12)
    told += f": latents differ by {apart:.1e} of what the LoRA does"
    close = apart <= _LAYER_TOLERANCE[bench.shop.settings.dtype]
    return holds(told) if close else fails(told, f"Other programs would draw something else. {REPORT_IT}")


def check_read_back(bench: Bench) -> Finding:
    """Of both files every layer changes its weights as in training, and the pipeline's latents move as ours did."""
    folder = bench.info.folder
    if bench.info.checkpoint is not None or not (folder / "model_index.json").is_file():
        return not_possible("this base is not in diffusers' folder layout")
    bench.with_lora()
    trained = _trained_state(bench)
    files, unread = _files(bench)
    bench.shop.residency.evict()
    room = _room(bench)
    if not room.device:
        return not_possible(room.told)
    bench.job.report(READING, 0, 1 + len(files))
    with _pipeline(folder, room.device, bench.shop.settings.dtype) as pipe:
        off, read = None if room.layers_only else _latents(pipe, bench), []
        for number, (name, file) in enumerate(files.items(), start=1):
            bench.job.report(READING, number, 1 + len(files))
            pipe.load_lora_weights(str(file), adapter_name=ADAPTER)
            read.append(_Read(name, *_layer_errors(pipe, trained), None if off is None else _latents(pipe, bench)))
            pipe.unload_lora_weights()
    findings = [_judged(bench, one, len(trained) // 2, off) for one in read]
    told = "; ".join([*(found.figure for found in findings), *unread, *filter(None, [room.told])])
    bad = next((found for found in findings if found.verdict != "holds"), None)
    if bad is not None:
        return fails(told, bad.advice)
    measured = [found.measured[_WORST] for found in findings if _WORST in found.measured]
    return Finding("holds", told, measured={_WORST: max(measured)} if measured else {})


def _files(bench: Bench) -> tuple[dict[str, Path], list[str]]:
    """What is read by what it is called, and what diffusers cannot read of this base, in a few words each."""
    from headshot_ui import families

    files = {"as trained": bench.lora}
    if bench.exported is None:
        return files, []
    name = f"in {bench.exported.layout}'s layout"
    why = families.abilities(bench.info).unread_by_diffusers.get(bench.exported.layout)
    if why is not None:
        return files, [f"{name}: not read by diffusers, {why}"]
    return {**files, name: bench.exported.path}, []


@dataclass(frozen=True)
class _Room:
    """Where diffusers' pipeline is put. It is there as a whole, in the number format of the settings."""

    device: str  # "": there is no room anywhere
    layers_only: bool = False  # it is in main memory because the card is too small: too slow to draw with
    told: str = ""  # what that means, for the figure


def _room(bench: Bench) -> _Room:
    """By the sizes of the files. Call it when everything else is dropped."""
    from headshot_ui.memory import free_ram_bytes, vram_budget_bytes, weight_bytes, within_ram_limit

    settings, folder = bench.shop.settings, bench.info.folder
    readers = _readers(folder)
    parts = weight_bytes(folder, settings.dtype)
    needed = sum(size for name, size in parts.items() if name not in readers)
    free = within_ram_limit(free_ram_bytes(), settings)
    if needed > free:
        return _Room("", told=f"diffusers' pipeline takes {readable_bytes(needed)} of main memory, and "
                              f"{readable_bytes(free)} are free")  # fmt: skip
    if settings.device == "cuda" and needed + WORKING > vram_budget_bytes(settings):
        return _Room("cpu", True, f"the layers alone, because diffusers' pipeline, {readable_bytes(needed)}, does not "
                                  "fit on this card")  # fmt: skip
    return _Room(settings.device)


def _readers(folder: Path) -> Mapping[str, None]:
    """The parts of a pipeline that read texts, as what is given instead of them."""
    index: Mapping[str, Any] = read_json(folder / "model_index.json")
    return {name: None for name, kind in index.items() if isinstance(kind, list) and kind[0] == "transformers"}


_WORST = "largest difference of latents"


@dataclass(frozen=True)
class _Read:
    """One file, read by diffusers."""

    name: str
    layers: int  # that the LoRA was put on
    error: float  # the largest of them, relative
    latents: torch.Tensor | None  # None: not drawn


def _judged(bench: Bench, read: _Read, wanted: int, off: torch.Tensor | None) -> Finding:
    """``wanted`` layers there are; ``off`` are diffusers' latents without a LoRA, None where it drew nothing."""
    told = f"{read.name}: {read.layers} of {wanted} layers, the worst off by {read.error:.1e}"
    if read.layers != wanted or not read.error <= _LAYER_TOLERANCE[bench.shop.settings.dtype]:
        return fails(told, f"Other programs would draw something else with this LoRA. {REPORT_IT}")
    if read.latents is None or off is None:
        return holds(told)
    assert bench.latents is not None
    ours, bare = bench.with_lora(), bench.latents.without
    effect = max(float((ours - bare).norm()), 1e-12)
    apart, base_apart = float((read.latents - ours).norm()) / effect, float((off - bare).norm()) / effect
    worst = float((read.latents - ours).abs().max())
    told += f", latents differ from ours by up to {worst:.1e}, {apart:.1%} of what the LoRA does"
    if base_apart > BASE_TOLERANCE:  # another sampler or number format: the layers alone decide
        return holds(f"{told} (the bare base alone differs by {base_apart:.1%}: not comparable)")
    if not apart <= EFFECT_TOLERANCE + 2 * base_apart:
        return fails(told, REPORT_IT)
    return holds(told, largest_difference_of_latents=worst)


@contextmanager
def _pipeline(folder: Path, device: str, dtype: str) -> Iterator[Any]:
    """The pipeline of this folder without what reads texts: it is given embeddings. Dropped when the block ends."""
    import torch
    from diffusers import DiffusionPipeline

    from headshot_ui.families.shared_parts.load import quiet
    from headshot_ui.memory import give_back

    half = any(folder.glob("*/*.fp16.safetensors")) and not any(folder.glob("unet/*pytorch_model.safetensors"))
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), variant="fp16" if half else None,
            use_safetensors=True, local_files_only=True, **_readers(folder),
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        pipe.to(device)
        try:
            yield pipe
        finally:
            del pipe
            gc.collect()
            give_back()


def _latents(pipe: Any, bench: Bench) -> torch.Tensor:
    """As ``Bench.few_steps``, by diffusers. Embeddings are named as the pipeline's arguments are."""
    import torch

    assert bench.latents is not None
    device, dtype = torch.device(bench.shop.settings.device), getattr(torch, bench.shop.settings.dtype)
    shape = bench.latents.without.shape
    noise = torch.randn(shape[1:], generator=torch.Generator().manual_seed(bench.plan.seed))[None]
    packs = hasattr(pipe, "_pack_latents")  # some pipelines take and give latents in pieces of 2 by 2 cells
    noise = pipe._pack_latents(noise, *shape) if packs else noise
    given = {name: tensor.to(device, dtype) for name, tensor in bench.latents.embeds.items()}
    half = dtype != torch.float32
    # Latents stay float32, as ours do: rounding them would hide a small effect. Autocast is then what joins the two.
    with torch.autocast(device.type, dtype=dtype, enabled=half), torch.no_grad():
        made = pipe(
            **given, num_inference_steps=bench.plan.amounts.latent_steps, output_type="latent",
            guidance_scale=1.0, height=bench.info.size_px, width=bench.info.size_px,
            latents=noise.to(device),
        )  # fmt: skip
    latents = made.images.float().cpu()
    if packs:
        latents = pipe._unpack_latents(latents, bench.info.size_px, bench.info.size_px, pipe.vae_scale_factor)
    return latents  # type: ignore[no-any-return]


def _trained_state(bench: Bench) -> dict[str, torch.Tensor]:
    """What training ended with, from its last checkpoint: neither scaled nor written by the exporter."""
    from headshot_ui.training.checkpoint import newest_checkpoint
    from headshot_ui.training.runner import CHECKPOINTS

    assert bench.trained is not None
    saved, _ = newest_checkpoint(bench.trained.run_dir / CHECKPOINTS)
    assert saved is not None  # the last step always writes one
    return dict(saved.lora)


def _layer_errors(pipe: Any, trained: Mapping[str, torch.Tensor]) -> tuple[int, float]:
    """(layers that diffusers put the LoRA on, largest relative error of their effect on a random input)."""
    import torch

    layers, worst = 0, 0.0
    adapters: Mapping[str, list[str]] = pipe.get_list_adapters()
    for component in (name for name, given in adapters.items() if ADAPTER in given):
        for name, module in getattr(pipe, component).named_modules():
            if ADAPTER not in getattr(module, "lora_A", {}):
                continue
            key = f"{component}.{name}.lora_{{}}.weight"
            down, up = (trained.get(key.format(part)) for part in "AB")
            if down is None or up is None:
                continue
            layers += 1
            x = torch.randn(down.shape[1], 4, generator=torch.Generator().manual_seed(layers))
            wanted = up.float() @ (down.float() @ x) * ALPHA_OVER_RANK
            theirs = (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)
            a, b = (weight.detach().float().cpu() for weight in theirs)
            found = b @ (a @ x) * float(module.scaling[ADAPTER])
            worst = max(worst, float((found - wanted).norm() / wanted.norm().clamp(min=1e-12)))
    return layers, worst
