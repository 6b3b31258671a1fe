"""An SDXL base in memory: what ``protocol.LoadedBase`` asks for, each done by a part beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, DenoiseStep, PromptEmbeds, TrainBatch
from headshot_ui.families.sdxl_parts import denoise, lora, loss, pictures, text
from headshot_ui.families.sdxl_parts.load import SdxlModules, load_modules
from headshot_ui.families.sdxl_parts.lora_file import save_lora
from headshot_ui.swapping import move

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.settings import Settings

PARTS = frozenset({"text", "vae", "denoiser"})


class LoadedSdxl:
    """See ``protocol.LoadedBase``. Parts move to the device when first needed, and off it by ``keep``."""

    def __init__(self, info: BaseInfo, modules: SdxlModules, device: str) -> None:
        self.info = info
        self.modules = modules
        self.device = device

    @classmethod
    def read(cls, info: BaseInfo, settings: Settings) -> LoadedSdxl:
        """Read the model from its files. Raises ModelError naming the file that is missing or damaged."""
        dtype = getattr(torch, settings.dtype)
        return cls(info, load_modules(info, settings.device, dtype), settings.device)

    # --- words -----------------------------------------------------------------
    def unknown_words(self, text_: str) -> tuple[str, ...]:
        """Words of ``text_`` the text encoders have never seen (small vocabularies only)."""
        return text.unknown_words(self.modules.tokenizers, text_)

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """See ``text.encode_prompts``."""
        self._ready("text")
        return text.encode_prompts(self.modules, prompts)

    # --- pictures ----------------------------------------------------------------
    def encode_images(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """See ``pictures.encode_images``."""
        return pictures.encode_images(self._ready("vae"), images, generator)

    def decode_latents(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents to RGB pictures."""
        return pictures.decode_latents(self._ready("vae"), latents)

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """A rough look at unfinished latents, at the size of the finished picture, in about a millisecond."""
        return pictures.preview_pictures(latents, self._preview_matrix, self.cell_px)

    @cached_property
    def _preview_matrix(self) -> torch.Tensor:
        return pictures.fit_preview(self.modules.vae)

    @property
    def cell_px(self) -> int:
        """Pixels per side of one latent cell."""
        return int(2 ** (len(self.modules.vae.config.block_out_channels) - 1))

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""
        unet = self._ready("denoiser")
        return denoise.denoise(unet, self.modules.scheduler_config, request, self.cell_px)

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """See ``lora.add_trainable``."""
        return lora.add_trainable(self._ready("denoiser"), rank, alpha, seed)

    def checkpoint_gradients(self, enabled: bool) -> None:
        """Compute activations twice instead of keeping them: less memory, more time, the same result."""
        unet = self.modules.unet
        unet.enable_gradient_checkpointing() if enabled else unet.disable_gradient_checkpointing()

    def training_loss(
        self,
        batch: TrainBatch,
        generator: torch.Generator,
        min_snr_gamma: float | None,
        prior_count: int = 0,
        prior_weight: float = 1.0,
    ) -> torch.Tensor:
        """See ``loss.training_loss``."""
        unet = self._ready("denoiser")
        return loss.training_loss(
            unet, self._schedule, batch, generator, min_snr_gamma, prior_count, prior_weight, self.cell_px
        )

    @cached_property
    def _schedule(self) -> Any:
        return loss.noise_schedule(self.modules.scheduler_config)

    def trainable_lora_state(self) -> dict[str, torch.Tensor]:
        """See ``lora.trainable_state``."""
        return lora.trainable_state(self.modules.unet)

    def set_trainable_lora_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a saved state back, exactly. Raises ModelError when it is for another LoRA."""
        lora.set_trainable_state(self.modules.unet, state)

    def save_lora(self, path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        """Write a LoRA that diffusers loads with the same effect, atomically."""
        save_lora(path, state, {"family": self.info.family, "base": self.info.id, **metadata})

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Make exactly these LoRAs active, taking off any other, one in training too. Raises ModelError."""
        # Taking them off must not fetch a UNet back to a device that now belongs to another model.
        lora.use(self._ready("denoiser") if loras else self.modules.unet, loras, self.info.family)

    # --- memory ------------------------------------------------------------------
    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; the others go to the CPU."""
        if self.device == "cpu":
            return
        for part in PARTS - parts:
            for module in self._modules_of(part):
                move(module, "cpu")
        if self.device == "cuda":
            torch.cuda.empty_cache()
        for part in parts:
            self._ready(part)

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self.__dict__.pop("modules", None)
        self.__dict__.pop("_preview_matrix", None)
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _ready(self, part: str) -> Any:
        """Move a part to the device if it is not there; its (first) module."""
        modules = self._modules_of(part)
        for module in modules:
            if module.device.type != self.device:
                move(module, self.device)
        return modules[0]

    def _modules_of(self, part: str) -> tuple[Any, ...]:
        m = self.modules
        return {"text": m.text_encoders, "vae": (m.vae,), "denoiser": (m.unet,)}[part]
