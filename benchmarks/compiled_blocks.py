"""Steps with compiled blocks beside ordinary ones, both recorded as the program records them, in one run.

    python benchmarks/compiled_blocks.py --model sdxl --work train --side 1024
    python benchmarks/compiled_blocks.py --model flux --work train --side 1024 --level full
    python benchmarks/compiled_blocks.py --model flux --work draw
    python benchmarks/compiled_blocks.py --model sdxl --work train --size tiny --side 64 --device cpu

Weights are random, of the published shape (``full``) or a shrunk one, and made where they compute. Three ways take
turns: ordinary, compiled with an empty folder, and compiled once more with what lies in that folder by then. A
training begins each way from the same LoRA and is given the same inputs, so that losses can be compared; a pass of
drawing is compared by its output. Each figure is said as it comes; at the end one JSON object is printed, whose ``ok``
is true where something was compiled and the ways agree. The exit code says the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend

sys.path.insert(0, str(Path(__file__).parents[1]))

from headshot_ui import compiling
from headshot_ui.bench.timing import begin_peak, peak_of, summary, synchronise
from headshot_ui.capture import graphs
from headshot_ui.families.flux_parts import blocks as flux_blocks
from headshot_ui.families.flux_parts import denoise as flux_denoise
from headshot_ui.families.flux_parts import lora as flux_lora
from headshot_ui.families.flux_parts import loss as flux_loss
from headshot_ui.families.flux_parts.recomputing import recompute
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.requests import Repeated
from headshot_ui.families.sdxl_parts import denoise as sdxl_denoise
from headshot_ui.families.sdxl_parts import lora as sdxl_lora
from headshot_ui.families.sdxl_parts import loss as sdxl_loss
from headshot_ui.families.sdxl_parts import trained_blocks
from headshot_ui.families.sdxl_parts.load import SdxlModules
from headshot_ui.prove.random_models import random_part
from headshot_ui.training.capture import CapturedSteps, can_record, cuda_recorder
from headshot_ui.training.computing import Computing, eager_attempt
from headshot_ui.training.optimizers import ADAMW, make_optimizer

RANK, RATE, WARM_UPS = 16, 1e-4, 3
FLUX: dict[str, dict[str, Any]] = {
    "full": {"guidance_embeds": True},
    "tiny": {
        "guidance_embeds": True,
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": (4, 6, 6),
    },
}
#: How far losses and outputs may be apart, as a share: bfloat16 keeps eight bits, and hundreds of layers round.
APART = 0.03


@dataclass(frozen=True, eq=False)
class Model:
    """A denoiser with what is asked of it. Only itself is equal to it: recorded passes are looked up by it."""

    module: Any
    repeated: Callable[[], tuple[Repeated, ...]]
    train: Callable[[], list[torch.nn.Parameter]]  # puts a LoRA on
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    loss_inputs: dict[str, torch.Tensor]
    one_pass: Callable[..., torch.Tensor]
    pass_inputs: tuple[torch.Tensor, ...]


def numbers(seed: int, device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


# --- models -----------------------------------------------------------------------------------------
def sdxl(size: str, side: int, level: str, device: str, dtype: torch.dtype) -> Model:
    unet: Any = random_part("base", "unet", size, device, 0).requires_grad_(False).eval().to(device, dtype)
    modules = SdxlModules(unet, None, (), (), {}, True)
    config, cells = unet.config, side // 8
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    words = numbers(1, device, dtype, 2, 77, config.cross_attention_dim)
    both = numbers(2, device, dtype, 2, pooled), torch.tensor([[side, side, 0, 0, side, side]] * 2).to(device, dtype)
    noisy = numbers(3, device, dtype, 2, 4, cells, cells)
    inputs = {
        "noisy": noisy[:1].float(), "target": noisy[1:].float(), "weights": torch.ones(1, device=device),
        "timesteps": torch.tensor([500], device=device), "time_ids": both[1][:1],
        "prompt_embeds": words[:1], "pooled_prompt_embeds": both[0][:1],
    }  # fmt: skip

    def train() -> list[torch.nn.Parameter]:
        made = sdxl_lora.add_trainable(modules, RANK, float(RANK), 0)
        unet.enable_gradient_checkpointing(again) if level == "full" else unet.disable_gradient_checkpointing()
        trained_blocks.compute_again(unet, level == "partial")
        return made

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        in_model.refresh(unet)
        return sdxl_loss.loss(unet, given)

    def one_pass(*given: torch.Tensor) -> torch.Tensor:
        return sdxl_denoise.one_pass(unet, *given)

    timestep = torch.tensor(500.0, device=device)
    return Model(
        unet, lambda: trained_blocks.repeated(unet), train, loss, inputs, one_pass, (noisy, timestep, words, *both)
    )


def again(function: Any, *arguments: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def flux(size: str, side: int, level: str, device: str, dtype: torch.dtype) -> Model:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer: Any = FluxTransformer2DModel(**FLUX[size]).to(dtype).eval().requires_grad_(False)
    transformer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        if weight.dim() == 1:
            weight.data.fill_(1.0 if ".norm_" in name else 0.0)
        else:
            weight.data.normal_(0, 0.5 / weight.shape[1] ** 0.5, generator=generator)
    flux_blocks.put_in(transformer)
    config, cells = transformer.config, side // 8
    prompts = numbers(1, device, dtype, 1, 512 if size == "full" else 8, config.joint_attention_dim)
    pooled = numbers(2, device, dtype, 1, config.pooled_projection_dim)
    pieces = numbers(3, device, dtype, 2, (cells // 2) ** 2, config.in_channels)
    share, guidance = torch.full((1,), 0.5, device=device), torch.full((1,), 3.5, device=device)
    words = flux_denoise.text_ids(prompts.shape[1]).to(device)
    places = flux_denoise.image_ids(cells, cells).to(device)
    inputs = {
        "noisy": pieces[:1].float(), "target": pieces[1:].float(), "weights": torch.ones(1, device=device),
        "share": share, "guidance": guidance, "words": words, "places": places,
        "prompt_embeds": prompts, "pooled_prompt_embeds": pooled,
    }  # fmt: skip

    def train() -> list[torch.nn.Parameter]:
        made = flux_lora.add_trainable(transformer, RANK, float(RANK), 0)
        recompute(transformer, {"none": 0.0, "partial": 0.5, "full": 1.0}[level])
        return made

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        in_model.refresh(transformer)
        return flux_loss.loss(transformer, given, dtype, True)

    def one_pass(*given: torch.Tensor) -> torch.Tensor:
        return flux_denoise.one_pass(transformer, *given)

    given = pieces[:1], share, prompts, pooled, guidance, words, places
    return Model(transformer, lambda: flux_blocks.repeated(transformer), train, loss, inputs, one_pass, given)


MODELS = {"sdxl": sdxl, "flux": flux}


# --- measuring --------------------------------------------------------------------------------------
_BEGAN = time.monotonic()


def say(what: str, figures: Any = "") -> None:
    """At once, beside the report."""
    told = json.dumps(figures) if figures else ""
    print(f"[compiled] {time.monotonic() - _BEGAN:5.0f} s  {what} {told}", file=sys.stderr, flush=True)


def timed(step: Callable[[], Any], count: int, device: str) -> dict[str, Any]:
    """Seconds of the first call, in which things are compiled, of the second, which is recorded, and of the rest."""
    taken = []
    begin_peak(device)
    for _ in range(WARM_UPS + count):
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    rest = summary(taken[WARM_UPS:], peak_of(device))
    return {
        "seconds": round(rest.seconds, 5), "spread": round(rest.spread, 5), "first_seconds": round(taken[0], 2),
        "second_seconds": round(taken[1], 2),
        "peak_gib": None if rest.peak_bytes is None else round(rest.peak_bytes / 2**30, 2),
    }  # fmt: skip


def learning(model: Model, device: str, count: int) -> Callable[[], tuple[dict[str, Any], list[float]]]:
    """One way of training from the same beginning; figures and the loss of every step."""
    parameters = model.train()
    begun = [parameter.detach().clone() for parameter in parameters]

    def measure() -> tuple[dict[str, Any], list[float]]:
        for parameter, first in zip(parameters, begun, strict=True):
            parameter.data.copy_(first)
        optimizer = make_optimizer(ADAMW, parameters, RATE)
        scaler = torch.amp.GradScaler(device, enabled=False)
        computing = Computing(model, parameters, optimizer, scaler, 1)  # type: ignore[arg-type]
        captured = CapturedSteps(computing, cuda_recorder) if can_record(computing) else None
        losses: list[float] = []

        def step() -> None:
            batches = [model.loss_inputs]
            attempt = captured.attempt(batches, _nothing) if captured else eager_attempt(computing, batches, _nothing)
            losses.append(attempt.loss)

        figures = timed(step, count, device)
        if captured is not None:
            figures["recorded"] = bool(captured.recordings)
            captured.forget()
        return figures, losses

    return measure


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Pass:
    """One pass without gradients."""

    model: Model

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.model.one_pass(*inputs),)


def drawing(model: Model, device: str, count: int) -> Callable[[], tuple[dict[str, Any], list[float]]]:
    """One way of drawing; figures and the output."""

    def measure() -> tuple[dict[str, Any], list[float]]:
        out: list[torch.Tensor] = []
        with graphs(device) as recorded:
            step = recorded.record(Pass(model), model.module)

            def run() -> None:
                out[:] = step(*model.pass_inputs)

            figures = timed(run, count, device)
            return {**figures, "recorded": len(recorded) > 0}, out[0].float().flatten().tolist()

    return measure


def apart(first: Sequence[float], second: Sequence[float]) -> float:
    """The norm of the difference as a share of the first one's."""
    one, other = torch.tensor(first), torch.tensor(second)
    return float((one - other).norm() / one.norm())


