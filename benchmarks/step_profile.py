"""What a step is made of: milliseconds by kind of kernel, with the least each could take; and what switches change.

    python benchmarks/step_profile.py --model sdxl --work train --side 1024 --compiled --cache FOLDER
    python benchmarks/step_profile.py --model flux --work train --side 1024 --level full --try all --seconds 60
    python benchmarks/step_profile.py --model sdxl --work draw --try channels-last batch-4 batch-8
    python benchmarks/step_profile.py --model sdxl --work train --size tiny --side 64 --device cpu --try all

Models and steps are those of ``compiled_blocks.py``: random weights of the published shape (``full``) or a shrunk one,
a step recorded as the program records it. First it is timed without a profiler; then the same step is traced twice,
launched kernel by kernel, which tells shapes, and replayed, which is what counts; ``traces.py`` puts both together.
``--try`` times the step again with one switch changed and tells how far outputs or gradients are apart. ``--compiled``
traces it with compiled blocks too, at the end. On a CPU operations stand for kernels: a rehearsal.

Each figure is said as it comes and written to ``--report``; at the end one JSON object is printed, whose ``ok`` is true
where every step that was asked for was traced. The exit code says the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import kernel_kinds, traces
from benchmarks.compiled_blocks import FLUX, MODELS, RANK, RATE, Model, Pass, timed
from benchmarks.step_switches import NOTHING, SWITCHES, Setting, Switch
from headshot_ui import compiling
from headshot_ui.bench.timing import measure, synchronise
from headshot_ui.capture import graphs
from headshot_ui.training.capture import CapturedSteps, can_record, cuda_recorder
from headshot_ui.training.computing import Computing, eager_attempt
from headshot_ui.training.optimizers import ADAMW, make_optimizer

BATCHES = (1, 2, 4, 8, 16)
#: In errors that stay with a card until the process ends.
LOST = "CUDA error"
#: Which of the inputs of a pass have a row for each picture.
ROWS = {"sdxl": (0, 2, 3, 4), "flux": (0, 1, 2, 3, 4)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_BEGAN = time.monotonic()


def say(what: str, figures: Any = "") -> None:
    """At once, beside the report."""
    told = json.dumps(figures) if figures else ""
    print(f"[step] {time.monotonic() - _BEGAN:5.0f} s  {what} {told}", file=sys.stderr, flush=True)


# --- steps ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """A step in both ways of computing it."""

    launched: Callable[[], object]  # kernel by kernel
    repeated: Callable[[], object]  # as the program does: recorded when it is called the second time
    is_recorded: Callable[[], bool]
    result: Callable[[], torch.Tensor]  # the output of a pass, or the gradients of the LoRA; flat, float32, on the CPU


@contextmanager
def training(model: Model, parameters: Sequence[torch.nn.Parameter], device: str) -> Iterator[Step]:
    """Steps from the same LoRA each time; neither of its matrices is 0, so that both have gradients."""
    for number, parameter in enumerate(parameters):
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.copy_(drawn / (10 * parameter.shape[1] ** 0.5))
    optimizer = make_optimizer(ADAMW, parameters, RATE)
    scaler = torch.amp.GradScaler(device, enabled=False)
    computing = Computing(model, parameters, optimizer, scaler, 1)  # type: ignore[arg-type]
    captured = CapturedSteps(computing, cuda_recorder) if can_record(computing) else None
    batches = [model.loss_inputs]

    def launched() -> None:
        eager_attempt(computing, batches, _nothing)

    def repeated() -> None:
        captured.attempt(batches, _nothing) if captured else launched()

    def result() -> torch.Tensor:
        computing.gradients(model.loss_inputs)
        found = [parameter.grad.float().flatten().cpu() for parameter in parameters if parameter.grad is not None]
        optimizer.zero_grad()
        return torch.cat(found)

    try:
        yield Step(launched, repeated, lambda: captured is not None and bool(captured.recordings), result)
    finally:
        optimizer.zero_grad()
        if captured is not None:
            captured.forget()


@contextmanager
def drawing(model: Model, inputs: Sequence[torch.Tensor], device: str) -> Iterator[Step]:
    """A pass without gradients."""
    one = Pass(model)
    with graphs(device) as recorded:
        step = recorded.record(one, model.module)
        yield Step(
            lambda: one(*inputs),
            lambda: step(*inputs),
            lambda: len(recorded) > 0,
            lambda: one(*inputs)[0].float().flatten().cpu(),
        )


def _nothing() -> None:
    pass


def batch_of(model: str, inputs: Sequence[torch.Tensor], count: int) -> tuple[torch.Tensor, ...]:
    """Inputs of a pass for ``count`` pictures, each like the first. SDXL's have two rows each."""
    return tuple(
        torch.cat([tensor] * count) if at in ROWS[model] else tensor for at, tensor in enumerate(inputs)
    )  # fmt: skip


