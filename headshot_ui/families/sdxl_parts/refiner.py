"""An SDXL refiner in memory: only its UNet. What ``protocol.LoadedRefiner`` asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.protocol import DenoiseStep, RefineRequest, RefinerInfo
from headshot_ui.families.sdxl_parts import denoise
from headshot_ui.families.sdxl_parts.kinds import read_schedule
from headshot_ui.families.sdxl_parts.load import check_scheduler, quiet, read_model
from headshot_ui.families.sdxl_parts.refiner_files import check_refiner_files
from headshot_ui.swapping import move

if TYPE_CHECKING:
    from headshot_ui.settings import Settings


class LoadedSdxlRefiner:
    """See ``protocol.LoadedRefiner``."""

    def __init__(self, info: RefinerInfo, unet: Any, scheduler_config: dict[str, Any], device: str) -> None:
        self.info = info
        self.unet = unet
        self.scheduler_config = scheduler_config
        self.device = device

    @classmethod
    def read(cls, info: RefinerInfo, settings: Settings) -> LoadedSdxlRefiner:
        """Read UNet and schedule. Raises ModelError naming the file at fault."""
        from diffusers import UNet2DConditionModel

        check_refiner_files(info)
        config = read_schedule(info)
        check_scheduler(config, info.folder)
        with quiet():
            unet = read_model(
                UNet2DConditionModel, info.folder, "unet", getattr(torch, settings.dtype), info.checkpoint
            )
        return cls(info, unet, config, settings.device)

    def refine(self, request: RefineRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm. Raises SpecError."""
        self.keep(frozenset({"denoiser"}))
        return denoise.refine(self.unet, self.scheduler_config, request)

    def keep(self, parts: frozenset[str]) -> None:
        """{"denoiser"}: on the device; frozenset(): off it."""
        wanted = self.device if "denoiser" in parts else "cpu"
        if self.unet.device.type != wanted:
            move(self.unet, wanted)
            if wanted == "cpu" and self.device == "cuda":
                torch.cuda.empty_cache()

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self.__dict__.pop("unet", None)
        if self.device == "cuda":
            torch.cuda.empty_cache()
