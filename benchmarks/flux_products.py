"""Whether products in 8 bit pay in FLUX.1: one double and one single block of a picture, in 16 bit and in both kinds.

    python benchmarks/flux_products.py                                  # one card, published width, 1024 px
    python benchmarks/flux_products.py --size tiny --device cpu --side 128

Blocks of the published width with random weights in bfloat16, as the program computes them, recorded on a card as it
records them. Each way takes its turn in both orders. Prints one JSON object: milliseconds of a block, what 19 double
and 38 single ones come to for a step, and how far the outputs are from those in 16 bit. ``pays`` is true where the
quickest kind saves more than a twentieth of that step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from headshot_ui.bench.timing import measure, peak_of, together
from headshot_ui.capture import Captured
from headshot_ui.families.flux_parts import blocks, denoise, eight_bit, fast_products
from headshot_ui.families.shared_parts.load import quiet

EXACT, EIGHT_BIT = "16 bit", "weights in 8 bit"  # the second as small cards have them: int8 only when multiplied
WORDS, COUNT = 512, {"double": 19, "single": 38}
SIZES: dict[str, dict[str, Any]] = {
    "full": {"guidance_embeds": True},
    "tiny": {"guidance_embeds": True, "attention_head_dim": 16, "num_attention_heads": 4, "axes_dims_rope": (4, 6, 6)},
}
WORTH = 0.05


def one_of_each(size: str, device: str) -> Any:
    """A transformer with a double and a single block and no more than these need."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with quiet(), torch.device(device):
        model = FluxTransformer2DModel(**{**SIZES[size], "num_layers": 1, "num_single_layers": 1})
        model = model.to(torch.bfloat16).eval().requires_grad_(False)
    blocks.put_in(model)
    return model


def passes_of(model: Any, side: int, device: str) -> dict[str, Callable[[], tuple[torch.Tensor, ...]]]:
    """A pass through each block, without arguments."""
    width, cells = model.inner_dim, side // 16
    draw = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(device, torch.bfloat16)

    ids = torch.cat((denoise.text_ids(WORDS), denoise.image_ids(2 * cells, 2 * cells)), dim=0).to(device)
    given = {
        "hidden_states": numbers(1, cells * cells, width),
        "encoder_hidden_states": numbers(1, WORDS, width),
        "temb": numbers(1, width),
        "image_rotary_emb": model.pos_embed(ids),
    }
    chosen = {"double": model.transformer_blocks[0], "single": model.single_transformer_blocks[0]}
    return {name: lambda block=block: tuple(block(**given)) for name, block in chosen.items()}  # type: ignore[misc]


def recorded(one_pass: Callable[[], tuple[torch.Tensor, ...]], device: str) -> Callable[[], tuple[torch.Tensor, ...]]:
    """As the program carries it out: on a card a graph."""
    return Captured(one_pass, ()).replay if device == "cuda" else one_pass


def main(words: Sequence[str] | None = None) -> int:
    """Measure every way that this device can; 0 when numbers came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="of the square picture in pixels")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(words)
    device = options.device
    report: dict[str, Any] = {"size": options.size, "side": options.side, "device": device, "torch": torch.__version__}
    if device == "cuda":
        report["card"] = torch.cuda.get_device_name()
    kinds = fast_products.kinds_on(device) if device == "cuda" else fast_products.KINDS  # imitated on the CPU
    ways = [EXACT, *kinds, EIGHT_BIT, *(f"{EIGHT_BIT}, {kind}" for kind in kinds)]
    taken: dict[str, dict[str, list[Any]]] = {way: {name: [] for name in COUNT} for way in ways}
    outputs: dict[str, dict[str, torch.Tensor]] = {}
    with torch.no_grad():
        for way in (*ways, *reversed(ways)):
            model = one_of_each(options.size, device)
            if way.startswith(EIGHT_BIT):
                eight_bit.shrink(model, torch.bfloat16, work_on=device, stay_on=device)
            kind = way.rpartition(", ")[2]
            if kind in kinds:
                fast_products.switch_on(model, kind)
            for name, one_pass in passes_of(model, options.side, device).items():
                outputs.setdefault(way, {})[name] = torch.cat([one.float() for one in one_pass()], dim=1).cpu()
                run = recorded(one_pass, device)
                taken[way][name].append(measure(run, device, options.repeats, warmups=3))
            del model
    report["ways"] = {way: figures(taken[way], outputs[way], outputs[EXACT]) for way in ways}
    step = {way: found["step_ms"] for way, found in report["ways"].items()}
    report["pays"] = min((step[kind] for kind in kinds), default=step[EXACT]) < (1 - WORTH) * step[EXACT]
    report["peak_bytes"] = peak_of(device)
    print(json.dumps(report, indent=2))
    return 0 if all(found["off_by"] < 0.1 for found in report["ways"].values()) else 1


def figures(
    taken: dict[str, list[Any]], found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Of one way: milliseconds of each block and of all of them, and the largest relative error of their outputs."""
    told = {f"{name}_ms": 1000 * together(times).seconds for name, times in taken.items()}
    told["step_ms"] = sum(COUNT[name] * told[f"{name}_ms"] for name in COUNT)
    told["off_by"] = max(float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    return told


if __name__ == "__main__":
    sys.exit(main())
