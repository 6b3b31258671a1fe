"""Model folders of the published shapes with random weights: for trying memory, speed and files without a download.

    python -m headshot_ui.prove.random_models --models FOLDER --size full      # 12 GB: base, refiner, CodeFormer
    python -m headshot_ui.prove.random_models --models FOLDER --size tiny      # the same topology, a few MB

Every module begins as torch and its own class begin it, so that numbers keep a sane size on their way through, in
float16 too. They draw noise, and say so in title and note. One module is in memory at a time. On a GPU a full set
takes as long as its disk takes to write it; a CPU needs minutes for billions of random numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.families.bases import BASE_FILE, REFINER_FILE
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.memory import give_back
from headshot_ui.prove.random_parts import OUTLINE, building, write_outline
from headshot_ui.prove.random_sets import RandomSet
from headshot_ui.settings import pick_device
from headshot_ui.store import write_json_atomic

if TYPE_CHECKING:
    import torch

BASE_ID, REFINER_ID = "random-sdxl", "random-sdxl-refiner"
BASE_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
RANDOM_IDS = frozenset({BASE_ID, REFINER_ID})
CODEFORMER = Path("codeformer", "codeformer.safetensors")
#: Disk space of a full set: 6.9 GB of base, 4.5 GB of refiner and 0.4 GB of CodeFormer.
FULL_BYTES = 12 * 10**9
NOTE = "Random weights of the full shape: it draws noise, and shows what memory and time the real model takes."


@dataclass(frozen=True)
class Size:
    """What differs from the published configs, part by part; nothing for the full size."""

    size_px: int
    learning_rate: float  # at which a few dozen steps can be seen in the loss; wide layers need less
    base: dict[str, dict[str, Any]]
    refiner: dict[str, dict[str, Any]]


_TINY_TEXT = {"num_attention_heads": 2, "projection_dim": 64}
SIZES = {
    "full": Size(1024, 1e-3, {}, {}),
    "tiny": Size(
        128,
        5e-3,
        {
            "unet": {
                "sample_size": 16, "block_out_channels": [32, 64, 64], "attention_head_dim": [1, 2, 2],
                "cross_attention_dim": 96, "addition_time_embed_dim": 32,
                "projection_class_embeddings_input_dim": 256,
            },
            "vae": {"sample_size": 128, "block_out_channels": [32, 32, 32, 32]},
            "text_encoder": {**_TINY_TEXT, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
            "text_encoder_2": {**_TINY_TEXT, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        },
        {
            "unet": {
                "sample_size": 16, "block_out_channels": [32, 64, 64, 64], "attention_head_dim": [1, 2, 2, 2],
                "cross_attention_dim": 64, "addition_time_embed_dim": 32,
                "projection_class_embeddings_input_dim": 224,
            },
        },
    ),
}  # fmt: skip


def make_random_models(
    models_dir: Path,
    size: str = "full",
    *,
    device: str | None = None,
    seed: int = 0,
    codeformer: bool | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> tuple[Path, ...]:
    """Write base, refiner and (by default only at full size: it has no other) CodeFormer; the folders made.

    ``device`` is where the random numbers are drawn (None: the best there is; ``OUTLINE``: nowhere); ``told`` hears
    what is made next. The same arguments and device give the same files. Raises what writing raises; a folder that is
    there is replaced.
    """
    device = device or pick_device()
    made = [
        make_base(models_dir / BASE_ID, size, device, seed, told),
        make_refiner(models_dir / REFINER_ID, size, device, seed + 10, told),
    ]
    if codeformer is None:  # without its package the program could not use it either
        codeformer = size == "full" and importlib.util.find_spec("spandrel_extra_arches") is not None
    if codeformer:
        made.append(make_codeformer(models_dir / CODEFORMER, device, seed + 20, told).parent)
    return tuple(made)


def make_base(folder: Path, size: str, device: str, seed: int, told: Callable[[str], None]) -> Path:
    """A base in diffusers layout with its ``base.json``, weights float16."""
    _begin(folder, published("base"), ("scheduler", "tokenizer", "tokenizer_2"))
    for number, part in enumerate(BASE_PARTS):
        told(f"{BASE_ID}: {part}")
        _write(folder, "base", part, size, device, seed + number)
    defaults = {"train_steps": 1000, "rank": 32, "learning_rate": SIZES[size].learning_rate}
    facts = {"size_px": SIZES[size].size_px, "defaults": defaults}
    write_json_atomic(folder / BASE_FILE, {**_facts(BASE_ID, "Random weights (draws noise)"), **facts})
    return folder


def make_refiner(folder: Path, size: str, device: str, seed: int, told: Callable[[str], None]) -> Path:
    """A refiner of that base with its ``refiner.json``, weights float16."""
    _begin(folder, published("refiner"), ("scheduler",))
    told(f"{REFINER_ID}: unet")
    _write(folder, "refiner", "unet", size, device, seed)
    facts = {"bases": [BASE_ID]}
    write_json_atomic(folder / REFINER_FILE, {**_facts(REFINER_ID, "Random refiner (draws noise)"), **facts})
    return folder


def make_codeformer(path: Path, device: str, seed: int, told: Callable[[str], None]) -> Path:
    """CodeFormer's network with random weights where the program looks for it, float32 as the published file."""
    from safetensors.torch import save_file
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    told("codeformer")
    path.parent.mkdir(parents=True, exist_ok=True)
    with building(device, seed, "float32"):
        net: torch.nn.Module = CodeFormer()
        net.position_emb.data.normal_(0, 0.02)  # type: ignore[operator]  # zeros at first, as in no trained file
    if device == OUTLINE:
        write_outline(path, net)
    else:
        save_file({name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}, path)
    return path


