"""What the rest of the program asks of a family of base models, and nothing more.

A family is one file in this package with a module-level ``FAMILY``. It knows no gradio,
no job and no output path. Shapes: B batch, C channels, H height, W width (pixels for
images, latent cells for latents).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

# Also for those who know them from here.
from headshot_ui.families.requests import CompilingFigures as CompilingFigures
from headshot_ui.families.requests import DenoiseRequest as DenoiseRequest
from headshot_ui.families.requests import DenoiseStep as DenoiseStep
from headshot_ui.families.requests import PromptEmbeds as PromptEmbeds
from headshot_ui.families.requests import Recorder as Recorder
from headshot_ui.families.requests import RefineRequest as RefineRequest
from headshot_ui.families.requests import Repeated as Repeated
from headshot_ui.families.requests import StepFunction as StepFunction
from headshot_ui.families.requests import Told as Told
from headshot_ui.families.requests import TrainBatch as TrainBatch

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from headshot_ui.families.fits import DenoiserWork, Fitting, LeastBytes
    from headshot_ui.settings import Settings


@dataclass(frozen=True)
class BaseDefaults:
    """Settings of a base model that a beginner never touches. Stored in its ``base.json``."""

    sampling_steps: int = 30
    guidance_scale: float = 5.0
    train_steps: int = 1000
    batch_size: int = 1
    rank: int = 32
    learning_rate: float = 1e-4
    min_snr_gamma: float | None = None
    checkpoint_every: int = 250
    sample_every: int = 250
    trigger: str = "tok"
    refine: str = "off"  # one of specs.REFINE_WAYS
    refiner_switch: float = 0.8
    refiner_strength: float = 0.3
    timestep_density: str = "logit_normal"  # of families that learn a flow: one of specs.TIMESTEP_DENSITIES
    training_guidance: float = 1.0  # of those that take a guidance scale as a number: which one they learn at


@dataclass(frozen=True)
class BaseInfo:
    """One base model on this machine that a person can choose with ``--base``."""

    id: str  # e.g. "demo-sdxl"
    family: str  # e.g. "sdxl"
    title: str  # e.g. "Demo (draws cartoons)"
    folder: Path  # diffusers layout
    licence: str
    note: str  # one plain sentence shown in the app
    size_px: int  # native side of the square picture
    demo: bool = False
    defaults: BaseDefaults = field(default_factory=BaseDefaults)
    checkpoint: Path | None = None  # one file with weights; then ``folder`` has configs and tokenizers only
    checkpoint_parts: tuple[tuple[str, str], ...] = ()  # of that file: (part, what the names of its tensors begin with)
    borrowed: tuple[str, ...] = ()  # parts that the file lacks, whose weights are in ``folder``: those of another base


@dataclass(frozen=True)
class RefinerInfo:
    """A second model that draws the last, nearly noiseless steps. Described by ``refiner.json`` in its folder."""

    id: str  # e.g. "demo-sdxl-refiner"
    family: str
    title: str
    folder: Path  # diffusers layout; only "unet" and "scheduler" are read
    licence: str
    note: str
    bases: tuple[str, ...] = ()  # ids of the bases whose latents and second text encoder it shares; () means any
    demo: bool = False
    checkpoint: Path | None = None  # as of BaseInfo
    checkpoint_parts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Misfit:
    """Something under the models folder that looks like a model and cannot be used as one."""

    path: Path
    id: str  # what a person would call it
    reason: str  # one sentence: what it is, and what to do
    damaged: bool = False  # perhaps of the right kind, but cut short or incomplete
    quiet: bool = False  # most likely there for a purpose: told only to somebody who asks for it by name
    own: bool = False  # of a kind that this family knows best: what others say of it does not count


@dataclass(frozen=True)
class Abilities:
    """Which settings of a request mean anything to a base model."""

    reads_negative_prompt: bool = True  # and so a second pass per step, which guidance steers away from
    weighs_by_snr: bool = True  # ``min_snr_gamma`` weighs its loss
    takes_refiner: bool = True  # refiners are made for bases of its kind
    untrainable: str = ""  # why no LoRA can be trained on it, and what to do, in one sentence
    reuses_blocks: bool = False  # it can leave blocks out of a step that change little (``DenoiseRequest.reuse_below``)
    #: Layouts (ids) of LoRA files that diffusers' own pipeline cannot read into this base, and why, in a few words.
    unread_by_diffusers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RefinerFacts:
    """What is known of a refiner beside a certain base before it is loaded."""

    weights: tuple[Path, ...]  # the files that decide what it draws
    zeros_for_empty_prompt: bool  # its unconditional embedding is zeros; else that of the empty text
    same_schedule: bool  # noises pictures as the base does, so that it can take over in the middle ("ensemble")


@dataclass(frozen=True)
class OtherVae:
    """A VAE that stands in for the base's own: the pictures differ in their last bits."""

    id: str  # e.g. "sdxl-vae-fp16-fix"
    weights: tuple[Path, ...]  # the files that decide what it decodes


