"""FLUX.1-dev of the published shape with random weights in a folder, from which each way of working reads its own.

The ways take turns: 24 GB of transformer are not there twice, and each one's peak is its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headshot_ui.bench.setting import BenchSetting

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.protocol import BaseInfo, LoadedBase
    from headshot_ui.settings import Settings

MODEL = "flux"
STEPS, GUIDANCE = 28, 3.5
#: TFLOP (twice the multiply-adds, attention included) of one pass for a picture of 1024 px with 512 words, of decoding
#: one, and by pixels of a training step with a LoRA of rank 16 on all linear layers of the blocks. Moving the weights
#: through the card once for each pass takes a fifth of that time or less, so arithmetic is the bound.
PASS_TFLOP, DECODING_TFLOP = 74.4, 10.5
STEP_TFLOP = {512: 45.0, 1024: 165.0}
GOAL_GPU = "H200"


@dataclass(frozen=True)
class RandomFlux:
    """The folder with the models, and what reads it."""

    setting: BenchSetting
    settings: Settings  # whose models folder it is in

    @classmethod
    def make(cls, setting: BenchSetting, lock: bool = True) -> RandomFlux:
        """Write it. Raises StoreError or ModelError where disk or main memory is too small for the full size.

        ``lock``: what moves may be page-locked, which takes a while and pays only where it moves again.
        """
        from headshot_ui import pinned
        from headshot_ui.prove.random_flux import SET

        models = setting.folder / "models"
        if setting.full:
            SET.check_room(setting.folder, setting.settings)
        setting.say("  making FLUX.1 with random weights")
        SET.make(models, setting.size, setting.settings.device, lambda _: None)
        if lock:
            pinned.allow(setting.settings)
        return cls(setting, replace(setting.settings, models_dir=models))

    @cached_property
    def info(self) -> BaseInfo:
        from headshot_ui import families
        from headshot_ui.prove.random_flux import BASE_ID

        return families.find_base(BASE_ID, self.settings)

    @contextmanager
    def ours(self) -> Iterator[LoadedBase]:
        """As this program reads it. Gone when the block ends."""
        from headshot_ui import families, pinned

        _clear()
        loaded = families.load_base(self.info, self.settings)
        try:
            pinned.settle()
            yield loaded
        finally:
            loaded.release()
            del loaded
            _clear()

    @contextmanager
    def transformer(self) -> Iterator[Any]:
        """As diffusers reads it, frozen and on the device. Gone when the block ends."""
        from diffusers import FluxTransformer2DModel

        from headshot_ui.families.shared_parts.load import quiet

        _clear()
        with quiet():
            model = FluxTransformer2DModel.from_pretrained(
                self.info.folder, subfolder="transformer", torch_dtype=self.dtype, local_files_only=True
            )
        try:
            yield model.requires_grad_(False).to(self.settings.device)
        finally:
            del model
            _clear()

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        """diffusers' own with its defaults, on the device. Gone when the block ends."""
        from diffusers import FluxPipeline

        from headshot_ui.families.shared_parts.load import quiet

        _clear()
        with quiet():
            pipe = FluxPipeline.from_pretrained(self.info.folder, torch_dtype=self.dtype, local_files_only=True)
            pipe.to(self.settings.device)
        pipe.set_progress_bar_config(disable=True)
        try:
            yield pipe
        finally:
            del pipe
            _clear()

    @property
    def dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.settings.dtype)
        return found


def _clear() -> None:
    """Before a way begins too: only when the one before has returned does nobody know its model any more."""
    from headshot_ui.memory import give_back

    gc.collect()
    give_back()


def bound(tflop: float, setting: BenchSetting) -> float | None:
    """Seconds of so much arithmetic on this card, as it multiplies; at full size only, for which it was counted."""
    from headshot_ui.bench.machine import matmul_flops

    device = setting.settings.device
    return tflop * 1e12 / matmul_flops(device) if setting.full and device == "cuda" else None


def reached(setting: BenchSetting, says: Callable[[], bool]) -> bool | None:
    """What ``says`` says, on the card that the goals are for; None on any other."""
    import torch

    if setting.settings.device != "cuda" or GOAL_GPU not in torch.cuda.get_device_name():
        return None
    return says()