# --- parts --------------------------------------------------------------------------------------------
def _begin(folder: Path, configs: Path, copied: Sequence[str]) -> None:
    """An empty folder with what the weights do not change."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(configs / "model_index.json", folder)
    for name in copied:
        shutil.copytree(configs / name, folder / name)


def config_of(model: str, part: str, size: str) -> dict[str, Any]:
    """The config of a part of "base" or "refiner": as published, with what differs at this size."""
    differences: dict[str, dict[str, Any]] = getattr(SIZES[size], model)
    return {**read_json_file(published(model) / part / "config.json"), **differences.get(part, {})}


def build_part(model: str, part: str, size: str) -> Any:
    """A module of that shape, with the weights its own class begins with, on torch's default device."""
    makers = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder, "text_encoder_2": _text_encoder_2}
    return makers[part](config_of(model, part, size))


def random_part(model: str, part: str, size: str, device: str, seed: int) -> Any:
    """One part of a "base" or "refiner" in float16 on ``device``, as it is written by the functions above."""
    from headshot_ui.families.shared_parts.load import quiet

    with quiet():
        with building(device, seed, "float16"):
            module = build_part(model, part, size)
        return module.half()


def _write(folder: Path, model: str, part: str, size: str, device: str, seed: int) -> None:
    from headshot_ui.families.shared_parts.load import quiet

    module = random_part(model, part, size, device, seed)
    if device == OUTLINE:
        write_outline(folder / part / f"{part}.safetensors", module)
    else:
        with quiet():
            module.save_pretrained(folder / part)
    del module
    give_back()


def _unet(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def _vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config)


def _text_encoder(config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def _text_encoder_2(config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config))


def _facts(model_id: str, title: str) -> dict[str, Any]:
    return {"id": model_id, "family": "sdxl", "title": title, "licence": "none: no trained weights", "note": NOTE}


SET = RandomSet(
    BASE_ID,
    RANDOM_IDS,
    FULL_BYTES,
    6 * 10**9,
    lambda models_dir, size, device, told: make_random_models(models_dir, size, device=device, told=told),
    frozenset({CODEFORMER.parts[0]}),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codeformer", action=argparse.BooleanOptionalAction, help="default: at full size")
    args = parser.parse_args(argv)
    began = time.monotonic()
    made = make_random_models(
        args.models, args.size, device=args.device, seed=args.seed, codeformer=args.codeformer,
        told=lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True),
    )  # fmt: skip
    size = sum(file.stat().st_size for folder in made for file in folder.rglob("*") if file.is_file())
    print(json.dumps({"folders": [str(f) for f in made], "bytes": size, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
