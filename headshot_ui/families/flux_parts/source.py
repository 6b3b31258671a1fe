"""Where the parts of a FLUX.1 base come from, so that one that was dropped from memory can be read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families import weight_places
from headshot_ui.families.flux_parts import blocks
from headshot_ui.families.flux_parts.configs import transformer_config
from headshot_ui.families.flux_parts.files import CLIP, T5, TRANSFORMER, VAE
from headshot_ui.families.flux_parts.fitted import is_ordinary, read_fitted
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet, read_model, waiting_dtype
from headshot_ui.memory import files_bytes, is_read_in_turns, total_ram_bytes

if TYPE_CHECKING:
    from headshot_ui.families.flux_parts.fitting import Fit
    from headshot_ui.families.protocol import BaseInfo, Told
    from headshot_ui.settings import Settings


@dataclass
class Source:
    """The files of a base, and how its parts are to be read. See ``shelf.PartSource``."""

    info: BaseInfo
    device: str
    dtype: torch.dtype  # of transformer and text encoders
    vae_dtype: torch.dtype
    in_turns: bool
    settings: Settings
    fit: Fit | None = None  # how the transformer is read from now on; None: whole, in its number format
    streams_text: bool = False  # blocks of T5 travel to the card
    told: Told | None = None  # hears how far reading is

    @classmethod
    def find(cls, info: BaseInfo, settings: Settings) -> Source:
        """Decide how to read. Raises ModelError for a missing config, and for float16, in which T5 overflows."""
        dtype = getattr(torch, settings.dtype)
        if dtype == torch.float16:
            raise ModelError(
                f"“{info.title}” computes in bfloat16, in float16 its numbers overflow: choose another base model, or "
                "a newer graphics card (HEADSHOT_UI_DTYPE=bfloat16 forces it)."
            )
        weights = sum(files_bytes(weight_places(info), settings.dtype).values())
        in_turns = is_read_in_turns(weights, total_ram_bytes(), settings)
        wide = settings.device == "cpu" or read_json_file(info.folder / VAE / "config.json").get("force_upcast", True)
        return cls(info, settings.device, dtype, torch.float32 if wide else dtype, in_turns, settings)

    def read(self, part: str, as_stored: bool = False) -> tuple[Any, ...]:
        """The modules of "text" (CLIP, T5), "vae" or "denoiser", in main memory. Raises ModelError.

        In their own number format, else (``as_stored``) in that of their files: see ``load.waiting_dtype``.
        """
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        if part == "denoiser" and not (self.info.checkpoint is None and is_ordinary(self.fit)):
            return (self._read_fitted(),)
        kinds: dict[str, list[tuple[Any, str]]] = {
            "text": [(CLIPTextModel, CLIP), (T5EncoderModel, T5)],
            "vae": [(AutoencoderKL, VAE)],
            "denoiser": [(FluxTransformer2DModel, TRANSFORMER)],
        }
        wanted = self.dtype_of(part)
        as_stored = as_stored and not self.travels(part)  # a block's bytes are what computes
        modules = []
        with quiet():
            for kind, name in kinds[part]:
                dtype = waiting_dtype(self.info, name, wanted, self.in_turns) if as_stored else wanted
                modules.append(read_model(kind, self.info.folder, name, dtype))
        if part == "denoiser":
            blocks.put_in(modules[0])
        return tuple(modules)

    def _read_fitted(self) -> Any:
        fit = self.fit
        # Where no copy is to wait in main memory it goes to the card layer by layer, unless blocks travel later.
        straight = fit is not None and (self.in_turns or not fit.keeps_copy) and not fit.streamed
        place = self.info.folder / TRANSFORMER if self.info.checkpoint is None else self.info.checkpoint
        config = transformer_config(self.info)
        read = read_fitted(place, config, fit, self.device, self.dtype, self.device if straight else "cpu", self.told)
        blocks.put_in(read)
        return read

    def travels(self, part: str) -> bool:
        """Whether some blocks of a part wait in main memory while it computes."""
        if part == "text":
            return self.streams_text
        return part == "denoiser" and self.fit is not None and self.fit.streamed > 0

    def dtype_of(self, part: str) -> torch.dtype:
        return self.vae_dtype if part == "vae" else self.dtype

    @property
    def vae_config(self) -> dict[str, Any]:
        return read_json_file(self.info.folder / VAE / "config.json")
