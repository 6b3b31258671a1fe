"""FLUX.1's transformer under a cap on graphics memory, made to fit as the plan says, measured and compared.

    python benchmarks/flux_fitting.py --cap 7 --side 512                # 23, 15, 11 and 7 stand for 24, 16, 12 and 8 GB
    python benchmarks/flux_fitting.py --cap 40 --compare                # dropped modulation beside the ordinary way
    python benchmarks/flux_fitting.py --cap 1 --size tiny --device cpu

The transformer has the published shape (``full``) or a shrunk one and random weights, which are made one by one as they
are read: no file is needed, and main memory holds what the way under test holds. A LoRA of rank 16 learns for
``--steps`` steps, then one picture is drawn in as many. Prints one JSON object; ``ok`` is true when everything was done
and torch's allocator and main memory kept to their limits. The exit code says the same. What is measured is also said
as it comes, so that a run that is cut short has told its figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from headshot_ui import pinned, swapping
from headshot_ui.capture import Captured
from headshot_ui.families.flux_parts import eight_bit, fast_products, fitting, modulation, reading, sizes, streaming
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.settings import Settings

RAM_LIMIT = 32 * 2**30
RANK, WORDS = 16, 512
SIZES: dict[str, dict[str, Any]] = {
    "full": {"guidance_embeds": True},
    "tiny": {
        "guidance_embeds": True,
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 6,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": (4, 6, 6),
    },
}
LEARNED = (
    r"transformer_blocks\.\d+\.(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_(q|k|v)|proj_mlp|proj_out)"
)


def empty_transformer(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """Without weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**config).to(dtype).eval().requires_grad_(False)


def random_reader(model: torch.nn.Module, device: str, dtype: torch.dtype) -> reading.Read:
    """Weights by name, the same each time: normal ones in matrices, ones in norms, zeros in biases."""
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    def read(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.full(shape, 1.0 if ".norm_" in name else 0.0, dtype=dtype)
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        return (
            torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.5 / shape[1] ** 0.5, generator=generator).cpu()
        )

    return read


@dataclass(frozen=True)
class Inputs:
    """Of one step, on the device."""

    noisy: torch.Tensor  # (1, tokens, channels)
    target: torch.Tensor
    prompts: torch.Tensor
    pooled: torch.Tensor
    share: torch.Tensor  # (1,)
    guidance: torch.Tensor
    places: torch.Tensor
    words: torch.Tensor

    @property
    def condition(self) -> modulation.Condition:
        return modulation.Condition(self.share, self.guidance, self.pooled)


def random_inputs(config: dict[str, Any], side: int, words: int, seed: int, device: str, dtype: torch.dtype) -> Inputs:
    shape, cells = sizes.shape_of(config), side // fitting.TOKEN_PX
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    places = torch.zeros(cells, cells, 3)
    places[..., 1] += torch.arange(cells)[:, None]
    places[..., 2] += torch.arange(cells)
    return Inputs(
        noisy=numbers(1, cells * cells, shape.channels),
        target=numbers(1, cells * cells, shape.channels),
        prompts=numbers(1, words, shape.joint),
        pooled=torch.randn(1, shape.pooled, generator=torch.Generator().manual_seed(0)).to(device, dtype),
        share=torch.rand(1, generator=generator).to(device),
        guidance=torch.ones(1, device=device),
        places=places.reshape(-1, 3).to(device, dtype),
        words=torch.zeros(words, 3, device=device, dtype=dtype),
    )


@dataclass(frozen=True)
class Ready:
    """A transformer that fits."""

    model: Any
    dropped: modulation.Dropped | None
    rows: modulation.Rows | None
    streamed: streaming.Streamed | None
    seconds: float  # it took

    def place(self, inputs: Inputs) -> torch.Tensor | None:
        """The row of a step on the device; None with the ordinary layers."""
        return None if self.rows is None else self.rows.of(inputs.condition).to(inputs.noisy.device)

    def output(self, inputs: Inputs, row: torch.Tensor | None) -> torch.Tensor:
        if self.dropped is not None and row is not None:
            self.dropped.use(row)
        out: torch.Tensor = self.model(
            hidden_states=inputs.noisy, encoder_hidden_states=inputs.prompts, pooled_projections=inputs.pooled,
            timestep=inputs.share, guidance=inputs.guidance, img_ids=inputs.places, txt_ids=inputs.words,
            return_dict=False,
        )[0]  # fmt: skip
        return out


