"""What all trainers share: command line, wall-clock budget, averaged weights, compiling, saving."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def arguments(what: str, seconds: float) -> argparse.ArgumentParser:
    """The options that every trainer has."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--data", type=Path, help="folder written by tools.demo_models.dataset")
    parser.add_argument("--out", type=Path, required=True, help="models folder to write into, e.g. models/demo")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="time for training, without loading and compiling"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0, help="pictures per step; 0 is the trainer's own choice")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="tiny batches, to see in seconds that everything runs")
    return parser


def prepare_device(name: str, seed: int) -> torch.device:
    """Seed everything and choose fast matrix kernels."""
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Clock:
    """Progress by wall clock: a run ends in time whatever the speed of the machine."""

    def __init__(self, seconds: float, name: str, spent: float = 0.0, quiet: bool = False) -> None:
        self.seconds, self.name, self.quiet = max(seconds, 1e-3), name, quiet
        self.started = time.monotonic() - spent
        self.steps, self.samples, self._said, self._said_samples = 0, 0, self.started + spent, 0

    def elapsed(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self.started

    def progress(self) -> float:
        """0 at the start, 1 at the end of the budget."""
        return min(1.0, self.elapsed() / self.seconds)

    def count(self, samples: int) -> None:
        """One more step of ``samples`` pictures."""
        self.steps += 1
        self.samples += samples

    def say(self, figures: Callable[[], dict[str, float]], every: float = 5.0) -> None:
        """Print a line when the last one is ``every`` seconds old; ``figures`` is only called then."""
        now = time.monotonic()
        if self.quiet or now - self._said < every:
            return
        speed = (self.samples - self._said_samples) / max(now - self._said, 1e-9)
        self._said, self._said_samples = now, self.samples
        listed = "  ".join(f"{key} {value:.4f}" for key, value in figures().items())
        say(f"[{self.name}] {self.elapsed():5.0f}/{self.seconds:.0f} s  step {self.steps}  {speed:,.0f}/s  {listed}")


def say(text: str) -> None:
    """Print at once, with the time of day, so that logs of several processes can be read together."""
    print(time.strftime("%H:%M:%S ") + text, flush=True)


def cosine(progress: float, peak: float, warm: float = 0.03, last: float = 0.0) -> float:
    """Learning rate: linear up during ``warm``, then a cosine down to ``last`` times the peak."""
    if progress < warm:
        return peak * (progress / warm + 1e-3)
    part = (progress - warm) / (1 - warm)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * part)))


def adamw(
    parameters: list[nn.Parameter], device: torch.device, decay: float = 0.01, beta2: float = 0.99
) -> torch.optim.AdamW:
    """AdamW with one fused kernel where there is one; the learning rate is set at each step."""
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, beta2), weight_decay=decay, fused=device.type == "cuda")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Average:
    """Exponential moving average of all weights and buffers, which is what gets saved."""

    def __init__(self, modules: dict[str, nn.Module], decay: float = 0.999) -> None:
        self.decay, self.steps = decay, 0
        self.live = {
            f"{name}.{key}": value
            for name, module in modules.items()
            for key, value in module.state_dict().items()
            if value.is_floating_point()
        }
        once = {value.data_ptr(): key for key, value in reversed(self.live.items())}  # tied weights have two names
        self.live = {key: self.live[key] for key in self.live if once[self.live[key].data_ptr()] == key}
        self.mean = {key: value.detach().clone() for key, value in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move a little towards the present weights; faster at the beginning."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.mean.values()), list(self.live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and present weights; call again to go back."""
        for key, value in self.live.items():
            kept = value.clone()
            value.copy_(self.mean[key])
            self.mean[key].copy_(kept)


def compile_or_not(module: nn.Module, trial: Callable[[nn.Module], Tensor], wanted: bool, name: str) -> nn.Module:
    """A compiled module if one forward and backward through ``trial`` works, else the module itself."""
    if not wanted:
        return module
    started = time.monotonic()
    try:
        compiled = torch.compile(module, dynamic=False)
        trial(compiled).backward()
        module.zero_grad(set_to_none=True)
        say(f"[{name}] compiled in {time.monotonic() - started:.0f} s")
        return compiled
    except Exception as error:  # any failure of the compiler only costs speed
        say(f"[{name}] not compiled: {type(error).__name__}: {str(error)[:300]}")
        torch._dynamo.reset()
        module.zero_grad(set_to_none=True)
        return module


def half_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state on the CPU with floats in fp16."""
    return {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in module.state_dict().items()
    }


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
    os.replace(temporary, path)


def count_parameters(module: nn.Module) -> str:
    """Parameters in millions, for a log line."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
