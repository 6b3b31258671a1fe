"""What the rest of the program asks of a family of base models, and nothing more.

A family is one file in this package with a module-level ``FAMILY``. It knows no gradio,
no job and no output path. Shapes: B batch, C channels, H height, W width (pixels for
images, latent cells for latents).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from PIL import Image

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
    checkpoint: Path | None = None  # one file with all weights; then ``folder`` has configs and tokenizers only
    checkpoint_parts: tuple[tuple[str, str], ...] = ()  # of that file: (part, what the names of its tensors begin with)


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


@dataclass(frozen=True)
class RefinerFacts:
    """What is known of a refiner beside a certain base before it is loaded."""

    weights: tuple[Path, ...]  # the files that decide what it draws
    zeros_for_empty_prompt: bool  # its unconditional embedding is zeros; else that of the empty text
    same_schedule: bool  # noises pictures as the base does, so that it can take over in the middle ("ensemble")


#: Encoded prompts as named tensors whose first dimension is the prompt. SDXL: "prompt_embeds" (B, 77, D)
#: and "pooled_prompt_embeds" (B, P). On the CPU unless said otherwise; can be saved with safetensors.
PromptEmbeds = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch, all on the training device."""

    latents: torch.Tensor  # (B, C, H, W) float32, scaled as the denoiser expects
    embeds: PromptEmbeds  # first dimension B
    original_sizes: Sequence[tuple[int, int]]  # (height, width) in pixels before resizing
    crops: Sequence[tuple[int, int]]  # (top, left) in pixels after resizing


@dataclass(frozen=True)
class DenoiseRequest:
    """One staged stretch of denoising for a batch of pictures."""

    embeds: PromptEmbeds  # first dimension B
    negative_embeds: PromptEmbeds  # first dimension B
    seeds: Sequence[int]  # one per picture; the same seed gives the same picture in any batch
    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    stop_at: float = 1.0  # share of the noise schedule to go through; below 1 the latents are still noisy


@dataclass(frozen=True)
class RefineRequest:
    """What the base drew, to be finished ("ensemble") or drawn over ("img2img") by a refiner."""

    latents: torch.Tensor  # (B, C, h, w) float32 as the base's ``denoise`` yielded them
    embeds: PromptEmbeds  # the base's own; the refiner takes the part it was made for
    negative_embeds: PromptEmbeds
    seeds: Sequence[int]
    steps: int  # of the whole schedule, as in the base's request
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    start_at: float | None = None  # "ensemble": the base's ``stop_at``
    strength: float | None = None  # "img2img": the last int(steps * strength) steps are drawn again; at least one


@dataclass(frozen=True)
class DenoiseStep:
    """What a denoising generator yields after each step."""

    step: int  # 1-based
    total: int  # steps of this stretch
    latents: torch.Tensor  # (B, C, H, W)
    clean: torch.Tensor | None = None  # with the last step before a ``stop_at``: what is expected behind the noise


@dataclass(frozen=True)
class LoraLayout:
    """A way LoRA files of a family are written, for the programs that take it."""

    id: str  # e.g. "diffusers"
    title: str  # who takes it, behind "for": "diffusers"


@dataclass(frozen=True)
class LoraFacts:
    """What is in a LoRA file, known without any base model."""

    family: str  # id
    layout: str  # id of a ``LoraLayout`` of the family
    modules: Mapping[str, int]  # part of the base model, for people → number of its layers the LoRA changes
    rank: int  # the commonest one
    alpha: float | None  # likewise; None: not beside the layers, so equal to the rank unless the header says more
    one_rank: bool  # rank and alpha are the same in all layers
    dtype: str  # e.g. "float16"
    header: Mapping[str, str]  # everything the file says of itself


class Vocabulary(Protocol):
    """What a base model can read, known without its weights. A ``LoadedBase`` is one too."""

    info: BaseInfo

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of ``text`` the text encoders have never seen (small vocabularies only)."""


class LoadedBase(Protocol):
    """A base model in memory. Only the engine's worker thread touches it."""

    info: BaseInfo

    # --- words -----------------------------------------------------------------
    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of ``text`` the text encoders have never seen (small vocabularies only)."""

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Encode prompts; "" gives the unconditional embedding (zeros where the model was trained so).

        " " gives the empty text as the encoders read it, without zeros.
        """

    # --- pictures ----------------------------------------------------------------
    def encode_images(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w) float32; mean of the posterior without generator."""

    def decode_latents(self, latents: torch.Tensor) -> list[Image.Image]:
        """Scaled latents to RGB pictures."""

    def preview(self, latents: torch.Tensor) -> list[Image.Image]:
        """A rough, cheap look at unfinished latents."""

    # --- denoising ---------------------------------------------------------------
    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        """Yield after each step; the caller may stop iterating at any time without harm."""

    # --- LoRA --------------------------------------------------------------------
    def add_trainable_lora(self, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
        """Put a fresh fp32 LoRA on the denoiser and return its parameters in a fixed order."""

    def training_loss(
        self,
        batch: TrainBatch,
        generator: torch.Generator,
        min_snr_gamma: float | None,
        prior_count: int = 0,
        prior_weight: float = 1.0,
    ) -> torch.Tensor:
        """Scalar fp32 loss; noise and timesteps come from ``generator`` (a CPU generator).

        The last ``prior_count`` items of the batch are class pictures of prior preservation.
        """

    @property
    def scales_loss(self) -> bool:
        """Whether gradients pass through float16, in which small ones vanish unless the loss is scaled."""

    def checkpoint_gradients(self, enabled: bool) -> None:
        """Train with less memory and more time: activations are computed twice instead of kept. Off at first."""

    def trainable_lora_state(self) -> dict[str, torch.Tensor]:
        """The LoRA being trained, fp32 on the CPU, in diffusers' layout (``unet.….lora_A.weight``)."""

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
    def keep(self, parts: frozenset[str]) -> None:
        """Have only these parts ("text", "vae", "denoiser") on the device; others go to the CPU or away."""

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

    def split_steps(self, base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
        """Of ``steps``, those before and after the share ``switch`` of the noise schedule."""

    def vocabulary(self, info: BaseInfo) -> Vocabulary:
        """What this base can read, without loading it. Raises ModelError naming the file at fault."""

    def bases(self, settings: Settings) -> tuple[BaseInfo, ...]:
        """Base models of this family found under ``settings.models_dir``."""

    def misfits(self, settings: Settings) -> tuple[Misfit, ...]:
        """What lies under ``settings.models_dir``, is described by no file of this program, and is no such model."""

    def check(self, info: BaseInfo) -> None:
        """Look at configs, tokenizers and headers. Raises ModelError for the first file that is not as it must be."""

    def load(self, info: BaseInfo, settings: Settings) -> LoadedBase:
        """Read the model. Raises ModelError naming the file that is missing or damaged."""
