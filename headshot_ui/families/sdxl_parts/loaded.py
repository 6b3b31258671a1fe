"""An SDXL base in memory: what ``protocol.LoadedBase`` asks for, each done by a part beside this file."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, DenoiseStep, PromptEmbeds, TrainBatch
from headshot_ui.families.sdxl_parts import denoise, lora, loss, pictures, text
from headshot_ui.families.sdxl_parts.load import SdxlModules, load_facts
from headshot_ui.families.sdxl_parts.lora_facts import place_in_files
from headshot_ui.families.sdxl_parts.lora_file import LoraFile, read_lora_file
from headshot_ui.families.sdxl_parts.lora_write import save_lora
from headshot_ui.families.sdxl_parts.source import Source
from headshot_ui.memory import free_vram_bytes, give_back
from headshot_ui.swapping import forget_copies, move

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.settings import Settings

PARTS = frozenset({"text", "vae", "denoiser"})


class LoadedSdxl:
    """See ``protocol.LoadedBase``. Parts move to the device when first needed, and off it by ``keep``.

    Without ``source`` no part can be read again, and so none is dropped.
    """

    def __init__(self, info: BaseInfo, modules: SdxlModules, device: str, source: Source | None = None) -> None:
        self.info = info
        self.modules = modules
        self.device = device
        self._source = source
        self._frugal = source is not None and source.in_turns  # main memory is short: nothing waits there
        self._here: set[str] = set()  # parts that compute now, or did since the last ``keep``
        self._loras: tuple[tuple[LoraFile, float], ...] = ()  # finished ones that are in use, with their weights

    @classmethod
    def read(cls, info: BaseInfo, settings: Settings) -> LoadedSdxl:
        """Read the model from its files. Raises ModelError naming the file that is missing or damaged.

        Where main memory is short beside it (see ``memory.is_read_in_turns``) each part is read when it is needed.
        """
        modules = load_facts(info)
        loaded = cls(info, modules, settings.device, Source.find(info, settings))
        if not loaded._frugal:
            for part in sorted(PARTS):
                loaded._present(part)
        return loaded

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
        vae = self._ready("vae")
        return pictures.encode_images(vae, images, generator, self._room())

    def decode_latents(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents to RGB pictures."""
        vae = self._ready("vae")
        return pictures.decode_latents(vae, latents, self._room())

    def _room(self) -> int | None:
        """Bytes free on the device; None where it is not a card, or a model made without settings."""
        if self.device != "cuda" or self._source is None:
            return None
        return free_vram_bytes(self._source.settings)

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """A rough look at unfinished latents, at the size of the finished picture, in about a millisecond."""
        return pictures.preview_pictures(latents, self._preview_matrix, self.cell_px)

    @cached_property
    def _preview_matrix(self) -> torch.Tensor:
        there = self._modules_of("vae") or (self._source.read("vae") if self._source else ())
        return pictures.fit_preview(there[0])

    @cached_property
    def cell_px(self) -> int:
        """Pixels per side of one latent cell."""
        config = self.modules.vae.config if self._source is None else self._source.vae_config
        return int(2 ** (len(config["block_out_channels"]) - 1))

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""
        unet = self._ready("denoiser")
        return denoise.denoise(unet, self.modules.scheduler_config, request, self.cell_px)

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """See ``lora.add_trainable``."""
        self._loras = ()
        self._ready("denoiser")
        return lora.add_trainable(self.modules, rank, alpha, seed)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients pass through float16, in which small ones vanish unless the loss is scaled."""
        return bool(self._present("denoiser")[0].dtype == torch.float16)

    def checkpoint_gradients(self, enabled: bool) -> None:
        """Compute activations twice instead of keeping them: less memory, more time, the same result."""
        unet = self._present("denoiser")[0] if enabled else self.modules.unet
        if unet is None:  # dropped from memory; one that is read again does not checkpoint
            return
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
        about = {"family": self.info.family, "base": self.info.id, "base_title": self.info.title}
        save_lora(path, state, {**about, **metadata})

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Make exactly these LoRAs active, taking off any other, one in training too. Raises ModelError.

        Nothing moves and nothing is read but the LoRAs: taking them off must not fetch a UNet back to a device that
        now belongs to another model. A part that is not in memory gets its share when it is read, so that a UNet need
        not wait there while prompts are read.
        """
        place = place_in_files(self.info) if loras else None
        files = [(read_lora_file(path, place, self.info.family), weight) for path, weight in loras if place]
        self._loras = ()
        lora.remove_all(self.modules)
        for part in PARTS if files else ():
            if part in self._here or not self._frugal:  # others may not have their number format yet
                lora.put_on(self.modules, self._modules_of(part), files)
        self._loras = tuple(files)

    # --- memory ------------------------------------------------------------------
    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; the others go to the CPU, or away."""
        self._here = set(parts)
        if self._frugal:
            self.shed()
        if self.device == "cpu":
            return
        for part in PARTS - parts:
            for module in self._modules_of(part):
                move(module, "cpu")
        if self.device == "cuda":
            torch.cuda.empty_cache()
        for part in parts:
            self._ready(part)

    def shed(self) -> None:
        """Main memory is short: drop what is not used now, here and at every ``keep`` from now on.

        A dropped part is read from its files when it is needed again. A UNet whose LoRA is being trained is not
        dropped; finished LoRAs are put on again.
        """
        if self._source is None:
            return
        self._frugal = True
        for part in PARTS:
            if part in self._here or not self._can_be_read_again(part):
                for module in self._modules_of(part):
                    forget_copies(module)
            else:
                self._put(part, ())
        gc.collect()  # modules of transformers refer to themselves
        give_back()

    def _can_be_read_again(self, part: str) -> bool:
        return part != "denoiser" or not lora.is_trained(self.modules.unet)

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self.__dict__.pop("modules", None)
        self.__dict__.pop("_preview_matrix", None)
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _ready(self, part: str) -> Any:
        """Read a part if it is not there and move it to the device, with the LoRAs in use on; its (first) module."""
        modules = self._present(part)
        # A UNet whose LoRA is trained was read long ago: it has its number format, and the LoRA another.
        known = self._source is not None and self._can_be_read_again(part)
        dtype = self._source.dtype_of(part) if self._source is not None and known else None
        for module in modules:
            if module.device.type != self.device:
                move(module, self.device, keep_copy=not self._frugal, dtype=dtype)
        if self._loras:
            lora.put_on(self.modules, modules, self._loras)
        self._here.add(part)
        return modules[0]

    def _present(self, part: str) -> tuple[Any, ...]:
        """The modules of a part, wherever they are; read if they are not in memory."""
        if not self._modules_of(part) and self._source is not None:
            self._put(part, self._source.read(part, as_stored=self._frugal and self.device == "cuda"))
        return self._modules_of(part)

    def _modules_of(self, part: str) -> tuple[Any, ...]:
        m = self.modules
        modules: tuple[Any, ...] = {"text": m.text_encoders, "vae": (m.vae,), "denoiser": (m.unet,)}[part]
        return tuple(module for module in modules if module is not None)

    def _put(self, part: str, modules: tuple[Any, ...]) -> None:
        if part == "text":
            self.modules.text_encoders = modules
        else:
            setattr(self.modules, {"vae": "vae", "denoiser": "unet"}[part], modules[0] if modules else None)
