"""A LoRA of every layer of a loaded FLUX.1, text encoders too: on, as its deltas say, and off without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.flux_parts.lora_facts import place_in_files
from headshot_ui.families.flux_parts.lora_write import lora_bytes
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from tests.families.flux.flux_loras import delta, random_layers

PROMPT = "portrait of tok person"


def drawn(loaded: LoadedBase) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    embeds = loaded.encode_prompts([PROMPT])
    latents = list(loaded.denoise(DenoiseRequest(embeds, embeds, (3,), 2, 3.5, 64, 64)))[-1].latents
    return dict(embeds), latents


def modules(loaded: LoadedBase) -> dict[str, torch.nn.Module]:
    return loaded._lora_parts()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_on_as_the_deltas_say_and_off_without_a_trace(layout: str, tiny: LoadedBase, tmp_path: Path) -> None:
    where = place_in_files(tiny.info)
    layers = random_layers(where, where.shapes, rank=3, alpha=1.0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes(layout, layers, where, {"family": "flux"}, "x"))
    facts = families.lora_facts(path)
    assert (facts.family, facts.layout) == ("flux", layout)
    families.check_lora(path, tiny.info)
    bare = drawn(tiny)
    before = {(part, n): t.clone() for part, one in modules(tiny).items() for n, t in one.state_dict().items()}
    tiny.use_loras([(path, 0.5)])
    with_lora = drawn(tiny)
    tiny.use_loras(())
    after = {(part, n): t for part, one in modules(tiny).items() for n, t in one.state_dict().items()}
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(drawn(tiny)[1], bare[1])
    for part, module in modules(tiny).items():
        for name, one in module.named_modules():
            layer = layers.get(f"{part}.{name}") or layers.get(f"{part}.text_model.{name}")
            if layer is not None:
                one.weight.data += (0.5 * delta(layer)).to(one.weight.dtype)
    try:
        embeds, latents = drawn(tiny)
    finally:
        for part, module in modules(tiny).items():
            module.load_state_dict({name: tensor for (of, name), tensor in before.items() if of == part})
    for name, tensor in embeds.items():
        assert torch.allclose(tensor, with_lora[0][name], atol=1e-4)
        assert not torch.allclose(tensor, bare[0][name], atol=1e-2)
    assert torch.allclose(latents, with_lora[1], atol=1e-3) and not torch.allclose(latents, bare[1], atol=1e-2)
