"""A FLUX.1 base in memory: what ``protocol.LoadedBase`` asks for, each done by a part beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.families.flux_parts import blocks, denoise, fast_products, lora, loss, text
from headshot_ui.families.flux_parts.choosing import Choose, choose
from headshot_ui.families.flux_parts.configs import FluxFacts, read_facts, schedule_config, transformer_config
from headshot_ui.families.flux_parts.files import CLIP, T5, TRANSFORMER, cell_px
from headshot_ui.families.flux_parts.fitted import (
    MOVING,
    MOVING_TEXT,
    PACKING,
    PACKING_TEXT,
    beforehand_of,
    come_back,
    counted,
    is_travelling,
    set_out,
)
from headshot_ui.families.flux_parts.fitting import RECOMPUTED, SPARE_BYTES, activation_bytes, tokens_of
from headshot_ui.families.flux_parts.lora_facts import place_in_files
from headshot_ui.families.flux_parts.lora_file import read_lora_file
from headshot_ui.families.flux_parts.lora_write import save_lora
from headshot_ui.families.flux_parts.preflight import check_base
from headshot_ui.families.flux_parts.recomputing import recompute
from headshot_ui.families.flux_parts.sizes import shape_of
from headshot_ui.families.flux_parts.source import Source
from headshot_ui.families.flux_parts.streaming import chosen_blocks, forget_packed
from headshot_ui.families.flux_parts.text_key import text_key_of
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.lora_parts.layers import LoraFile
from headshot_ui.families.protocol import (
    BaseInfo,
    CompilingFigures,
    DenoiseRequest,
    DenoiseStep,
    OtherVae,
    PromptEmbeds,
    Repeated,
    TextKey,
    Told,
    TrainBatch,
)
from headshot_ui.families.shared_parts import pictures
from headshot_ui.families.shared_parts.words import unknown_words
from headshot_ui.families.shelf import Modules, Shelf
from headshot_ui.memory import free_vram_bytes
from headshot_ui.specs import NONE

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.families.flux_parts.fitting import Fit, Together
    from headshot_ui.families.flux_parts.modulation import Rows
    from headshot_ui.settings import Settings

PARTS = ("text", "vae", "denoiser")


def _numbers(fit: Fit | None) -> tuple[bool, bool]:
    """What of a way decides how the transformer is read."""
    return (False, False) if fit is None else (fit.eight_bit, fit.dropped)


def _streamed(fit: Fit | None) -> int:
    return 0 if fit is None else fit.streamed


class LoadedFlux:
    """See ``protocol.LoadedBase``. Parts move to the device when first needed, and off it by ``keep``."""

    def __init__(
        self, info: BaseInfo, source: Source, facts: FluxFacts, tokenizers: tuple[Any, Any], choose: Choose = choose
    ) -> None:
        self.info, self._choose = info, choose
        self._source, self._facts, self._tokenizers = source, facts, tokenizers
        self._scheduler_config = schedule_config(info)
        self._loras: tuple[tuple[LoraFile, float], ...] = ()  # finished ones that are in use, with their weights
        self._together: Together | None = None  # all parts stay on the card
        self._rows: Rows | None = None  # modulation of the training steps to come, where it is computed beforehand
        self._shelf = Shelf(
            source.device, {part: () for part in PARTS}, source, stays=self._is_trained, on_ready=self._put_loras_on,
            on_going=self._set_out, on_leaving=self._come_back, on_moved=self._moved,
        )  # fmt: skip

    @classmethod
    def read(cls, info: BaseInfo, settings: Settings, choose: Choose = choose) -> LoadedFlux:
        """Read the model from its files. Raises ModelError naming the file that is missing or damaged.

        Where main memory is short beside it (see ``memory.is_read_in_turns``) each part is read when it is needed. The
        text encoders always are, because texts may be known already; and for a card the transformer is, because how
        depends on what it is to do, for which ``choose`` finds a way.
        """
        check_base(info)
        source = Source.find(info, settings)
        loaded = cls(info, source, read_facts(info), text.read_tokenizers(info.folder), choose)
        if not source.in_turns:
            for part in ("vae", "denoiser") if source.device != "cuda" else ("vae",):
                loaded._shelf.present(part)
        return loaded

    # --- words -----------------------------------------------------------------
    def unknown_words(self, text_: str) -> tuple[str, ...]:
        """Words of ``text_`` the text encoders have never seen (small vocabularies only)."""
        return unknown_words(self._tokenizers, text_)

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """See ``text.encode_prompts``."""
        return text.encode_prompts(self._tokenizers, self._shelf.ready("text"), prompts, self._facts.text_tokens)

    @property
    def text_key(self) -> TextKey:
        """See ``text_key.text_key_of``."""
        return text_key_of(self._source, self._facts.text_tokens, self._loras)

    # --- pictures ----------------------------------------------------------------
    @property
    def other_vae(self) -> OtherVae | None:
        """FLUX.1 decodes with its own."""
        return None

    def encode_images(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """See ``pictures.encode_images``."""
        return pictures.encode_images(self._shelf.ready("vae")[0], images, generator, self._room())

    def decode_latents(self, latents: torch.Tensor, in_tiles: bool = False) -> list[Image.Image]:
        """Scaled latents to RGB pictures, on a card in the transformer's number format."""
        vae = self._shelf.ready("vae")[0]
        dtype = self._source.dtype if self._source.device == "cuda" else vae.dtype
        return pictures.decode_latents(vae, latents, 0 if in_tiles else self._room(), dtype)

    def _room(self) -> int | None:
        """Bytes free on the device; None where it is not a card."""
        return free_vram_bytes(self._source.settings) if self._source.device == "cuda" else None

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """A rough look at unfinished latents, at the size of the finished picture, in about a millisecond."""
        return pictures.preview_pictures(latents, self._preview_matrix, self.cell_px)

    @cached_property
    def _preview_matrix(self) -> torch.Tensor:
        there = self._shelf.modules("vae") or self._source.read("vae")
        return pictures.fit_preview(there[0])

    @cached_property
    def cell_px(self) -> int:
        """Pixels per side of one latent cell."""
        return cell_px(self._source.vae_config)

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""
        transformer, told = self._shelf.ready("denoiser")[0], self._source.told
        room = self._room_beside(request) if request.products_in_8_bit else None
        fast_products.ask(transformer, request.products_in_8_bit, self._source.travels("denoiser"), room)
        return denoise.denoise(transformer, self._scheduler_config, request, self.cell_px, told)

    def _room_beside(self, request: DenoiseRequest) -> int | None:
        """Bytes of the card that such a drawing leaves free; None where it is not a card."""
        free = self._room()
        if free is None:
            return None
        pixels = request.width * request.height
        tokens = tokens_of(pixels, len(request.seeds), self.cell_px, self._facts.text_tokens)
        return free - SPARE_BYTES - activation_bytes(shape_of(transformer_config(self.info)), tokens, None)

    def repeated(self) -> tuple[Repeated, ...]:
        """See ``blocks.repeated``."""
        return tuple(one for transformer in self._shelf.modules("denoiser") for one in blocks.repeated(transformer))

    @property
    def compiling_figures(self) -> CompilingFigures:
        """See ``blocks.COMPILING``."""
        return blocks.COMPILING

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """See ``lora.add_trainable``."""
        self.use_loras(())
        transformer = self._shelf.ready("denoiser")[0]
        fast_products.switch_off(transformer)
        return lora.add_trainable(transformer, rank, alpha, seed)

    @property
    def scales_loss(self) -> bool:
        """Never: FLUX.1 does not compute in float16."""
        return False

    def checkpoint_gradients(self, level: str) -> None:
        """See ``protocol.LoadedBase.checkpoint_gradients``; partial: every second block, or all if any travel."""
        share = 1.0 if level != NONE and self._source.travels("denoiser") else RECOMPUTED[level]
        there = self._shelf.modules("denoiser") if level == NONE else self._shelf.present("denoiser")
        for transformer in there:
            recompute(transformer, share)

    def loss_inputs(
        self,
        batch: TrainBatch,
        generator: torch.Generator,
        min_snr_gamma: float | None,
        prior_count: int = 0,
        prior_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """See ``loss.loss_inputs``. Raises ValueError for a weighting by signal and noise, which flows have none of."""
        if min_snr_gamma is not None:
            raise ValueError("min_snr_gamma has no meaning for FLUX.1")
        chosen = self.info.defaults
        made = loss.loss_inputs(
            self._schedule, batch, generator, chosen.timestep_density, chosen.training_guidance,
            prior_count, prior_weight,
        )  # fmt: skip
        if self._rows is None:
            return made
        return {**made, loss.MODULATION: self._rows.of(loss.condition_of(made, self._facts.guided))}

    def prepare_for(self, coming: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Where the modulation layers were dropped, what they would give in the coming steps is computed now."""
        self._rows = None
        beforehand = beforehand_of(self._shelf.ready("denoiser")[0])
        if beforehand is not None:
            conditions = (loss.condition_of(inputs, self._facts.guided) for inputs in coming)
            self._rows = beforehand.rows(conditions, self._source.told)

    def loss(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See ``loss.loss``."""
        return loss.loss(self._shelf.ready("denoiser")[0], inputs, self._source.dtype, self._facts.guided)

    @cached_property
    def _schedule(self) -> Any:
        return loss.noise_schedule(self._scheduler_config)

    def trainable_lora_state(self) -> dict[str, torch.Tensor]:
        """See ``lora.trainable_state``."""
        return lora.trainable_state(self._shelf.modules("denoiser")[0])

    def set_trainable_lora_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a saved state back, exactly. Raises ModelError when it is for another LoRA."""
        lora.set_trainable_state(self._shelf.modules("denoiser")[0], state)

    def save_lora(self, path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        """Write a LoRA that diffusers loads with the same effect, atomically."""
        about = {"family": self.info.family, "base": self.info.id, "base_title": self.info.title}
        save_lora(path, state, {**about, **metadata})

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Make exactly these LoRAs active, taking off any other, one in training too. Raises ModelError.

        Nothing moves and nothing is read but the LoRAs: taking them off must not fetch a transformer back to a device
        that now belongs to another model. A part that waits or is not in memory gets its share when it computes.
        """
        place = place_in_files(self.info) if loras else None
        files = tuple((read_lora_file(path, place, self.info.family), weight) for path, weight in loras if place)
        others = lora.embed_otherwise(self._loras) or lora.embed_otherwise(files)
        self._loras, self._rows = (), None
        in_model.take_off(self._lora_parts())
        for beforehand in map(beforehand_of, self._shelf.modules("denoiser")):
            if beforehand is not None and others:
                beforehand.forget()
        shelf = self._shelf
        measured, modulating = lora.measure_weights(files), lora.facts_of(files).on_modulation
        for part in PARTS if files else ():
            if modulating and any(map(beforehand_of, shelf.modules(part))):
                shelf.put_away(part, drop=True)  # layers are missing in it: ``fit`` has it read with them
            elif measured and any(map(is_travelling, shelf.modules(part))):
                shelf.put_away(part)  # its weights are elsewhere; it gets its share before it sets out again
            elif part in shelf.here or not (shelf.frugal or shelf.device == "cuda"):
                in_model.put_on_parts(self._lora_parts(), shelf.modules(part), files)
        self._loras = files

    def _put_loras_on(self, part: str, modules: Modules) -> None:
        """Before a part computes: finished LoRAs are on it, and one in training counts as it is now."""
        if self._loras:
            in_model.put_on_parts(self._lora_parts(), modules, self._loras)
        if part == "denoiser":
            in_model.refresh(modules[0])

    def _lora_parts(self) -> dict[str, Any]:
        """The modules that a LoRA can change and that are in memory, as names of layers begin."""
        text_ = self._shelf.modules("text")
        found = {TRANSFORMER: self._shelf.modules("denoiser"), CLIP: text_[:1], T5: text_[1:]}
        return {name: modules[0] for name, modules in found.items() if modules}

    def _is_trained(self, part: str) -> bool:
        return part == "denoiser" and any(in_model.is_trained(module) for module in self._shelf.modules(part))

    # --- memory ------------------------------------------------------------------
    def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> Fitting | None:
        """See ``protocol.LoadedBase.fit`` and ``choosing.choose``."""
        chosen = self._choose(self.info, work, self._source.settings, precision, lora.facts_of(self._loras), under)
        self._together = None if chosen is None else chosen.together
        self._shelf.together = self._together is not None
        if chosen is None:
            self.make_fit(None)
            return None
        if not chosen.fit.keeps_copy and self._source.device == "cuda":
            self._shelf.frugal = True
        self.make_fit(chosen.fit, chosen.streams_text)
        return chosen.fitting

    @property
    def takes_bytes(self) -> int | None:
        """See ``protocol.LoadedBase.takes_bytes``."""
        return None if self._together is None else self._together.vram_bytes

    def make_fit(self, fit: Fit | None, streams_text: bool = False) -> None:
        """Have the transformer computed in this way from now on; None: whole, and in its own number format.

        ``streams_text``: blocks of T5 travel. Nothing is read or moved to the device now; what is in memory in another
        way is put away or dropped, and a LoRA that is being trained with it.
        """
        before, self._source.fit = self._source.fit, fit
        if _numbers(before) != _numbers(fit):
            self._rows = None
            self._shelf.put_away("denoiser", drop=True)
        elif _streamed(before) != _streamed(fit):
            self._put_away_unpacked("denoiser")
        if self._source.streams_text != streams_text:
            self._source.streams_text = streams_text
            # Those that travel are read as they compute.
            self._put_away_unpacked("text", drop=streams_text)

    def _put_away_unpacked(self, part: str, drop: bool = False) -> None:
        self._shelf.put_away(part, drop)
        for module in self._shelf.modules(part):
            forget_packed(module)

    def _set_out(self, part: str, modules: Modules) -> None:
        """Before a part moves to the device: what travels there block by block stays in main memory.

        LoRAs go on before: some measure the weights they stand on, and a block that travels has those only in its turn.
        """
        source = self._source
        if source.travels(part) and not any(map(is_travelling, modules)):
            self._put_loras_on(part, modules)
        if part == "denoiser" and source.fit is not None and source.travels(part):
            blocks_ = chosen_blocks(modules[0], source.fit.streamed)
            set_out(modules[0], blocks_, source.device, told=counted(source.told, PACKING))
        if part == "text" and source.travels(part):  # once per job: locking its memory would take longer
            told = counted(source.told, PACKING_TEXT)
            set_out(modules[1], modules[1].encoder.block, source.device, lock=False, told=told)

    def _come_back(self, part: str, modules: Modules) -> None:
        for module in modules:
            fast_products.switch_off(module)
            come_back(module)

    def report_to(self, told: Told | None) -> None:
        """See ``protocol.LoadedBase.report_to``. The stages are told apart in ``fitted``."""
        self._source.told = told

    def _moved(self, part: str, done: int, total: int) -> None:
        """So many weights of a part have come to the device."""
        stage = {"denoiser": MOVING, "text": MOVING_TEXT}.get(part)
        if stage is not None and self._source.told is not None:
            self._source.told(stage, done, total)

    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; the others go to the CPU, or away."""
        self._shelf.keep(parts)

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """See ``protocol.LoadedBase.expect``; what travels block by block is always one ahead."""
        return self._shelf.expect(frozenset(part for part in parts if not self._source.travels(part)), room)

    def shed(self) -> None:
        """Main memory is short: drop what is not used now, here and at every ``keep`` from now on."""
        self._shelf.shed()

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        self.__dict__.pop("_preview_matrix", None)
        self._loras, self._rows = (), None
        self._shelf.release()
