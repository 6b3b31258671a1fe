"""What the machine is and can do: the lower bounds of times are computed from these."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from typing import Any

from headshot_ui.bench.timing import measure
from headshot_ui.memory import total_ram_bytes

PACKAGES = ("torch", "diffusers", "transformers", "peft", "gradio")


def facts(device: str) -> dict[str, Any]:
    """What figures must be told with; JSON types only. Nothing in it names a person or a computer."""
    told: dict[str, Any] = {
        "device": device, "system": platform.system(), "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": total_ram_bytes(), "packages": _packages(),
    }  # fmt: skip
    return {**told, **_card()} if device == "cuda" else told


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _card() -> dict[str, Any]:
    import torch

    card = torch.cuda.get_device_properties(0)
    return {
        "gpu": card.name, "vram_bytes": int(card.total_memory), "cuda": torch.version.cuda, "driver": _driver(),
        "matmul_flops": matmul_flops("cuda"), "pinned_bytes_per_s": pinned_bytes_per_s(),
    }  # fmt: skip


def _driver() -> str:
    """The driver's version; "" where its own tool is not found or does not answer."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def matmul_flops(device: str, dtype: str = "bfloat16") -> float:
    """Floating-point operations per second in a large matrix product, as measured: the bound of arithmetic."""
    import torch

    size = 8192 if device == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    right = torch.randn_like(left)
    out = torch.empty_like(left)
    rounds = 10  # so that starting the first product counts little

    def run() -> None:
        for _ in range(rounds):
            torch.mm(left, right, out=out)

    return 2 * size**3 * rounds / measure(run, device, repeats=5).seconds


@cache
def pinned_bytes_per_s(size: int = 2**30) -> float:
    """Bytes per second from pinned main memory onto the card, as measured: the bound of loading and swapping."""
    import torch

    there = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    here = torch.empty(size, dtype=torch.uint8, device="cuda")
    return size / measure(lambda: here.copy_(there, non_blocking=True), "cuda", repeats=5).seconds
