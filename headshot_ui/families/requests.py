"""What a loaded model is asked to compute, and what it gives back; ``protocol`` says by which methods.

Shapes: B batch, C channels, H height, W width (pixels for images, latent cells for latents).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Encoded prompts as named tensors whose first dimension is the prompt. SDXL: "prompt_embeds" (B, 77, D)
#: and "pooled_prompt_embeds" (B, P); FLUX.1 the same with the tokens of T5. On the CPU unless said otherwise; can be
#: saved with safetensors.
PromptEmbeds = Mapping[str, "torch.Tensor"]


#: Tensors in, tensors out, and nothing kept in between. Equal ones do the same.
StepFunction = Callable[..., tuple["torch.Tensor", ...]]
#: Makes a step that is carried out many times quick to repeat, without changing what it gives. Beside the step it
#: takes the module with all the weights that the step reads. ``capture.Graphs.record`` is one.
Recorder = Callable[[StepFunction, "torch.nn.Module"], StepFunction]


@dataclass(frozen=True)
class Repeated:
    """A function that a denoiser carries out many times in a pass; those of equal blocks do the same.

    It is looked up in the instance at each call, so another may be put in its place there and taken away again.
    """

    owner: Any  # usually a module
    name: str  # of the attribute that is called


@dataclass(frozen=True)
class CompilingFigures:
    """What compiling everything ``repeated`` brought a training where it was measured, for photos of one size."""

    saved: float  # of the seconds of an ordinary step, as a share
    cold_seconds: float  # more than usual until the first step was done, where nothing had been compiled before
    warm_seconds: float  # the same where it had been, and lay on the disk
    cores: int  # processors of that computer; compiling keeps all of them busy


#: Hears how far something is that takes a while: a stage in plain words, steps done, steps in all. May raise Cancelled.
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch, on the CPU."""

    latents: torch.Tensor  # (B, C, H, W) float32, scaled as the denoiser expects
    embeds: PromptEmbeds  # first dimension B
    original_sizes: Sequence[tuple[int, int]]  # (height, width) in pixels before resizing
    crops: Sequence[tuple[int, int]]  # (top, left) in pixels after resizing


@dataclass(frozen=True)
class DenoiseRequest:
    """One staged stretch of denoising for a batch of pictures."""

    embeds: PromptEmbeds  # first dimension B
    #: First dimension B. None: nothing is steered away from, because ``guidance_scale`` is at most 1 or the base reads
    #: no negative prompt (``Abilities``).
    negative_embeds: PromptEmbeds | None
    seeds: Sequence[int]  # one per picture; the same seed gives the same picture in any batch
    steps: int
    guidance_scale: float
    height: int  # pixels
    width: int  # pixels
    stop_at: float = 1.0  # share of the noise schedule to go through; below 1 the latents are still noisy
    guided_share: float = 1.0  # of the steps; those after it are drawn without the negative prompt
    #: Of bases that can (``Abilities.reuses_blocks``): where the first block's change differs by less than this share
    #: from what it was, the other blocks are not computed. 0.0: always computed.
    reuse_below: float = 0.0
    #: Likewise: large layers may multiply in 8 bit where the device does that faster and there is room for it.
    products_in_8_bit: bool = False
    recorder: Recorder | None = None  # None: each step is carried out by itself


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
    guided_share: float = 1.0  # as in the base's request, of the steps of the whole schedule
    recorder: Recorder | None = None


@dataclass(frozen=True)
class DenoiseStep:
    """What a denoising generator yields after each step."""

    step: int  # 1-based
    total: int  # steps of this stretch
    latents: torch.Tensor  # (B, C, H, W)
    clean: torch.Tensor | None = None  # with the last step before a ``stop_at``: what is expected behind the noise
