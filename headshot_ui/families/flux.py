"""FLUX.1-dev and FLUX.1-schnell, and what was made of them: one transformer, CLIP and T5 for texts, one VAE.

The work is in ``flux_parts``; this file is what discovery finds, and loads no torch by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import find_bases
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
    "ComfyUI, Forge",
    (
        "ComfyUI: into the folder ComfyUI/models/loras; load it with the node “Load LoRA”.",
        "Forge: into the folder models/Lora; choose it on the tab “Lora”.",
    ),
)
_DIFFUSERS = LoraLayout(
    "diffusers",
    "diffusers, ai-toolkit",
    ("In Python: anywhere; pipeline.load_lora_weights takes the path of the file.",),
)
#: The published width, which diffusers' ``_convert_sd_scripts_to_ai_toolkit`` takes for granted.
_WIDTH = 3072
_FEW_STEPS = 8  # a base that is drawn with in more was not made for few, whatever its configs look like
#: Weights of attention and feed-forward layers in diffusers' layout; see ``flux_parts.lora.TARGETS``.
_TRAINED = re.compile(
    r"transformer_blocks\.\d+\.(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)|ff(_context)?\.net\.(0\.proj|2))\.weight"
    r"|single_transformer_blocks\.\d+\.(attn\.to_(q|k|v)|proj_mlp|proj_out)\.weight"
)


class FluxFamily:
    """See ``protocol.Family``."""

    id = "flux"
    lora_layouts = (_KOHYA, _DIFFUSERS)

    def bases(self, settings: Settings) -> tuple[BaseInfo, ...]:
        """Base models of this family under ``settings.models_dir``, described by a ``base.json`` or not."""
        from headshot_ui.families.flux_parts.found import found_bases

        described = find_bases(self.id, settings)
        return described + found_bases(self.id, described, settings)

    def misfits(self, settings: Settings) -> tuple[Misfit, ...]:
        """What was dropped there and is another FLUX, or a damaged one."""
        from headshot_ui.families.flux_parts.found import misfits

        return misfits(self.id, settings)

    def abilities(self, info: BaseInfo) -> Abilities:
        """FLUX.1 knows no negative prompt; schnell cannot be trained on. Raises ModelError for a missing config."""
        from headshot_ui.families.flux_parts.configs import read_facts, transformer_config
        from headshot_ui.families.flux_parts.sizes import shape_of

        untrainable = ""
        if info.defaults.sampling_steps <= _FEW_STEPS and read_facts(info).few_steps:
            untrainable = (
                f"“{info.title}” draws in a few steps, and would lose that by training: train on FLUX.1-dev, and draw "
                "with that."
            )
        width = shape_of(transformer_config(info)).width
        why = f"it knows this layout at a width of {_WIDTH} only, not {width}"
        unread = {} if width == _WIDTH else {_KOHYA.id: why}
        return Abilities(
            reads_negative_prompt=False, weighs_by_snr=False, untrainable=untrainable, takes_refiner=False,
            reuses_blocks=True, unread_by_diffusers=unread,
        )  # fmt: skip

    def is_trained(self, tensor: str) -> bool:
        """Whether training puts a LoRA on the layer with this weight, as weight files call it."""
        return _TRAINED.fullmatch(tensor) is not None

    def layer_shapes(self, info: BaseInfo) -> Mapping[str, tuple[int, ...]] | None:
        """Single files hold query, key and value as one. Raises ModelError."""
        from headshot_ui.families.flux_parts.single_file import layer_shapes

        return None if info.checkpoint is None else layer_shapes(info.checkpoint)

    def working_bytes(
        self, info: BaseInfo, pixels: int, batch: int, learning: str | None, item_bytes: int
    ) -> int | None:
        """See ``flux_parts.fitting``. Raises ModelError for a missing config."""
        from headshot_ui.families.flux_parts.configs import read_facts, transformer_config
        from headshot_ui.families.flux_parts.files import VAE, cell_px
        from headshot_ui.families.flux_parts.fitting import RECOMPUTED, activation_bytes, tokens_of
        from headshot_ui.families.flux_parts.sizes import shape_of
        from headshot_ui.families.shared_parts.files import read_json_file

        cell = cell_px(read_json_file(info.folder / VAE / "config.json"))
        tokens = tokens_of(pixels, batch, cell, read_facts(info).text_tokens)
        recomputed = None if learning is None else RECOMPUTED[learning]
        return activation_bytes(shape_of(transformer_config(info)), tokens, recomputed, item_bytes)

    def fitting(
        self,
        info: BaseInfo,
        work: DenoiserWork,
        settings: Settings,
        precision: str | None = None,
        under: int | None = None,
    ) -> Fitting | None:
        """See ``flux_parts.choosing``. Raises MemoryBudgetError, ModelError and DeviceError."""
        from headshot_ui.families.flux_parts.choosing import choose

        chosen = choose(info, work, settings, precision, under=under)
        return None if chosen is None else chosen.fitting

    def least_bytes(self, info: BaseInfo) -> Mapping[str, LeastBytes]:
        """See ``flux_parts.choosing``. Raises ModelError."""
        from headshot_ui.families.flux_parts.choosing import least_bytes

        return least_bytes(info)

    def check(self, info: BaseInfo) -> None:
        """Look at configs, tokenizers and headers. Raises ModelError for the first file that is not as it must be."""
        from headshot_ui.families.flux_parts.preflight import check_base

        check_base(info)

    def load(self, info: BaseInfo, settings: Settings) -> LoadedBase:
        """Read the model. Raises ModelError naming the file that is missing or damaged."""
        from headshot_ui.families.flux_parts.loaded import LoadedFlux

        return LoadedFlux.read(info, settings)

    def vocabulary(self, info: BaseInfo) -> Vocabulary:
        """What this base can read, from its tokenizers alone. Raises ModelError."""
        from headshot_ui.families.flux_parts.text import FluxVocabulary

        return FluxVocabulary(info)

    def lora_facts(self, path: Path) -> LoraFacts:
        """Look into a LoRA file. Raises ModelError unless it is one of this family."""
        from headshot_ui.families.flux_parts.lora_facts import lora_facts

        return lora_facts(path, self.id)

    def check_lora(self, path: Path, info: BaseInfo) -> None:
        """Raise ModelError unless every layer of the LoRA fits this base, of which only configs are read."""
        from headshot_ui.families.flux_parts.lora_facts import check_lora

        check_lora(path, info)

    def lora_in_layout(
        self, layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None = None
    ) -> bytes:
        """See ``protocol.Family.lora_in_layout``."""
        from headshot_ui.families.flux_parts.lora_facts import lora_in_layout

        return lora_in_layout(layout, source, info, facts, title, dtype)

    def refiners(self, settings: Settings) -> tuple[RefinerInfo, ...]:
        """There are none for FLUX.1."""
        return ()

    def load_refiner(self, info: RefinerInfo, settings: Settings) -> LoadedRefiner:
        """Raises ModelError: there are none."""
        raise _no_refiner(info)

    def refiner_facts(self, info: RefinerInfo, base: BaseInfo) -> RefinerFacts:
        """Raises ModelError: there are none."""
        raise _no_refiner(info)

    def other_vae(self, info: BaseInfo, settings: Settings) -> OtherVae | None:
        """FLUX.1 decodes with its own VAE."""
        return None

    def split_steps(self, base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
        """Of ``steps``, those before and after the share ``switch`` of the noise schedule of a square picture."""
        from headshot_ui.families.flux_parts.configs import schedule_config
        from headshot_ui.families.flux_parts.denoise import split_steps
        from headshot_ui.families.flux_parts.files import VAE, cell_px
        from headshot_ui.families.shared_parts.files import read_json_file

        cell = cell_px(read_json_file(base.folder / VAE / "config.json"))
        return split_steps(schedule_config(base), steps, switch, base.size_px, cell)


def _no_refiner(info: RefinerInfo) -> ModelError:
    return ModelError(f"“{info.title}” is said to be a refiner for FLUX.1, which has none: remove its folder.")


FAMILY = FluxFamily()