# --- peaks ----------------------------------------------------------------------------------------------
def measured_peaks(device: str, dtype: torch.dtype) -> traces.Peaks:
    """By one large product of random numbers, and by copying a large tensor, which reads and writes it."""
    side, count = (8192, 2**30) if device == "cuda" else (512, 2**22)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    product = measure(lambda: left @ right, device, 10, warmups=3).seconds
    given = torch.zeros(count, device=device, dtype=torch.uint8)
    taken = torch.empty_like(given)
    copy = measure(lambda: taken.copy_(given), device, 10, warmups=3).seconds
    return traces.Peaks(2 * side**3 / product, 2 * count / copy)


# --- profiles -------------------------------------------------------------------------------------------
def traced(step: Callable[[], object], device: str, shapes: bool) -> list[dict[str, Any]]:
    """The events of one call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    synchronise(device)
    with profile(activities=activities, record_shapes=shapes) as profiler:
        step()
        synchronise(device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return events


def profiled(step: Step, device: str, repeats: int, peaks: traces.Peaks, rank: int | None) -> dict[str, Any]:
    """What a step is made of: means of ``repeats`` traces, each of one step."""
    step.launched()
    events = traced(step.launched, device, shapes=True)
    kernels_in = traces.on_card if device == "cuda" else traces.on_processor
    work = traces.arithmetic(traces.operations(events).values(), rank)
    launched = kernels_in(events)
    for _ in range(3):
        step.repeated()
    recorded = step.is_recorded()
    several = [launched] if device != "cuda" else []
    for _ in range(repeats if device == "cuda" else 0):
        replayed = traces.on_card(traced(step.repeated, device, shapes=False))
        several.append(traces.paired(replayed, launched))
    remark = ""
    if min(map(len, several), default=0) < len(launched) / 2:
        # A profiler that sees a graph as one piece of work, or nothing of it.
        remark = f"of the replay {len(several[0])} kernels were seen: these are of the step launched kernel by kernel"
        several = [launched]
    middle = sorted(several, key=lambda kernels: traces.busy(kernels)[0])[len(several) // 2]
    spans, ran = zip(*map(traces.busy, several), strict=True)
    figures: dict[str, Any] = {
        "recorded": recorded, "remark": remark, "kernels": len(middle), "launched_kernels": len(launched),
        "with_known_operation": sum(kernel.operation is not None for kernel in middle),
        "sum_ms": round(sum(kernel.lasts for kernel in middle) / 1e3, 4),
    }  # fmt: skip
    if device == "cuda":
        span, busy = sum(spans) / len(spans), sum(ran) / len(ran)
        figures |= {"span_ms": round(span, 4), "busy_ms": round(busy, 4), "idle_ms": round(span - busy, 4)}
    by_kind = traces.by_kind(middle, work, peaks, rank)
    figures["kinds"] = by_kind
    figures["bound_by_arithmetic_ms"] = round(1e3 * sum(work.values()) / peaks.flop, 4)
    figures["tflop"] = {kind: round(count / 1e12, 4) for kind, count in work.items()}
    figures["longest"] = traces.longest(middle, rank)
    figures["unknown_names"] = traces.unknown(middle)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The kinds for people."""
    lines = [f"{'kind':<28} {'ms':>10} {'kernels':>8} {'bound ms':>10}"]
    for kind, row in figures["kinds"].items():
        bound = f"{row['bound_ms']:10.3f}" if "bound_ms" in row else ""
        lines.append(f"{kind:<28} {row['ms']:>10.3f} {row['kernels']:>8} {bound}".rstrip())
    if "idle_ms" in figures:
        lines.append(f"{'idle between kernels':<28} {figures['idle_ms']:>10.3f}")
    return "\n".join(lines)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """The norm of the difference as a share of the first one's."""
    return float((first - second).norm() / first.norm())