def made_to_fit(
    config: dict[str, Any], fit: fitting.Fit, steps: Sequence[Inputs], device: str, dtype: torch.dtype
) -> Ready:
    """As the plan says, while it is read."""
    started = time.monotonic()
    model = empty_transformer(config, dtype)
    read = random_reader(model, device, dtype)
    rows, dropped, streamed = None, None, None
    if fit.dropped:
        rows = modulation.rows_for(model, [step.condition for step in steps], device, dtype, read)
        dropped = modulation.drop(model, let_go=True)
    if fit.eight_bit:
        eight_bit.shrink(model, dtype, work_on=device, read=read)
    reading.fill(model, read, dtype)
    if fit.streamed:
        streamed = streaming.stream(model, streaming.chosen_blocks(model, fit.streamed), device)
    swapping.move(model, device, keep_copy=False)
    pinned.settle()
    say(f"made to fit in {time.monotonic() - started:.1f} s")
    return Ready(model, dropped, rows, streamed, time.monotonic() - started)


# --- measuring ------------------------------------------------------------------------------------
def say(what: str, figures: Any = "") -> None:
    """At once, beside the report."""
    told = json.dumps(figures) if figures else ""
    print(f"[flux] {time.monotonic() - _BEGAN:5.0f} s  {what} {told}", file=sys.stderr, flush=True)


_BEGAN = time.monotonic()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(steps: Sequence[Callable[[], Any]], device: str) -> float:
    """Median seconds of all steps but the first two, which set libraries up."""
    seconds = []
    for step in steps:
        wait(device)
        started = time.monotonic()
        step()
        wait(device)
        seconds.append(time.monotonic() - started)
    kept = sorted(seconds[2:] or seconds)
    return kept[len(kept) // 2]


def learn(ready: Ready, steps: Sequence[Inputs], device: str) -> dict[str, float]:
    """A LoRA on all linear layers, in float32 with the copies in 16 bit that layers compute with, by AdamW."""
    from peft import LoraConfig

    torch.manual_seed(0)
    ready.model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LEARNED), adapter_name="subject")
    copies = [weight for weight in ready.model.parameters() if weight.requires_grad]
    for weight in copies:
        weight.data = weight.data.to(device, ready.model.dtype)
    parameters = [torch.nn.Parameter(weight.detach().float()) for weight in copies]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ready.model.enable_gradient_checkpointing()
    ready.model.train()
    losses: list[float] = []

    def step(inputs: Inputs) -> None:
        loss = (ready.output(inputs, ready.place(inputs)).float() - inputs.target.float()).square().mean()
        loss.backward()
        for weight, copy in zip(parameters, copies, strict=True):
            assert copy.grad is not None
            weight.grad, copy.grad = copy.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_copy_([copy.data for copy in copies], [weight.data for weight in parameters])
        losses.append(float(loss.detach()))

    seconds = timed([lambda inputs=inputs: step(inputs) for inputs in steps], device)  # type: ignore[misc]
    ready.model.eval()
    ready.model.delete_adapters("subject")
    figures = {
        "seconds_per_step": seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "learned": float(sum(p.numel() for p in parameters)),
    }
    say("learning", figures)
    return figures


def draw(ready: Ready, steps: Sequence[Inputs], device: str, fast: str | None) -> dict[str, float]:
    """Steps of drawing one by one, and on a card recorded once and repeated."""
    if fast:
        fast_products.switch_on(ready.model, fast)
    with torch.no_grad():
        plain = [ready.output(inputs, ready.place(inputs)) for inputs in steps[:1]][0]
        one_by_one = timed([lambda i=i: ready.output(i, ready.place(i)) for i in steps], device)  # type: ignore[misc]
        figures = {"seconds_per_step": one_by_one}
        say("drawing step by step", figures)
        if device == "cuda":
            try:
                figures |= draw_recorded(ready, steps, plain, device)
            except RuntimeError as error:  # out of memory is one; the program goes on step by step then, and so do we
                say(f"not recorded: {error}")
    fast_products.switch_off(ready.model)
    return figures


