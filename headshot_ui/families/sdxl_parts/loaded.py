"""An SDXL base in memory: what ``protocol.LoadedBase`` asks for, each done by a part beside this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from headshot_ui import reading_ahead
from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.lora_parts.layers import LoraFile
from headshot_ui.families.lora_parts.writing import save_lora
from headshot_ui.families.protocol import (
    BaseInfo,
    CompilingFigures,
    DenoiseRequest,
    DenoiseStep,
    OtherVae,
    PromptEmbeds,
    Repeated,
    Told,
    TrainBatch,
)
from headshot_ui.families.sdxl_parts import denoise, lora, loss, text, trained_blocks
from headshot_ui.families.sdxl_parts.load import SdxlModules, by_part, load_facts, with_parts
from headshot_ui.families.sdxl_parts.lora_facts import place_in_files
from headshot_ui.families.sdxl_parts.lora_file import read_lora_file
from headshot_ui.families.sdxl_parts.source import Source
from headshot_ui.families.shared_parts import pictures
from headshot_ui.families.shared_parts.words import unknown_words
from headshot_ui.families.shelf import Modules, Shelf
from headshot_ui.memory import free_vram_bytes
from headshot_ui.specs import FULL, NONE, PARTIAL

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.settings import Settings

PARTS = ("text", "vae", "denoiser")


def _again(function: Any, *arguments: Any) -> Any:
    """Compute in two goes. Nothing is random in a UNet without dropout, and keeping the generators' states waits."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class LoadedSdxl:
    """See ``protocol.LoadedBase``. Parts move to the device when first needed, and off it by ``keep``.

    Without ``source`` no part can be read again, and so none is dropped.
    """

    def __init__(self, info: BaseInfo, modules: SdxlModules, device: str, source: Source | None = None) -> None:
        self.info = info
        self.device = device
        self._source = source
        self._facts = with_parts(modules, {})
        self._loras: tuple[tuple[LoraFile, float], ...] = ()  # finished ones that are in use, with their weights
        self._end_reading: Callable[[], None] = lambda: None
        self._shelf = Shelf(device, by_part(modules), source, stays=self._is_trained, on_ready=self._put_loras_on)

    @classmethod
    def read(cls, info: BaseInfo, settings: Settings) -> LoadedSdxl:
        """Read the model from its files. Raises ModelError naming the file that is missing or damaged.

        Where main memory is short beside it (see ``memory.is_read_in_turns``) each part is read when it is needed.
        """
        modules = load_facts(info)
        source = Source.find(info, settings)
        loaded = cls(info, modules, settings.device, source)
        if not source.in_turns:
            for part in sorted(PARTS):
                loaded._shelf.present(part)
            loaded._read_ahead()
        return loaded

    def _read_ahead(self) -> None:
        """What is mapped for a card comes from the disk in the order in which it is needed."""
        if self.device == "cuda" and self._source is not None:
            files = [path for part in PARTS for path in self._source.files(part)]
            self._end_reading = reading_ahead.begin(list(dict.fromkeys(files)))

    # --- words -----------------------------------------------------------------
    def unknown_words(self, text_: str) -> tuple[str, ...]:
        """Words of ``text_`` the text encoders have never seen (small vocabularies only)."""
        return unknown_words(self._facts.tokenizers, text_)

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """See ``text.encode_prompts``."""
        self._shelf.ready("text")
        return text.encode_prompts(self.modules, prompts)

    @property
    def text_key(self) -> None:
        """CLIP's two encoders are read in a second or two, and telling their files apart would take a part of that."""
        return None

    # --- pictures ----------------------------------------------------------------
    @property
    def other_vae(self) -> OtherVae | None:
        """See ``Source.other_vae``."""
        return None if self._source is None else self._source.other_vae

    def encode_images(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """See ``pictures.encode_images``."""
        vae = self._shelf.ready("vae")[0]
        return pictures.encode_images(vae, images, generator, self._room())

    def decode_latents(self, latents: torch.Tensor, in_tiles: bool = False) -> list[Image.Image]:
        """Scaled latents to RGB pictures."""
        vae = self._shelf.ready("vae")[0]
        return pictures.decode_latents(vae, latents, 0 if in_tiles else self._room(), self._decodes_in(vae))

    def _decodes_in(self, vae: Any) -> torch.dtype:
        """Beside a denoiser in bfloat16 a VAE in float32, which photos are read with, decodes in bfloat16 too."""
        unet = self.modules.unet
        denoiser = self._source.dtype if self._source is not None else (None if unet is None else unet.dtype)
        native = self.device == "cuda" and denoiser == torch.bfloat16 and vae.dtype == torch.float32
        return torch.bfloat16 if native else vae.dtype

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
        there = self._shelf.modules("vae") or (self._source.read("vae") if self._source else ())
        return pictures.fit_preview(there[0])

    @cached_property
    def cell_px(self) -> int:
        """Pixels per side of one latent cell."""
        config = self.modules.vae.config if self._source is None else self._source.vae_config
        return int(2 ** (len(config["block_out_channels"]) - 1))

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""
        unet = self._shelf.ready("denoiser")[0]
        return denoise.denoise(unet, self._facts.scheduler_config, request, self.cell_px)

    def repeated(self) -> tuple[Repeated, ...]:
        """See ``trained_blocks.repeated``."""
        unet = self.modules.unet
        return () if unet is None else trained_blocks.repeated(unet)

    @property
    def compiling_figures(self) -> CompilingFigures:
        """See ``trained_blocks.COMPILING``."""
        return trained_blocks.COMPILING

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """See ``lora.add_trainable``."""
        self._loras = ()
        self._shelf.ready("denoiser")
        return lora.add_trainable(self.modules, rank, alpha, seed)

    @property
    def scales_loss(self) -> bool:
        """Whether gradients pass through float16, in which small ones vanish unless the loss is scaled."""
        dtype = self._shelf.modules("denoiser")[0].dtype if self._source is None else self._source.dtype
        return bool(dtype == torch.float16)

    def checkpoint_gradients(self, level: str) -> None:
        """Compute activations twice instead of keeping them: less memory, more time, the same result.

        "partial": those inside of feed-forward layers; "full": all but what goes from block to block.
        """
        unet = self.modules.unet if level == NONE else self._shelf.present("denoiser")[0]
        if unet is None:  # dropped from memory; one that is read again does not checkpoint
            return
        unet.enable_gradient_checkpointing(_again) if level == FULL else unet.disable_gradient_checkpointing()
        trained_blocks.compute_again(unet, level == PARTIAL)

    def loss_inputs(
        self,
        batch: TrainBatch,
        generator: torch.Generator,
        min_snr_gamma: float | None,
        prior_count: int = 0,
        prior_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """See ``loss.loss_inputs``."""
        return loss.loss_inputs(
            self._schedule, batch, generator, min_snr_gamma, prior_count, prior_weight, self.cell_px
        )

    def prepare_for(self, coming: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Nothing in a step can be computed beforehand."""

    def loss(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See ``loss.loss``."""
        return loss.loss(self._shelf.ready("denoiser")[0], inputs)

    @cached_property
    def _schedule(self) -> Any:
        return loss.noise_schedule(self._facts.scheduler_config)

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
        not wait there while prompts are read; one that waits for the card gets it there, in its number format.
        """
        place = place_in_files(self.info) if loras else None
        files = [(read_lora_file(path, place, self.info.family), weight) for path, weight in loras if place]
        self._loras = ()
        lora.remove_all(self.modules)
        for part in PARTS if files else ():
            if part in self._shelf.here or not (self._shelf.frugal or self.device == "cuda"):
                lora.put_on(self.modules, self._shelf.modules(part), files)
        self._loras = tuple(files)

    # --- memory ------------------------------------------------------------------
    @property
    def modules(self) -> SdxlModules:
        """What is in memory now, wherever it is."""
        shelf = self._shelf
        return with_parts(self._facts, {part: shelf.modules(part) for part in PARTS})

    def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> Fitting | None:
        """There is only one way."""
        return None

    @property
    def takes_bytes(self) -> None:
        """Parts take turns."""
        return None

    def report_to(self, told: Told | None) -> None:
        """Nothing here takes long enough to be told."""

    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; the others go to the CPU, or away."""
        self._shelf.keep(parts)

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """See ``protocol.LoadedBase.expect``."""
        return self._shelf.expect(parts, room)

    def shed(self) -> None:
        """Main memory is short: drop what is not used now, here and at every ``keep`` from now on.

        A dropped part is read from its files when it is needed again. A UNet whose LoRA is being trained is not
        dropped; finished LoRAs are put on again.
        """
        if self._source is not None:
            self._end_reading()
        self._shelf.shed()

    def _is_trained(self, part: str) -> bool:
        return part == "denoiser" and any(in_model.is_trained(unet) for unet in self._shelf.modules(part))

    def _put_loras_on(self, part: str, modules: Modules) -> None:
        """Before a part computes: finished LoRAs are on it, and one in training counts as it is now."""
        if self._loras:
            lora.put_on(self.modules, modules, self._loras)
        if part == "denoiser":
            in_model.refresh(modules[0])

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self._end_reading()
        self.__dict__.pop("_preview_matrix", None)
        self._loras = ()
        self._shelf.release()
