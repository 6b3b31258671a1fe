"""Where the parts of a base come from, so that one that was dropped from memory can be read again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families import weight_places
from headshot_ui.families.protocol import OtherVae
from headshot_ui.families.sdxl_parts.files import SAFE_VAE
from headshot_ui.families.sdxl_parts.load import read_model
from headshot_ui.families.shared_parts.files import check_safetensors, read_json_file, weight_files
from headshot_ui.families.shared_parts.load import quiet, waiting_dtype
from headshot_ui.memory import files_bytes, is_read_in_turns, total_ram_bytes

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

#: Entries of a VAE's config that decide what latents mean; equal ones can stand in for each other.
_SAME_LATENTS = (
    *("block_out_channels", "latent_channels", "scaling_factor"),
    *("shift_factor", "latents_mean", "latents_std"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The files of a base, and how its parts are to be read."""

    info: BaseInfo
    device: str
    dtype: torch.dtype  # of UNet and text encoders
    vae_folder: Path  # the base's own, or the one that holds the safe VAE
    vae_dtype: torch.dtype
    in_turns: bool  # parts are read when they are needed: main memory is short beside them
    settings: Settings

    @classmethod
    def find(cls, info: BaseInfo, settings: Settings) -> Source:
        """Choose the VAE and how to read. Raises ModelError for a config that is missing or damaged."""
        dtype = getattr(torch, settings.dtype)
        vae_folder, vae_dtype = choose_vae(info.folder, settings)
        weights = sum(files_bytes(weight_places(info), settings.dtype).values())
        in_turns = is_read_in_turns(weights, total_ram_bytes(), settings)
        return cls(info, settings.device, dtype, vae_folder, vae_dtype, in_turns, settings)

    def read(self, part: str, as_stored: bool = False) -> tuple[Any, ...]:
        """The modules of "text", "vae" or "denoiser", in main memory. Raises ModelError.

        In their own number format, else (``as_stored``) in that of their files: then they are mapped and not copied,
        and are to be converted on their way to a card. See ``load.waiting_dtype`` for when they are not.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kinds: dict[str, list[tuple[Any, str]]] = {
            "text": [(CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")],
            "vae": [(AutoencoderKL, self._vae_name)],
            "denoiser": [(UNet2DConditionModel, "unet")],
        }
        place, wanted = self._place_of(part), self.dtype_of(part)
        with quiet():
            dtypes = [
                waiting_dtype(place, name, wanted, self.in_turns) if as_stored else wanted for _, name in kinds[part]
            ]
            modules = tuple(
                read_model(kind, place.folder, name, dtype, place.checkpoint)
                for (kind, name), dtype in zip(kinds[part], dtypes, strict=True)
            )
        if part == "vae" and self.device == "cpu":
            # Measured on the demo base: decoding takes a quarter less time; the UNet gains nothing.
            modules[0].to(memory_format=torch.channels_last)
        return modules

    def files(self, part: str) -> tuple[Path, ...]:
        """Those with the weights of a part, as for ``read``. Raises ModelError."""
        place = self._place_of(part)
        if place.checkpoint is not None:
            return (place.checkpoint,)
        names = {"text": ("text_encoder", "text_encoder_2"), "vae": (self._vae_name,), "denoiser": ("unet",)}[part]
        return tuple(path for name in names for path in weight_files(place.folder, name))

    def dtype_of(self, part: str) -> torch.dtype:
        return self.vae_dtype if part == "vae" else self.dtype

    @property
    def vae_config(self) -> dict[str, Any]:
        return read_json_file(self.vae_folder / self._vae_name / "config.json")

    @property
    def other_vae(self) -> OtherVae | None:
        """See ``protocol.LoadedBase.other_vae``."""
        if self.vae_folder == self.info.folder:
            return None
        return OtherVae(SAFE_VAE, weight_files(self.vae_folder, SAFE_VAE))

    @property
    def _vae_name(self) -> str:
        return "vae" if self.vae_folder == self.info.folder else SAFE_VAE

    def _place_of(self, part: str) -> BaseInfo:
        """Where a part is read: with the base, or from the folder of the safe VAE."""
        if part != "vae" or self.vae_folder == self.info.folder:
            return self.info
        return replace(self.info, folder=self.vae_folder, checkpoint=None, checkpoint_parts=())


def choose_vae(folder: Path, settings: Settings) -> tuple[Path, torch.dtype]:
    """The folder whose VAE is used, and the number format it computes in.

    A VAE whose config asks for it (as SDXL's own) computes in float32. In float16 it overflows to black pictures, so
    there the safe VAE takes its place, where it is installed: half the memory and time. In bfloat16 it would not
    overflow, but photos are read with it too, and training learns from what it makes of them: its weights stay in
    float32, and only pictures are decoded in bfloat16 (``pictures.decode_latents``).
    """
    config = read_json_file(folder / "vae" / "config.json")
    dtype = getattr(torch, settings.dtype)
    if settings.device == "cpu":
        return folder, torch.float32
    if not config.get("force_upcast", True):
        return folder, dtype
    if dtype == torch.float16 and _safe_vae_fits(config, settings.models_dir):
        _log.info("The float16-safe VAE of %s decodes in place of that of %s", settings.models_dir / SAFE_VAE, folder)
        return settings.models_dir, dtype
    return folder, torch.float32


def _safe_vae_fits(config: dict[str, Any], models_dir: Path) -> bool:
    folder = models_dir / SAFE_VAE
    if not (folder / "config.json").is_file():
        return False
    safe = read_json_file(folder / "config.json")
    for path in weight_files(models_dir, SAFE_VAE):
        check_safetensors(path)
    return all(safe.get(name) == config.get(name) for name in _SAME_LATENTS)
