"""Stable Diffusion XL and whatever has its layout: one UNet, two CLIP text encoders, one VAE; and its refiner.

The work is in ``sdxl_parts``; this file is what discovery finds, and loads no torch by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headshot_ui.families.bases import find_bases, find_refiners
from headshot_ui.families.protocol import Abilities, LoraLayout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headshot_ui.families.fits import DenoiserWork, Fitting, LeastBytes
    from headshot_ui.families.protocol import (
        BaseInfo,
        LoadedBase,
        LoadedRefiner,
        LoraFacts,
        Misfit,
        OtherVae,
        RefinerFacts,
        RefinerInfo,
        Vocabulary,
    )
    from headshot_ui.settings import Settings


_KOHYA = LoraLayout(
    "kohya",
    "ComfyUI, A1111, Forge",
    (
        "ComfyUI: into the folder ComfyUI/models/loras; load it with the node “Load LoRA”.",
        "A1111 and Forge: into the folder models/Lora; choose it on the tab “Lora”.",
    ),
)
_DIFFUSERS = LoraLayout(
    "diffusers", "diffusers", ("In Python: anywhere; pipeline.load_lora_weights takes the path of the file.",)
)


class SdxlFamily:
    """See ``protocol.Family``."""

    id = "sdxl"
    lora_layouts = (_KOHYA, _DIFFUSERS)

    def bases(self, settings: Settings) -> tuple[BaseInfo, ...]:
        """Base models of this family under ``settings.models_dir``, described by a ``base.json`` or not."""
        from headshot_ui.families.sdxl_parts.found import found_bases

        described = find_bases(self.id, settings)
        return described + found_bases(self.id, [info.id for info in described], settings)

    def misfits(self, settings: Settings) -> tuple[Misfit, ...]:
        """What was dropped there and is neither a base model nor a refiner of SDXL."""
        from headshot_ui.families.sdxl_parts.found import misfits

        return misfits(settings)

    def abilities(self, info: BaseInfo) -> Abilities:
        """All of them."""
        return Abilities()

    def is_trained(self, tensor: str) -> bool:
        """Whether training puts a LoRA on the layer with this weight; both layouts call them alike."""
        return tensor.endswith(".weight") and (".attn" in tensor and ".to_" in tensor or ".ff.net." in tensor)

    def layer_shapes(self, info: BaseInfo) -> Mapping[str, tuple[int, ...]] | None:
        """Files hold each by itself."""
        return None

    def working_bytes(
        self, info: BaseInfo, pixels: int, batch: int, learning: str | None, item_bytes: int
    ) -> int | None:
        """As measured, in proportion."""
        return None

    def fitting(
        self,
        info: BaseInfo,
        work: DenoiserWork,
        settings: Settings,
        precision: str | None = None,
        under: int | None = None,
    ) -> Fitting | None:
        """There is only one way."""
        return None

    def least_bytes(self, info: BaseInfo) -> Mapping[str, LeastBytes]:
        """As its files say."""
        return {}

    def check(self, info: BaseInfo) -> None:
        """Look at configs, tokenizers and headers. Raises ModelError for the first file that is not as it must be."""
        from headshot_ui.families.sdxl_parts.preflight import check_base

        check_base(info)

    def load(self, info: BaseInfo, settings: Settings) -> LoadedBase:
        """Read the model. Raises ModelError naming the file that is missing or damaged."""
        from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl

        return LoadedSdxl.read(info, settings)

    def vocabulary(self, info: BaseInfo) -> Vocabulary:
        """What this base can read, from its tokenizers alone. Raises ModelError."""
        from headshot_ui.families.sdxl_parts.text import SdxlVocabulary

        return SdxlVocabulary(info)

    def lora_facts(self, path: Path) -> LoraFacts:
        """Look into a LoRA file. Raises ModelError unless it is one of this family."""
        from headshot_ui.families.sdxl_parts.lora_facts import lora_facts

        return lora_facts(path, self.id)

    def check_lora(self, path: Path, info: BaseInfo) -> None:
        """Raise ModelError unless every layer of the LoRA fits this base, of which only configs are read."""
        from headshot_ui.families.sdxl_parts.lora_facts import check_lora

        check_lora(path, info)

    def lora_in_layout(
        self, layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None = None
    ) -> bytes:
        """See ``protocol.Family.lora_in_layout``."""
        from headshot_ui.families.sdxl_parts.lora_facts import lora_in_layout

        return lora_in_layout(layout, source, info, facts, title, dtype)

    def refiners(self, settings: Settings) -> tuple[RefinerInfo, ...]:
        """Refiners of this family under ``settings.models_dir``, described by a ``refiner.json`` or not."""
        from headshot_ui.families.sdxl_parts.found import found_refiners

        described = find_refiners(self.id, settings)
        return described + found_refiners(self.id, [info.id for info in described], settings)

    def load_refiner(self, info: RefinerInfo, settings: Settings) -> LoadedRefiner:
        """Read the refiner. Raises ModelError naming the file that is missing or damaged."""
        from headshot_ui.families.sdxl_parts.refiner import LoadedSdxlRefiner

        return LoadedSdxlRefiner.read(info, settings)

    def refiner_facts(self, info: RefinerInfo, base: BaseInfo) -> RefinerFacts:
        """Look at configs and headers only. Raises ModelError when the refiner is damaged or not for this base."""
        from headshot_ui.families.sdxl_parts.refiner_files import refiner_facts

        return refiner_facts(info, base)

    def other_vae(self, info: BaseInfo, settings: Settings) -> OtherVae | None:
        """The float16-safe VAE where it would decode for this base. Raises ModelError for a damaged one."""
        from headshot_ui.families.sdxl_parts.source import Source

        return Source.find(info, settings).other_vae

    def split_steps(self, base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
        """Of ``steps``, those before and after the share ``switch`` of the noise schedule."""
        from headshot_ui.families.sdxl_parts.denoise import split_steps
        from headshot_ui.families.sdxl_parts.kinds import read_schedule

        return split_steps(read_schedule(base), steps, switch)


FAMILY = SdxlFamily()