def compiled(
    model: Model, work: str, backend: compiling.Backend, measure: Callable[[], tuple[dict[str, Any], list[float]]]
) -> Any:
    with compiling.compiled(model.repeated(), learning=work == "train", backend=backend) as state:
        figures, found = measure()
    figures |= {
        "compilations": state.compilations, "compiling_seconds": round(state.seconds, 1), "failed": state.failed,
    }  # fmt: skip
    return figures, found


def main(words: Sequence[str] | None = None) -> int:
    """Measure the three ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--work", choices=("train", "draw"), required=True)
    parser.add_argument("--side", type=int, default=1024, help="of the square picture in pixels")
    parser.add_argument("--level", choices=("none", "partial", "full"), default="none", help="gradient checkpointing")
    parser.add_argument("--count", type=int, default=12, help="steps that are timed, after a few others")
    parser.add_argument("--size", choices=sorted(FLUX), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", choices=("inductor", "aot_eager"), default="inductor",
                        help="aot_eager generates no code, which is for trying this program")  # fmt: skip
    parser.add_argument("--cache", type=Path,
                        help="folder for what is compiled, kept; without it an empty one each time")  # fmt: skip
    parser.add_argument("--report", type=Path, help="where the figures go too")
    options = parser.parse_args(words)
    device = options.device
    report: dict[str, Any] = {
        name: getattr(options, name) for name in ("model", "work", "side", "level", "size", "device")
    }
    if device == "cuda":
        report["card"] = torch.cuda.get_device_name()
    report |= {"torch": torch.__version__, "cannot": compiling.why_not(device)}
    with ExitStack() as stack:
        folder = options.cache or stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        compiling.keep_in(Path(folder))
        torch._dynamo.reset()
        model = MODELS[options.model](options.size, options.side, options.level, device, torch.bfloat16)
        say("model made", report)
        measure = (learning if options.work == "train" else drawing)(model, device, options.count)
        backend = compiling.inductor if options.backend == "inductor" else lookup_backend(options.backend)
        ways: dict[str, list[float]] = {}

        def way(name: str, run: Callable[[], tuple[dict[str, Any], list[float]]]) -> None:
            report[name], ways[name] = run()
            say(name, report[name])
            if options.report:
                options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

        way("ordinary", measure)
        way("compiled", lambda: compiled(model, options.work, backend, measure))
        torch._dynamo.reset()
        way("compiled_again", lambda: compiled(model, options.work, backend, measure))
        way("ordinary_again", measure)
    report["times_as_fast"] = round(report["ordinary"]["seconds"] / report["compiled"]["seconds"], 3)
    report["differ_by"] = apart(ways["ordinary"], ways["compiled"])
    report["ordinary_differ_by"] = apart(ways["ordinary"], ways["ordinary_again"])
    if options.work == "train":
        report["losses"] = {name: (found[0], found[-1]) for name, found in ways.items()}
    made, failed = report["compiled"]["compilations"], report["compiled"]["failed"]
    report["ok"] = bool(made and not failed and report["differ_by"] < APART)
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
