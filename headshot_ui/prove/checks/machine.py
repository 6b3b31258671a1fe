"""Files, device and memory: what everything else stands on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.downloads.records import recorded_hashes
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import all_weights, weights_fault
from headshot_ui.gguf_files import SUFFIX
from headshot_ui.prove.findings import Finding, fails, holds, not_possible
from headshot_ui.restoration.weights import read_state
from headshot_ui.store import readable_bytes, sha256_of

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.protocol import BaseInfo, RefinerInfo
    from headshot_ui.prove.bench import Bench

CHECKING = "Reading the weights"
AGAIN = "Get this file again."
#: Tensors that may stay alive: small tables that libraries keep, and cuBLAS's workspace on the card (32 MiB on Hopper).
MAY_STAY = 96 * 2**20
#: Relative error of one product of two matrices of 512 x 512, per number format; measured 0.003 and 0.0004 in half.
_TOLERANCE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}


def check_files(bench: Bench) -> Finding:
    """Every weight file is as long as it says, holds finite numbers, and is what was downloaded."""
    models: list[BaseInfo | RefinerInfo] = [bench.info, *_refiners(bench)]
    files = [path for info in models for path in all_weights(info)]
    files += _network_files(bench)
    if not files:
        return fails("there are no weight files", "Get the model again.")
    total, known = 0, recorded_hashes(bench.shop.settings)
    for number, path in enumerate(files):
        bench.job.report(CHECKING, number, len(files))
        name = f"{path.parent.name}/{path.name}"
        fault = _fault(path)
        if fault:
            return fails(f"{name}: {fault}", AGAIN)
        if path in known and sha256_of(path) != known[path]:
            return fails(f"{name} is no longer the file that was downloaded", AGAIN)
        total += path.stat().st_size
    checked = sum(path in known for path in files)
    told = f", {checked} with the SHA-256 they were downloaded with" if checked else ""
    packed = ", GGUF by its length only" if any(path.suffix.lower() == SUFFIX for path in files) else ""
    return holds(f"{len(files)} files, {readable_bytes(total)}: whole, every number finite{packed}{told}")


def _network_files(bench: Bench) -> list[Path]:
    """The networks that restore and enlarge, and that find, tell apart and outline faces, of those that are there."""
    from headshot_ui.dataset.detector import find_weights
    from headshot_ui.recognisers import all_recognisers
    from headshot_ui.restoration import parser, upscale

    settings = bench.shop.settings
    files: list[Path | None] = [one.weights(settings) for one in bench.shop.parts.all_restorers().values()]
    files += [*find_weights(settings), *(one.weights(settings) for one in all_recognisers())]
    files += [parser.weights(settings), *(upscale.weights(factor, settings) for factor in (2, 4))]
    return [path for path in dict.fromkeys(files) if path is not None and path.is_file()]


def _refiners(bench: Bench) -> list[RefinerInfo]:
    from headshot_ui import families

    try:
        return [families.find_refiner(None, bench.info, bench.shop.settings)]
    except ModelError:
        return []


def _fault(path: Path) -> str:
    """What is wrong with a weight file, in a few words; "" when all is well."""
    if path.suffix.lower() == SUFFIX:
        return weights_fault(path)
    if path.suffix == ".safetensors":
        return weights_fault(path) or _broken_numbers(path)
    try:
        tensors = _tensors_in(read_state(path, path.stem))
        return next((_NONE.format(name) for name, tensor in tensors if not _finite(tensor)), "")
    except ModelError:
        return "damaged"


_NONE = "“{}” holds numbers that are none"


def _broken_numbers(path: Path) -> str:
    """A few words when a number is none, or a matrix is nothing but zeros (a hole in the file); "" when all is well."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if not _finite(tensor):
                return _NONE.format(name)
            if tensor.ndim > 1 and tensor.is_floating_point() and not bool(tensor.any()):
                return f"“{name}” is nothing but zeros"
    return ""


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors_in(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Those of a .pth file, in which they may lie deeper. Its zip archive has checksums, so holes are found at once."""
    for key, entry in state.items():
        if isinstance(entry, dict):
            yield from _tensors_in(entry, f"{name}{key}.")
        elif hasattr(entry, "is_floating_point"):
            yield f"{name}{key}", entry


# --- device -------------------------------------------------------------------------------------------
def check_device(bench: Bench) -> Finding:
    """One product of matrices in the number format of the settings is what float64 says, and the same twice."""
    import torch

    settings = bench.shop.settings
    dtype: torch.dtype = getattr(torch, settings.dtype)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator).to(settings.device, dtype) for _ in range(2))
    exact = left.cpu().double() @ right.cpu().double()  # Apple's GPU has no float64
    found, again = (left @ right).cpu(), (left @ right).cpu()
    error = float((found.double() - exact).norm() / exact.norm())
    told = f"{settings.device}, {settings.dtype}: a product of matrices is off by {error:.1e}"
    bench.before = bench.memory()
    if not error < _TOLERANCE[settings.dtype]:
        return fails(told, "Bring the graphics driver up to date, or compute with --device cpu.")
    if not torch.equal(found, again):
        return fails(f"{told}, and differs from one time to the next", "Let the card cool, and test its memory.")
    return holds(f"{told}, the same every time")


def check_swap(bench: Bench) -> Finding:
    """A model that left the graphics card and came back draws the same, bit for bit."""
    import torch

    if bench.shop.settings.device != "cuda":
        return not_possible("without a graphics card nothing has to leave it")
    assert bench.latents is not None
    latents = bench.latents
    with bench.shop.loaded(bench.info) as loaded:
        bench.make_ready(loaded)
        turns: tuple[frozenset[str], ...] = (frozenset(), frozenset({"denoiser"})) * 2
        seconds = [_timed(partial(loaded.keep, parts)) for parts in turns]
        after = bench.few_steps(loaded, latents.embeds, latents.negative)
    away, back = min(seconds[0], seconds[2]), min(seconds[1], seconds[3])
    told = f"{away:.2f} s off the card, {back:.2f} s back onto it"
    if not torch.equal(after, latents.without):
        return fails(f"{told}, but it draws something else afterwards", "Test the memory of this computer.")
    return holds(told, seconds_per_swap=away + back)


def _timed(move: Callable[[], None]) -> float:
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    move()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def check_memory(bench: Bench) -> Finding:
    """When all models are dropped, their memory is free again."""
    assert bench.before is not None
    bench.latents, bench.items = None, ()
    bench.shop.residency.evict()
    now = bench.memory()
    tensors, allocated = now.tensors - bench.before.tensors, now.allocated - bench.before.allocated
    told = f"{_signed(tensors)} of tensors in memory"
    if bench.shop.settings.device == "cuda":
        told += f", {_signed(allocated)} on the graphics card"
    told += f" beside what was there before; the process has {readable_bytes(now.process)}"
    if max(tensors, allocated) > MAY_STAY:
        return fails(told, "Restart the program between long jobs, and attach this report to an issue.")
    return holds(told)


def _signed(count: int) -> str:
    return ("-" if count < 0 else "+") + readable_bytes(abs(count))