@dataclass(frozen=True)
class TextKey:
    """What decides the embedding of a text to the last bit, beside the text itself."""

    files: tuple[Path, ...]  # weights and configs of the text encoders, and their tokenizers
    rest: tuple[str, ...]  # device, number format, tokens, LoRAs that change the encoders


@dataclass(frozen=True)
class LoraLayout:
    """A way LoRA files of a family are written, for the programs that take it."""

    id: str  # e.g. "diffusers"
    title: str  # who takes it, behind "for": "diffusers"
    where: tuple[str, ...] = ()  # for each program one sentence that says where the file goes there


@dataclass(frozen=True)
class LoraFacts:
    """What is in a LoRA file, known without any base model."""

    family: str  # id
    layout: str  # id of a ``LoraLayout`` of the family, or the name of one that is only read
    modules: Mapping[str, int]  # part of the base model, for people → number of its layers the LoRA changes
    rank: int  # the commonest one
    alpha: float | None  # likewise; None: not beside the layers, so equal to the rank unless the header says more
    one_rank: bool  # rank and alpha are the same in all layers
    dtype: str  # e.g. "float16"
    header: Mapping[str, str]  # everything the file says of itself
    kind: str = "LoRA"  # or what its relatives are called, e.g. "LoKr"


class Vocabulary(Protocol):
    """What a base model can read, known without its weights. A ``LoadedBase`` is one too."""

    info: BaseInfo

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of ``text`` the text encoders have never seen (small vocabularies only)."""


class LoadedBase(Protocol):
    """A base model in memory. Only the engine's worker thread touches it."""

    info: BaseInfo

    @property
    def other_vae(self) -> OtherVae | None:
        """The VAE that makes the pictures in place of the base's own; None: its own does."""

    # --- words -----------------------------------------------------------------
    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of ``text`` the text encoders have never seen (small vocabularies only)."""

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Encode prompts; "" gives the unconditional embedding (zeros where the model was trained so).

        " " gives the empty text as the encoders read it, without zeros.
        """

    @property
    def text_key(self) -> TextKey | None:
        """Of ``encode_prompts`` as it is now. None: the encoders are so small that reading again costs little."""

    # --- pictures ----------------------------------------------------------------
    def encode_images(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w) float32; mean of the posterior without generator."""

    def decode_latents(self, latents: torch.Tensor, in_tiles: bool = False) -> list[Image.Image]:
        """Scaled latents to RGB pictures; ``in_tiles``: in less memory, which changes colours a little."""

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """A rough, cheap look at unfinished latents."""

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""

    def repeated(self) -> tuple[Repeated, ...]:
        """What takes most of a pass of the denoiser, if that is in memory: until it is dropped or a LoRA changes."""

    @property
    def compiling_figures(self) -> CompilingFigures:
        """What compiling that is likely to cost and to save, for computers that have not timed it themselves."""

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """Put a fresh fp32 LoRA on the denoiser and return its parameters in a fixed order."""

    def loss_inputs(
        self,
        batch: TrainBatch,
        generator: torch.Generator,
        min_snr_gamma: float | None,
        prior_count: int = 0,
        prior_weight: float = 1.0,
    ) -> Mapping[str, torch.Tensor]:
        """Everything ``loss`` needs of a micro-batch, on the CPU; noise and timesteps come from ``generator``.

        The shapes follow from those of the batch. The last ``prior_count`` items are class pictures of prior
        preservation.
        """

    def prepare_for(self, coming: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """``coming`` are the ``loss_inputs`` of the next micro-batches, in their order: what follows from them may be
        computed now, and is given with those that are made from now on. Read only by a base that makes use of it."""

    def loss(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scalar fp32 loss of such inputs, which are on the training device.

        Nothing in it is random, looks at a value or copies from the CPU, so that a card can record and repeat it.
        """

    @property
    def scales_loss(self) -> bool:
        """Whether gradients pass through float16, in which small ones vanish unless the loss is scaled."""

    def checkpoint_gradients(self, level: str) -> None:
        """Train with less memory and more time: activations are computed twice instead of kept.

        ``level`` is one of ``specs.CHECKPOINTING``: "none" (so at first) keeps all, "partial" recomputes what takes
        most memory for its time, "full" as much as can be. Gradients are the same to the last bit.
        """

    def trainable_lora_state(self) -> dict[str, torch.Tensor]:
        """The LoRA being trained, fp32 on the CPU, in diffusers' layout (``unet.….lora_A.weight``, …)."""

    def set_trainable_lora_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a saved state back, exactly."""

    def save_lora(self, path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        """Write a LoRA that diffusers loads with the same effect, atomically."""

    def use_loras(self, loras: Sequence[tuple[Path, float]]) -> None:
        """Make exactly these LoRAs with these weights active; () leaves the base bit-equal to before.

        A LoRA may also change how prompts are read, so put it on before ``encode_prompts``. Moves nothing to the
        device. All files are checked before anything changes; raises ModelError when one is damaged, no LoRA, of a
        kind that cannot be applied exactly, or made for another family or size.
        """

    # --- memory ------------------------------------------------------------------
    def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> Fitting | None:
        """Have the base computed from now on in a way that fits this work; None: there is only one way.

        To be called when finished LoRAs are on and before anything computes; a LoRA in training may be lost.
        ``precision`` is that of a run that goes on; ``under``: no way that takes more of the card than so many bytes,
        because one ran out of them. Raises MemoryBudgetError with one sentence where nothing fits.
        """

    @property
    def takes_bytes(self) -> int | None:
        """Where ``fit`` found room for all parts at once: what the process takes of the card then, at most, while it
        computes. Its parts stay there together until ``keep`` is given none. None: they take turns."""

    def report_to(self, told: Told | None) -> None:
        """``told`` hears from now on how far weights are that are read or made to fit, where that may take long.

        When it raises, nothing half made stays: what is missing is made when it is needed next. None: nobody hears.
        """

    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; others go to the CPU or away.

        Where there is room for all (``takes_bytes``) what is there stays, until no part at all is to be kept.
        """

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """These parts come next: their weights may set out now and take ``room`` bytes of the device beside what
        computes there. Only a hint; True if any did. What is not wanted after all goes with the next ``keep``."""

    def shed(self) -> None:
        """Main memory is short: drop what is not used now, and from now on whatever leaves the device.

        What was dropped is read again when it is needed. A denoiser with a LoRA on stays.
        """

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""


