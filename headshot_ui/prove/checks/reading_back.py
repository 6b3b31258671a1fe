"""The exported LoRA, read by diffusers itself into the pipeline its own ``model_index.json`` names."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.prove.checks.drawing import REPORT_IT
from headshot_ui.prove.findings import Finding, fails, holds, not_possible
from headshot_ui.prove.plan import ALPHA_OVER_RANK
from headshot_ui.store import read_json

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


def check_read_back(bench: Bench) -> Finding:
    """Every layer changes its weights as in training, and the pipeline's latents move as ours did."""
    folder = bench.info.folder
    if bench.info.checkpoint is not None or not (folder / "model_index.json").is_file():
        return not_possible("this base is not in diffusers' folder layout")
    ours, trained = bench.with_lora(), _trained_state(bench)
    bench.shop.residency.evict()
    bench.job.report(READING, 0, 2)
    with _pipeline(folder, bench.shop.settings.device, bench.shop.settings.dtype) as pipe:
        off = _latents(pipe, bench)
        bench.job.report(READING, 1, 2)
        pipe.load_lora_weights(str(bench.lora), adapter_name=ADAPTER)
        layers, error = _layer_errors(pipe, trained)
        on = _latents(pipe, bench)
    told = f"{layers} of {len(trained) // 2} layers, the worst off by {error:.1e}"
    if layers != len(trained) // 2 or not error <= _LAYER_TOLERANCE[bench.shop.settings.dtype]:
        return fails(told, f"Other programs would draw something else with this LoRA. {REPORT_IT}")
    assert bench.latents is not None
    bare = bench.latents.without
    effect = max(float((ours - bare).norm()), 1e-12)
    apart, base_apart = float((on - ours).norm()) / effect, float((off - bare).norm()) / effect
    worst = float((on - ours).abs().max())
    told += f"; latents differ from ours by up to {worst:.1e}, {apart:.1%} of what the LoRA does"
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

    from headshot_ui.families.sdxl_parts.load import quiet
    from headshot_ui.memory import give_back

    index: Mapping[str, Any] = read_json(folder / "model_index.json")
    readers = {name: None for name, kind in index.items() if isinstance(kind, list) and kind[0] == "transformers"}
    half = any(folder.glob("*/*.fp16.safetensors")) and not any(folder.glob("unet/*pytorch_model.safetensors"))
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), variant="fp16" if half else None,
            use_safetensors=True, local_files_only=True, **readers,
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
    given = {name: tensor.to(device, dtype) for name, tensor in bench.latents.embeds.items()}
    half = dtype != torch.float32
    # Latents stay float32, as ours do: rounding them would hide a small effect. Autocast is then what joins the two.
    with torch.autocast(device.type, dtype=dtype, enabled=half), torch.no_grad():
        made = pipe(
            **given, num_inference_steps=bench.plan.amounts.latent_steps, output_type="latent",
            guidance_scale=1.0, height=bench.info.size_px, width=bench.info.size_px,
            latents=noise.to(device),
        )  # fmt: skip
    return made.images.float().cpu()  # type: ignore[no-any-return]


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