def draw_recorded(ready: Ready, steps: Sequence[Inputs], plain: torch.Tensor, device: str) -> dict[str, float]:
    """A step recorded once and repeated, beside what it gave when it was not."""
    row = ready.place(steps[0])
    given = () if row is None else (row,)
    recorded = Captured(lambda *row: (ready.output(steps[0], row[0] if row else None),), given)
    return {
        "recorded_seconds_per_step": timed([lambda: recorded.replay(*given)] * len(steps), device),
        "recorded_differs_by": float((recorded.replay(*given)[0] - plain).abs().max()),
    }


def compare(config: dict[str, Any], steps: Sequence[Inputs], device: str, dtype: torch.dtype) -> dict[str, float]:
    """The ordinary transformer, and the same without its modulation layers."""
    ways = {}
    for dropped in (False, True):
        fit = fitting.Fit(False, dropped, 0, 0, 0, 0, False)
        ready = made_to_fit(config, fit, steps, device, dtype)
        with torch.no_grad():
            outputs = [ready.output(inputs, ready.place(inputs)).float().cpu() for inputs in steps[:4]]
        ways[dropped] = (outputs, learn(ready, steps, device), draw(ready, steps, device, None))
        del ready
        if device == "cuda":
            torch.cuda.empty_cache()
    (plain, learned, drawn), (other, other_learned, other_drawn) = ways[False], ways[True]
    return {
        "outputs_differ_by": max(float((a - b).abs().max()) for a, b in zip(plain, other, strict=True)),
        "last_losses_differ_by": abs(learned["last_loss"] - other_learned["last_loss"]),
        "learning_seconds": learned["seconds_per_step"],
        "learning_seconds_dropped": other_learned["seconds_per_step"],
        "drawing_seconds": drawn["seconds_per_step"],
        "drawing_seconds_dropped": other_drawn["seconds_per_step"],
    }


def main(words: Sequence[str] | None = None) -> int:
    """Measure one way, or compare two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, required=True, help="GiB that torch's allocator may have")
    parser.add_argument("--side", type=int, default=1024, help="of the square picture in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--fast", choices=fast_products.KINDS, help="draw with products in 8 bit")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args(words)
    device, dtype, config = options.device, torch.bfloat16, SIZES[options.size]
    cap, text = int(options.cap * 2**30), WORDS if options.size == "full" else 8
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention failed on 1536 tokens with torch 2.11
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    pinned.allow(Settings.from_environment(device=device))
    steps = [random_inputs(config, options.side, text, seed, device, dtype) for seed in range(options.steps)]
    shape = sizes.shape_of(config)
    report: dict[str, Any] = {"size": options.size, "side": options.side, "cap_gib": options.cap,
                              "steps": options.steps, "device": device}  # fmt: skip
    if device == "cuda":
        report["card"], report["torch"] = torch.cuda.get_device_name(), torch.__version__
    if options.compare:
        report["compare"] = compare(config, steps, device, dtype)
    else:
        lora = sizes.lora_parameters(shape, RANK)
        work = fitting.Work(True, options.side, options.side, options.steps, lora=lora, text_tokens=text)
        fit = fitting.plan(shape, work, cap + CONTEXT_BYTES, RAM_LIMIT)
        report |= {"way": fit.title, "plan": asdict(fit)}
        say("way", report)
        ready = made_to_fit(config, fit, steps, device, dtype)
        report["making_it_fit_seconds"] = ready.seconds
        report["learning"] = learn(ready, steps, device)
        report["learning"]["reserved_gib"] = reserved(device)
        if device == "cuda":
            torch.cuda.empty_cache()  # as the program does when it turns from learning to a sample
            torch.cuda.reset_peak_memory_stats()
        report["drawing"] = draw(ready, steps, device, options.fast)
        report["drawing"]["reserved_gib"] = reserved(device)
    peaks = [report[what]["reserved_gib"] for what in ("learning", "drawing") if what in report]
    report["reserved_gib"], report["rss_gib"] = max([*peaks, reserved(device)]), rss_gib()
    report["ok"] = report["reserved_gib"] <= options.cap and report["rss_gib"] <= RAM_LIMIT / 2**30
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def reserved(device: str) -> float:
    """Most that torch's allocator held since its peaks were last reset, GiB."""
    return torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else 0.0


def rss_gib() -> float:
    """Most main memory that this process had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20


if __name__ == "__main__":
    sys.exit(main())
