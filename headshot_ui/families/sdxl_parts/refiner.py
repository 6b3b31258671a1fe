"""An SDXL refiner in memory: only its UNet. What ``protocol.LoadedRefiner`` asks for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families import weight_places
from headshot_ui.families.protocol import DenoiseStep, RefineRequest, RefinerInfo
from headshot_ui.families.sdxl_parts import denoise
from headshot_ui.families.sdxl_parts.kinds import read_schedule
from headshot_ui.families.sdxl_parts.load import check_scheduler, read_model
from headshot_ui.families.sdxl_parts.refiner_files import check_refiner_files
from headshot_ui.families.shared_parts.load import quiet, waiting_dtype
from headshot_ui.memory import empty_cache, files_bytes, give_back, is_read_in_turns, total_ram_bytes
from headshot_ui.swapping import forget_copies, move, send

if TYPE_CHECKING:
    from headshot_ui.settings import Settings


class LoadedSdxlRefiner:
    """See ``protocol.LoadedRefiner``."""

    def __init__(
        self, info: RefinerInfo, unet: Any, scheduler_config: dict[str, Any], device: str, dtype: str | None = None
    ) -> None:
        """With ``dtype`` the UNet can be read from its files again, and so be dropped."""
        self.info = info
        self.unet = unet
        self.scheduler_config = scheduler_config
        self.device = device
        self._dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self._frugal = False  # main memory is short: nothing waits there
        self._here = False

    @classmethod
    def read(cls, info: RefinerInfo, settings: Settings) -> LoadedSdxlRefiner:
        """Read UNet and schedule. Raises ModelError naming the file at fault."""
        check_refiner_files(info)
        config = read_schedule(info)
        check_scheduler(config, info.folder)
        loaded = cls(info, None, config, settings.device, settings.dtype)
        weights = files_bytes(weight_places(info), settings.dtype).get("unet", 0)
        loaded._frugal = is_read_in_turns(weights, total_ram_bytes(), settings)
        if not loaded._frugal:
            loaded._present()
        return loaded

    def refine(self, request: RefineRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm. Raises SpecError."""
        self.keep(frozenset({"denoiser"}))
        return denoise.refine(self.unet, self.scheduler_config, request)

    def keep(self, parts: frozenset[str]) -> None:
        """{"denoiser"}: on the device; frozenset(): off it."""
        self._here = "denoiser" in parts
        if self._here:
            unet = self._present()
            if unet.device.type != self.device:
                move(unet, self.device, keep_copy=not self._frugal, dtype=self._dtype)
            return
        if self._frugal:
            self.shed()
        if self.unet is not None:
            move(self.unet, "cpu")
        empty_cache(self.device)

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """See ``protocol.LoadedRefiner.expect``."""
        if self.device != "cuda" or self._frugal or self._here or self.unet is None or not parts:
            return False
        return send(self.unet, self.device, room, self._dtype)

    def shed(self) -> None:
        """Main memory is short: have no weights there that are not used now, from now on."""
        if self._dtype is None or self.unet is None:
            return
        self._frugal = True
        if self._here:
            forget_copies(self.unet)
        else:
            self.unet = None
        gc.collect()
        give_back()

    def _present(self) -> Any:
        """The UNet, wherever it is; read if it is not in memory."""
        if self.unet is None:
            from diffusers import UNet2DConditionModel

            assert self._dtype is not None  # only what can be read again is dropped
            dtype = self._dtype
            if self.device == "cuda":  # mapped, not copied: converted on its way to the card
                dtype = waiting_dtype(self.info, "unet", dtype, self._frugal)
            with quiet():
                self.unet = read_model(UNet2DConditionModel, self.info.folder, "unet", dtype, self.info.checkpoint)
        return self.unet

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self.__dict__.pop("unet", None)
        empty_cache(self.device)