# --- tries ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bench:
    """What is measured, and how."""

    setting: Setting
    model: Model
    parameters: Sequence[torch.nn.Parameter]
    count: int

    @contextmanager
    def step(self, pictures: int = 1) -> Iterator[Step]:
        if self.setting.work == "train":
            making = training(self.model, self.parameters, self.setting.device)
        else:
            inputs = batch_of(self.setting.model, self.model.pass_inputs, pictures)
            making = drawing(self.model, inputs, self.setting.device)
        with making as made:
            yield made

    def timed(self, switch: Switch = NOTHING, pictures: int = 1) -> tuple[dict[str, Any], torch.Tensor]:
        """Seconds of the recorded step, and its result."""
        with switch.on(self.setting), self.step(pictures) as step:
            result = step.result()
            figures = timed(step.repeated, max(self.count // pictures, 2), self.setting.device)
            figures["recorded"] = step.is_recorded()
        if pictures > 1:
            figures["seconds_a_picture"] = round(figures["seconds"] / pictures, 5)
        return figures, result


def tries(bench: Bench, wanted: Sequence[str], until: float, told: Callable[[str, dict[str, Any]], None]) -> bool:
    """Time each of ``wanted`` beside the ordinary step, as long as there is time.

    What cannot be computed is told; False is returned where such an error has taken the card with it.
    """
    ordinary, expected = bench.timed()
    told(NOTHING.name, ordinary)
    switches = {switch.name: switch for switch in SWITCHES}
    for name in wanted:
        switch = switches.get(name, NOTHING)
        pictures = int(name.removeprefix("batch-")) if name.startswith("batch-") else 1
        why_not = switch.why_not(bench.setting)
        if pictures > 1 and bench.setting.work == "train":
            why_not = "batches are tried in drawing"
        why_not = why_not or ("no time was left" if time.monotonic() > until else "")
        if why_not:
            told(name, {"not_tried": why_not})
            continue
        try:
            figures, found = bench.timed(switch, pictures)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            told(name, {"failed": str(error).splitlines()[0]})
            if LOST in str(error):
                return False
            continue
        figures["times_as_fast"] = round(ordinary["seconds"] * pictures / figures["seconds"], 4)
        figures["differ_by"] = apart(expected, found[: len(expected)])
        told(name, figures)
    again, found = bench.timed()
    told(f"{NOTHING.name}, again", {**again, "differ_by": apart(expected, found)})
    return True


def all_tries(work: str) -> list[str]:
    batches = [f"batch-{count}" for count in BATCHES] if work == "draw" else []
    names = [switch.name for switch in SWITCHES]
    return [*names[:-1], *batches, names[-1]]


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """What is compiled lies in this folder, or in one that is gone afterwards."""
    with ExitStack() as stack:
        if folder is None:
            gone = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(gone))
        folder.mkdir(parents=True, exist_ok=True)
        compiling.keep_in(folder)
        torch._dynamo.reset()
        yield


# --- all of it ------------------------------------------------------------------------------------------
def main(words: Sequence[str] | None = None) -> int:
    """Profile, try, profile compiled."""
    names = [*all_tries("draw"), "all"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--work", choices=("train", "draw"), required=True)
    parser.add_argument("--side", type=int, default=1024, help="of the square picture in pixels")
    parser.add_argument("--level", choices=("none", "partial", "full"), default="none", help="gradient checkpointing")
    parser.add_argument("--compiled", action="store_true", help="a profile with compiled blocks too")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where what was compiled stays for the next time")
    parser.add_argument("--backend", choices=("inductor", "aot_eager"), default="inductor",
                        help="aot_eager generates no code, which is for trying this program")  # fmt: skip
    parser.add_argument("--try", dest="tries", nargs="+", choices=names, default=[], metavar="NAME",
                        help=f"time the step with something changed: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=600.0, help="no try begins later (default: 600)")
    parser.add_argument("--count", type=int, default=12, help="steps that are timed, after a few others")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are traced")
    parser.add_argument("--peak-tflops", type=float, help="of the card in 16 bit, instead of measuring a product")
    parser.add_argument("--size", choices=sorted(FLUX), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="float16 is for drawing")
    parser.add_argument("--report", type=Path, help="where the figures go too, as they come")
    options = parser.parse_args(words)
    if options.dtype == "float16" and options.work == "train":
        parser.error("--dtype float16 is for drawing: a training in it scales its loss, which is not done here")
    began, device, dtype = time.monotonic(), options.device, DTYPES[options.dtype]
    wanted = all_tries(options.work) if "all" in options.tries else options.tries
    report: dict[str, Any] = {
        name: getattr(options, name) for name in ("model", "work", "side", "level", "size", "device", "dtype")
    }
    if device == "cuda":
        report["card"] = torch.cuda.get_device_name()
        # Graphs do not outlive a profiler that sets up and tears down in between: torch does so for its own.
        os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    report["torch"] = torch.__version__

    def keep(name: str, figures: Any, said: Any = None) -> None:
        report[name] = figures
        say(name, figures if said is None else said)
        if options.report:
            options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    peaks = measured_peaks(device, dtype)
    if options.peak_tflops:
        peaks = replace(peaks, flop=1e12 * options.peak_tflops)
    keep("peaks", {"tflops": round(peaks.flop / 1e12, 3), "copied_gb_s": round(peaks.bytes / 1e9, 2),
                   "tflops_given": bool(options.peak_tflops)})  # fmt: skip
    model = MODELS[options.model](options.size, options.side, options.level, device, dtype)
    setting = Setting(options.model, options.work, device, dtype, model.module)
    training_it = options.work == "train"
    bench = Bench(setting, model, model.train() if training_it else (), options.count)
    rank = RANK if training_it else None
    say("model made")

    def one_way() -> dict[str, Any]:
        with bench.step() as step:
            figures = timed(step.repeated, options.count, device)
        with bench.step() as step:  # recorded anew: this recording is made while a profiler is set up
            found = profiled(step, device, options.repeats, peaks, rank)
        if "busy_ms" in found:  # a profiler makes gaps of its own
            found["timed_less_busy_ms"] = round(1e3 * figures["seconds"] - found["busy_ms"], 4)
        return {"timed": figures, **found}

    def keep_way(name: str, figures: dict[str, Any]) -> None:
        keep(name, figures, {key: value for key, value in figures.items() if key not in ("longest", "kinds")})
        print(table(figures), file=sys.stderr, flush=True)

    keep_way("ordinary", one_way())
    good = True
    if wanted:
        report["tries"] = {}

        def keep_try(name: str, found: dict[str, Any]) -> None:
            keep("tries", {**report["tries"], name: found}, {name: found})

        good = tries(bench, wanted, began + options.seconds, keep_try)
    if options.compiled:
        why_not = compiling.why_not(device) if device == "cuda" else ""
        if not good:
            why_not = "a try has lost the card"
        if why_not:
            keep("compiled", {"not_tried": why_not})
        else:
            backend = compiling.inductor if options.backend == "inductor" else lookup_backend(options.backend)
            with kept_in(options.cache), compiling.compiled(model.repeated(), training_it, backend=backend) as state:
                figures = one_way()
            keep_way("compiled", {**figures, "compilations": state.compilations, "failed": state.failed,
                                  "compiling_seconds": round(state.seconds, 1)})  # fmt: skip
        good = good and not why_not and bool(state.compilations) and not state.failed
    seen = [report[way] for way in ("ordinary", "compiled") if "kinds" in report.get(way, {})]
    empty = [way for way in seen if not way["kernels"] or set(way["kinds"]) == {kernel_kinds.UNKNOWN}]
    keep("ok", bool(good and seen and not empty))
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
