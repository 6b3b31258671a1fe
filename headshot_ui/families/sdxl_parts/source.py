"""Where the parts of a base come from, so that one that was dropped from memory can be read again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.sdxl_parts.files import check_safetensors, read_json_file, weight_files
from headshot_ui.families.sdxl_parts.load import quiet, read_model
from headshot_ui.memory import is_read_in_turns, read_header, total_ram_bytes, weight_bytes

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: Folder below the models folder with the VAE of SDXL whose weights were made smaller so that float16 holds what it
#: computes. It decodes to the same pictures but for the last bits.
SAFE_VAE = "sdxl-vae-fp16-fix"
#: Entries of a VAE's config that decide what latents mean; equal ones can stand in for each other.
_SAME_LATENTS = (
    *("block_out_channels", "latent_channels", "scaling_factor"),
    *("shift_factor", "latents_mean", "latents_std"),
)
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The files of a base in diffusers layout, and how its parts are to be read."""

    folder: Path
    device: str
    dtype: torch.dtype  # of UNet and text encoders
    vae_folder: Path  # holds "vae", or the safe VAE itself
    vae_dtype: torch.dtype
    in_turns: bool  # parts are read when they are needed: main memory is short beside them
    settings: Settings

    @classmethod
    def find(cls, folder: Path, settings: Settings) -> Source:
        """Choose the VAE and how to read. Raises ModelError for a config that is missing or damaged."""
        dtype = getattr(torch, settings.dtype)
        vae_folder, vae_dtype = choose_vae(folder, settings)
        weights = sum(weight_bytes(folder, settings.dtype).values())
        in_turns = is_read_in_turns(weights, total_ram_bytes(), settings)
        return cls(folder, settings.device, dtype, vae_folder, vae_dtype, in_turns, settings)

    def read(self, part: str, as_stored: bool = False) -> tuple[Any, ...]:
        """The modules of "text", "vae" or "denoiser", in main memory. Raises ModelError.

        In their own number format, else (``as_stored``) in that of their files: then they are mapped and not copied,
        and are to be converted on their way to a card.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kinds: dict[str, list[tuple[Any, str]]] = {
            "text": [(CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")],
            "vae": [(AutoencoderKL, self._vae_name)],
            "denoiser": [(UNet2DConditionModel, "unet")],
        }
        folder, wanted = self._folder_of(part), self.dtype_of(part)
        with quiet():
            modules = tuple(
                read_model(kind, folder, name, stored_dtype(folder, name, wanted) if as_stored else wanted)
                for kind, name in kinds[part]
            )
        if part == "vae" and self.device == "cpu":
            # Measured on the demo base: decoding takes a quarter less time; the UNet gains nothing.
            modules[0].to(memory_format=torch.channels_last)
        return modules

    def dtype_of(self, part: str) -> torch.dtype:
        return self.vae_dtype if part == "vae" else self.dtype

    @property
    def vae_config(self) -> dict[str, Any]:
        return read_json_file(self.vae_folder / self._vae_name / "config.json")

    @property
    def _vae_name(self) -> str:
        return "vae" if self.vae_folder == self.folder else SAFE_VAE

    def _folder_of(self, part: str) -> Path:
        return self.vae_folder if part == "vae" else self.folder


def choose_vae(folder: Path, settings: Settings) -> tuple[Path, torch.dtype]:
    """The folder whose VAE is used, and the number format it computes in.

    A VAE whose config asks for it (as SDXL's own) computes in float32. In float16 it overflows to black pictures, so
    there the safe VAE takes its place, where it is installed: half the memory and time. In bfloat16 it would not
    overflow, but that format has 8 bits for values that become 8 bits of colour after thirty layers of rounding:
    float32 costs a second per picture, and where the card has no room for it, it decodes in tiles.
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


def stored_dtype(folder: Path, part: str, wanted: torch.dtype) -> torch.dtype:
    """The number format of the files of a part; ``wanted`` where they hold several."""
    kinds = {tensor.dtype for path in weight_files(folder, part) for tensor in read_header(path)}
    kinds -= {"I64", "I32"}
    return _STORED.get(kinds.pop(), wanted) if len(kinds) == 1 else wanted