class LoadedRefiner(Protocol):
    """A refiner in memory. Only the engine's worker thread touches it."""

    info: RefinerInfo

    def refine(self, request: RefineRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""

    def keep(self, parts: frozenset[str]) -> None:
        """{"denoiser"}: on the device; frozenset(): off it."""

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """As ``LoadedBase.expect``."""

    def shed(self) -> None:
        """As ``LoadedBase.shed``."""

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""


class Family(Protocol):
    """A kind of base model."""

    id: str
    lora_layouts: tuple[LoraLayout, ...]  # that ``lora_in_layout`` knows; the most useful one first

    def lora_facts(self, path: Path) -> LoraFacts:
        """Look into a LoRA file. Raises ModelError unless it is one of this family; the sentence says what it is."""

    def check_lora(self, path: Path, info: BaseInfo) -> None:
        """Raise ModelError unless every layer of the LoRA fits this base, of which no weights are loaded."""

    def lora_in_layout(
        self, layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None = None
    ) -> bytes:
        """The LoRA ``source``, made for ``info``, as a whole file in another layout (an id).

        ``facts`` (trigger, class_word, steps, date …) stand in the header beside what ``source`` says of itself and
        win over it; ``title`` is what other programs list it as. ``dtype`` "float16" or "float32"; None keeps it. The
        same input gives the same bytes. Raises ModelError.
        """

    def refiners(self, settings: Settings) -> tuple[RefinerInfo, ...]:
        """Refiners of this family found under ``settings.models_dir``; () has none."""

    def load_refiner(self, info: RefinerInfo, settings: Settings) -> LoadedRefiner:
        """Read the refiner. Raises ModelError naming the file that is missing or damaged."""

    def refiner_facts(self, info: RefinerInfo, base: BaseInfo) -> RefinerFacts:
        """Look at configs and headers only. Raises ModelError when the refiner is damaged or not for this base."""

    def other_vae(self, info: BaseInfo, settings: Settings) -> OtherVae | None:
        """What ``LoadedBase.other_vae`` would be if the base were loaded now. Raises ModelError."""

    def split_steps(self, base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
        """Of ``steps``, those before and after the share ``switch`` of the noise schedule."""

    def vocabulary(self, info: BaseInfo) -> Vocabulary:
        """What this base can read, without loading it. Raises ModelError naming the file at fault."""

    def bases(self, settings: Settings) -> tuple[BaseInfo, ...]:
        """Base models of this family found under ``settings.models_dir``."""

    def misfits(self, settings: Settings) -> tuple[Misfit, ...]:
        """What lies under ``settings.models_dir``, is described by no file of this program, and is no such model."""

    def abilities(self, info: BaseInfo) -> Abilities:
        """What this base can do, from its configs. Raises ModelError naming the file at fault."""

    def is_trained(self, tensor: str) -> bool:
        """Whether training puts a LoRA on the layer with this weight, by the name it has in any weight file."""

    def layer_shapes(self, info: BaseInfo) -> Mapping[str, tuple[int, ...]] | None:
        """Shapes of the denoiser's weights by name, where a file holds several layers in one; else None: as it says.

        Raises ModelError for a file that is missing or damaged.
        """

    def working_bytes(
        self, info: BaseInfo, pixels: int, batch: int, learning: str | None, item_bytes: int
    ) -> int | None:
        """What the denoiser takes while it computes, beside weights and LoRA, for pictures of so many ``pixels`` each.

        ``learning`` is the level of gradient checkpointing (``specs.CHECKPOINTING``), None while drawing;
        ``item_bytes`` of one number. None: as SDXL's, in proportion to its size.
        """

    def fitting(
        self,
        info: BaseInfo,
        work: DenoiserWork,
        settings: Settings,
        precision: str | None = None,
        under: int | None = None,
    ) -> Fitting | None:
        """What ``LoadedBase.fit`` would be if it were asked now, from headers only.

        Raises MemoryBudgetError where nothing fits, ModelError, and DeviceError for a card that does not answer.
        """

    def least_bytes(self, info: BaseInfo) -> Mapping[str, LeastBytes]:
        """Of parts that can be had in less memory than their files say, by name: what they take at least."""

    def check(self, info: BaseInfo) -> None:
        """Look at configs, tokenizers and headers. Raises ModelError for the first file that is not as it must be."""

    def load(self, info: BaseInfo, settings: Settings) -> LoadedBase:
        """Read the model. Raises ModelError naming the file that is missing or damaged."""
