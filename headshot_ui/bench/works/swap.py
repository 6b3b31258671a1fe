"""swap: models to the card and off it, beside ``.to``, ``from_pretrained`` and diffusers' model offload.

All four rows use the same files: a base and a refiner of the published shapes with random weights.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from headshot_ui import families, pinned
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, begin_peak, peak_of, summary, synchronise
from headshot_ui.bench.work import Work
from headshot_ui.memory import files_bytes, give_back, own_ram_bytes
from headshot_ui.store import readable_bytes

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, RefinerInfo
    from headshot_ui.settings import Settings

DRAWS, NOTHING = frozenset({"denoiser"}), frozenset[str]()
EVERYTHING = frozenset({"text", "vae", "denoiser"})
SWAPS, MAY_GROW = 50, 0.01
BOUND_TIMES, LOADING_TIMES, PICTURES_TIMES = 1.25, 3.0, 3.0


@dataclass(frozen=True)
class Models:
    """Files of random weights, and how the program reads them."""

    settings: Settings
    base: BaseInfo
    refiner: RefinerInfo

    @property
    def usual_dtype(self) -> Any:
        """As the published recipes have it: ``torch_dtype=torch.float16``; CPUs compute in float32."""
        import torch

        return torch.float16 if self.settings.device == "cuda" else torch.float32


@dataclass(frozen=True)
class Way:
    """One way of doing something that has to be undone, off the clock, before it can be done again."""

    run: Callable[[], object]
    undo: Callable[[], object]
    end: Callable[[], object] = lambda: None  # before the other way's turn


def measure(setting: BenchSetting) -> Iterator[Row]:
    """The four rows."""
    models = make_models(setting)
    yield from _swap_rows(setting, models)
    yield _loading_row(setting, models)
    from headshot_ui.bench.swap_pictures import pictures_row

    yield pictures_row(setting, models, PICTURES_TIMES)


def make_models(setting: BenchSetting) -> Models:
    from headshot_ui.prove.random_models import BASE_ID, REFINER_ID, make_base, make_refiner

    settings = replace(setting.settings, models_dir=setting.folder / "models")
    told = lambda text: setting.say(f"  writing random weights: {text}")  # noqa: E731
    make_base(settings.models_dir / BASE_ID, setting.size, settings.device, 0, told)
    make_refiner(settings.models_dir / REFINER_ID, setting.size, settings.device, 10, told)
    give_back()
    base = families.find_base(BASE_ID, settings)
    pinned.allow(settings)
    return Models(settings, base, families.find_refiner(REFINER_ID, base, settings))


# --- base → refiner -------------------------------------------------------------------------------
def _swap_rows(setting: BenchSetting, models: Models) -> Iterator[Row]:
    """The swap beside ``.to``, and what fifty of them leave in memory."""
    settings, device = models.settings, models.settings.device
    base, refiner = families.load_base(models.base, settings), families.load_refiner(models.refiner, settings)

    def first() -> None:
        base.keep(NOTHING)
        refiner.keep(DRAWS)

    def other() -> None:
        refiner.keep(NOTHING)
        base.keep(DRAWS)

    other()
    synchronise(device)
    began = time.perf_counter()
    first()
    synchronise(device)
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    pinned.settle()
    locking_s = time.perf_counter() - began
    other()  # from now on both are in locked memory
    usual = _usual_swap(models)
    usual_t, ours_t = alternating(usual, Way(first, other, end=lambda: base.keep(NOTHING)), device, setting.repeats)
    yield _swap_row(setting, models, usual_t, ours_t, f"the first swap took {first_s:.3f} s, locking {locking_s:.1f} s")
    del usual
    gc.collect()
    yield _fifty_row(setting, usual_t, first, other)
    base.release()
    refiner.release()


def _usual_swap(models: Models) -> Way:
    from diffusers import UNet2DConditionModel

    device = models.settings.device
    base, refiner = (
        UNet2DConditionModel.from_pretrained(
            info.folder, subfolder="unet", dtype=models.usual_dtype, use_safetensors=True, local_files_only=True
        )
        for info in (models.base, models.refiner)
    )

    def run() -> None:
        base.to("cpu")
        refiner.to(device)

    def undo() -> None:
        refiner.to("cpu")
        base.to(device)

    return Way(run, undo, end=lambda: base.to("cpu"))


def _swap_row(setting: BenchSetting, models: Models, usual: Timed, ours: Timed, note: str) -> Row:
    bound = _bound(models.settings, sum(files_bytes(families.weight_places(models.refiner), "float16").values()))
    return Row(
        f"{_name(setting)}: base → refiner", usual.seconds, ours.seconds, bound, usual.peak_bytes, ours.peak_bytes,
        f"at most {BOUND_TIMES} × (bytes of the refiner / measured pinned bandwidth)",
        None if bound is None else ours.seconds <= BOUND_TIMES * bound,
        f"The usual way is base.to(“cpu”), refiner.to(“cuda”); {note}.",
    )  # fmt: skip


def _fifty_row(setting: BenchSetting, usual: Timed, first: Callable[[], None], other: Callable[[], None]) -> Row:
    """``usual``: seconds of one swap that way."""
    device, swaps = setting.settings.device, SWAPS if setting.full else 4
    other()
    first()
    before = _memory(device)
    began = time.perf_counter()
    for number in range(swaps):
        (first if number % 2 else other)()
    synchronise(device)
    seconds = (time.perf_counter() - began) / swaps
    after = _memory(device)
    grown = [now / max(then, 1) - 1 for then, now in zip(before, after, strict=True)]
    told = [f"{readable_bytes(then)} → {readable_bytes(now)}" for then, now in zip(before, after, strict=True)]
    return Row(
        f"{_name(setting)}: {swaps} swaps, each", usual.seconds, seconds, None, None, None,
        f"memory after {swaps} swaps within {MAY_GROW:.0%} of that after the first",
        max(grown) <= MAY_GROW if device == "cuda" else None,
        f"Main memory of the process {told[0]}" + (f", of the card {told[1]}." if device == "cuda" else "."),
    )  # fmt: skip


def _memory(device: str) -> list[int]:
    """Bytes of main memory this process has, and of the card's that hold something."""
    gc.collect()
    give_back()
    if device != "cuda":
        return [own_ram_bytes()]
    import torch

    torch.cuda.synchronize()
    return [own_ram_bytes(), int(torch.cuda.memory_allocated())]


