"""What the configs of a FLUX.1 base say, which of one in a single file stand elsewhere.

A single file says its own shape; what it is to be computed with (texts, VAE, tokenizers) is that of a whole folder
beside it, ``BaseInfo.folder``. dev and schnell have the same there, and differ in the schedule by two entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headshot_ui.families.flux_parts.files import T5_TOKENS, T5_TOKENS_FEW_STEPS, T5_WORDS, TRANSFORMER
from headshot_ui.families.flux_parts.single_file import usable
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.shared_parts.files import read_json_file

#: As in the published ``scheduler_config.json`` of dev and of schnell.
_SCHEDULES = {True: {"shift": 3.0, "use_dynamic_shifting": True}, False: {"shift": 1.0, "use_dynamic_shifting": False}}


@dataclass(frozen=True)
class FluxFacts:
    """What the configs say of a base."""

    guided: bool  # it was taught what a guidance scale is, as dev was; schnell takes none
    few_steps: bool  # made to draw in a few steps (schnell): what is learned from it is lost when it draws
    text_tokens: int  # that T5 reads


def transformer_config(info: BaseInfo) -> dict[str, Any]:
    """For ``FluxTransformer2DModel.from_config``. Raises ModelError for a missing or damaged file."""
    config = read_json_file(info.folder / TRANSFORMER / "config.json")
    if info.checkpoint is None:
        return config
    shape = usable(info.checkpoint).shape
    return config | {
        "attention_head_dim": shape.head,
        "num_attention_heads": shape.width // shape.head,
        "num_layers": shape.double,
        "num_single_layers": shape.single,
        "joint_attention_dim": shape.joint,
        "pooled_projection_dim": shape.pooled,
        "in_channels": shape.channels,
        "out_channels": None,
        "guidance_embeds": shape.guidance,
    }


def schedule_config(info: BaseInfo) -> dict[str, Any]:
    """Of the scheduler. Raises ModelError for a missing or damaged file."""
    config = read_json_file(info.folder / "scheduler" / "scheduler_config.json")
    if info.checkpoint is None:
        return config
    lender = bool(read_json_file(info.folder / TRANSFORMER / "config.json").get("guidance_embeds", False))
    guided = bool(transformer_config(info)["guidance_embeds"])
    return config if lender == guided else config | _SCHEDULES[guided]


def read_facts(info: BaseInfo) -> FluxFacts:
    """From ``transformer``, ``scheduler`` and ``tokenizer_2``. Raises ModelError for a missing or damaged file.

    schnell is the one without guidance that draws any size with the same noise levels.
    """
    guided = bool(transformer_config(info).get("guidance_embeds", False))
    few_steps = not guided and not schedule_config(info).get("use_dynamic_shifting", False)
    longest = read_json_file(info.folder / T5_WORDS / "tokenizer_config.json").get("model_max_length")
    most = T5_TOKENS_FEW_STEPS if few_steps else T5_TOKENS
    return FluxFacts(guided, few_steps, min(most, longest) if isinstance(longest, int) else most)
