"""Does a LoRA file fit a base, as far as its header tells? No weight is read and no torch is loaded."""

from __future__ import annotations

import re
from pathlib import Path

from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.files import read_json_file

#: How trainers name what a LoRA adds: plain ones, and the Hadamard and Kronecker products of LyCORIS.
_ADDED = re.compile(r"lora|hada_|lokr_|\.diff$", re.IGNORECASE)
#: Parts of SDXL in diffusers' names, in the original ones, and its text encoders.
_OURS = re.compile(r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|text_encoder|lora_te")
#: What reads the words: its input is as wide as the text encoders' output, which differs from base to base.
_READS_WORDS = re.compile(r"attn2[._](?:processor[._])?to_[kv].*(?:lora_A|lora_down|lora\.down)\b.*weight$")


def check_header(path: Path, info: BaseInfo) -> None:
    """Raise ModelError when the file is damaged, no LoRA, or made for another family or size of base model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())  # noqa: SIM118
            family = (file.metadata() or {}).get("family", info.family)
            reading = next((name for name in names if _READS_WORDS.search(name)), None)
            width = file.get_slice(reading).get_shape()[1] if reading else None
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise ModelError(f"“{path.name}” is damaged or no LoRA file: choose another file.") from error
    if not any(_ADDED.search(name) for name in names):
        raise ModelError(f"“{path.name}” holds no LoRA: choose the file of a LoRA, not that of a whole model.")
    if family != info.family or not any(_OURS.search(name) for name in names):
        raise ModelError(f"“{path.name}” was made for another kind of base model: choose a LoRA for “{info.family}”.")
    wanted = read_json_file(info.folder / "unet" / "config.json").get("cross_attention_dim")
    if width is not None and isinstance(wanted, int) and width != wanted:
        raise ModelError(
            f"“{path.name}” was made for a base model of another size than “{info.title}”: choose that base model, or "
            "another LoRA."
        )