# --- from the disk --------------------------------------------------------------------------------
def _loading_row(setting: BenchSetting, models: Models) -> Row:
    """Everything of the base from its files onto the card."""
    settings, device = models.settings, models.settings.device
    held: list[Any] = []

    def usual() -> None:
        from diffusers import StableDiffusionXLPipeline

        held.append(
            StableDiffusionXLPipeline.from_pretrained(
                models.base.folder, dtype=models.usual_dtype, use_safetensors=True, local_files_only=True
            ).to(device)
        )

    def ours() -> None:
        loaded = families.load_base(models.base, settings)
        held.append(loaded)
        loaded.keep(EVERYTHING)

    def drop() -> None:
        for loaded in held:
            getattr(loaded, "release", lambda: None)()
        held.clear()
        gc.collect()
        give_back()
        pinned.settle()  # a lock that was begun ends before the next run

    from headshot_ui.families.shared_parts.load import quiet

    with quiet():
        usual_t, ours_t = alternating(Way(usual, drop), Way(ours, drop), device, setting.repeats)
    bound = _bound(settings, sum(files_bytes(families.weight_places(models.base), "float16").values()))
    return Row(
        f"{_name(setting)}: loading the base, files in the page cache", usual_t.seconds, ours_t.seconds, bound,
        usual_t.peak_bytes, ours_t.peak_bytes, f"at least {LOADING_TIMES:g} × as fast",
        usual_t.seconds >= LOADING_TIMES * ours_t.seconds,
        "The usual way is StableDiffusionXLPipeline.from_pretrained(…).to(“cuda”).",
    )  # fmt: skip


# --- shared ---------------------------------------------------------------------------------------
def _name(setting: BenchSetting) -> str:
    return "SDXL" if setting.full else "tiny SDXL"


def _bound(settings: Settings, size: int) -> float | None:
    if settings.device != "cuda":
        return None
    from headshot_ui.bench.machine import pinned_bytes_per_s

    return size / pinned_bytes_per_s()


def alternating(reference: Way, ours: Way, device: str, repeats: int) -> tuple[Timed, Timed]:
    """As ``timing.side_by_side``, each turn after a run to warm up, with each run undone off the clock.

    In the order A B B A, but for a single repeat, which gives each way one turn.
    """
    times: tuple[list[float], list[float]] = ([], [])
    peaks: tuple[list[int | None], list[int | None]] = ([], [])
    for way in (0, 1, 1, 0) if repeats > 1 else (0, 1):
        now = (reference, ours)[way]
        now.run()
        now.undo()
        begin_peak(device)
        for _ in range((repeats + 1) // 2):
            synchronise(device)
            began = time.perf_counter()
            now.run()
            synchronise(device)
            times[way].append(time.perf_counter() - began)
            now.undo()
        peaks[way].append(peak_of(device))
        now.end()
    first, second = (
        summary(taken, max((peak for peak in found if peak is not None), default=None))
        for taken, found in zip(times, peaks, strict=True)
    )
    return first, second


WORK = Work("swap", "Swapping and loading models", True, measure)
