"""On a card: weights in another number format than their files, from locked memory, with and without LoRAs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families, pinned
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl_parts.lora_write import lora_bytes
from headshot_ui.families.shared_parts.load import waiting_dtype
from headshot_ui.settings import Settings
from tests.families.lora_maker import PROMPT, drawn_from, place, random_layers, usual_layers

PARTS = frozenset({"text", "vae", "denoiser"})


@pytest.fixture
def on_card(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedBase]:
    """The tiny base in bfloat16 on a card, where everything may be locked."""
    monkeypatch.setattr(pinned, "LEAST_BYTES", 0)
    monkeypatch.setattr(pinned, "BLOCK_BYTES", 2**16)
    card = replace(settings, wanted_device="cuda", wanted_dtype="bfloat16")
    pinned.allow(card)
    yield families.load_base(families.find_base("tiny-sdxl", card), card)
    pinned.settle()
    gc.collect()


def draw(base: LoadedBase) -> torch.Tensor:
    """Latents, with every part moved on its own."""
    base.keep(frozenset({"text"}))
    embeds = base.encode_prompts([PROMPT]), base.encode_prompts([""])
    base.keep(frozenset({"denoiser"}))
    drawn = drawn_from(base, *embeds).cpu()
    base.keep(frozenset({"vae"}))
    base.decode_latents(drawn)
    base.keep(frozenset())
    return drawn


@pytest.mark.gpu
def test_a_base_is_the_same_before_it_is_locked_and_after(on_card: LoadedBase) -> None:
    files = {name: tensor.clone() for name, tensor in on_card.modules.unet.state_dict().items()}
    first = draw(on_card)
    pinned.settle()
    for _ in range(3):
        assert torch.equal(draw(on_card), first)
    assert all(pinned.place_of(weight) is not None for weight in on_card.modules.unet.parameters())
    assert all(torch.equal(tensor, files[name]) for name, tensor in on_card.modules.unet.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["", "unet", "text_encoder_2"])
def test_a_lora_is_the_same_put_on_there_or_before(part: str, on_card: LoadedBase, tmp_path: Path) -> None:
    where = place(on_card)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes("kohya", random_layers(where, usual_layers(where, part)), where.topology, {}, "x"))
    bare = draw(on_card)
    pinned.settle()
    on_card.use_loras([(path, 0.7)])
    before = draw(on_card)
    assert torch.equal(draw(on_card), before) and not torch.equal(before, bare)
    on_card.use_loras(())
    on_card.keep(PARTS)
    on_card.use_loras([(path, 0.7)])
    there = drawn_from(on_card, on_card.encode_prompts([PROMPT]), on_card.encode_prompts([""])).cpu()
    assert torch.equal(there, before)
    on_card.use_loras(())
    assert torch.equal(draw(on_card), bare)


@pytest.mark.parametrize(
    ("wanted", "in_turns", "waiting"),
    [
        (torch.bfloat16, False, torch.float16),  # as large: converted by the card
        (torch.float32, False, torch.float16),  # smaller: likewise, and less to carry
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.float16),
    ],
)
def test_weights_wait_as_they_are_stored(
    wanted: torch.dtype, in_turns: bool, waiting: torch.dtype, tiny: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headshot_ui.families.shared_parts.load.stored_dtype", lambda *_: torch.float16)
    assert waiting_dtype(tiny.info, "unet", wanted, in_turns) == waiting


def test_weights_stored_larger_than_they_compute_wait_small(tiny: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headshot_ui.families.shared_parts.load.stored_dtype", lambda *_: torch.float32)
    assert waiting_dtype(tiny.info, "unet", torch.bfloat16, in_turns=False) == torch.bfloat16
    assert waiting_dtype(tiny.info, "unet", torch.bfloat16, in_turns=True) == torch.float32, "nothing waits"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_mapped_parts_are_those_the_libraries_load(part: str, tiny: LoadedBase) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from headshot_ui.families.shared_parts.load import quiet
    from headshot_ui.families.shared_parts.mapped import read_mapped

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
             "text_encoder_2": CLIPTextModelWithProjection}  # fmt: skip
    folder = tiny.info.folder
    with quiet():
        usual = kinds[part].from_pretrained(folder / part, dtype=torch.float32, local_files_only=True)
        mapped = read_mapped(kinds[part], folder, part, torch.float32)
    assert mapped is not None and type(mapped) is type(usual)
    for wanted, found in ((usual.state_dict(), mapped.state_dict()), *_buffers(usual, mapped)):
        assert list(wanted) == list(found)
        assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
                   for name, tensor in wanted.items())  # fmt: skip
    attention = [getattr(model.config, "_attn_implementation", None) for model in (usual, mapped)]
    assert attention[0] == attention[1]


def test_building_a_model_without_weights_leaves_torch_as_it_was() -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from headshot_ui.families.shared_parts.mapped import empty_model

    before = {name: getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_")}
    model = empty_model(AutoencoderKL, {"block_out_channels": [32], "layers_per_block": 1})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {name: getattr(torch.nn.init, name) for name in before} == before
    assert torch.nn.Linear(2, 2).weight.abs().sum() > 0 and torch.empty(1).device.type == "cpu"

    class Counting(CLIPTextModel):  # a buffer whose values nobody here knows
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.register_buffer("counts", torch.ones(3))

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    with pytest.raises(ValueError, match="buffer counts"):
        empty_model(Counting, sizes)
    assert {name: getattr(torch.nn.init, name) for name in before} == before


def _buffers(usual: torch.nn.Module, mapped: torch.nn.Module) -> list[tuple[dict[str, torch.Tensor], ...]]:
    return [(dict(usual.named_buffers()), dict(mapped.named_buffers()))]
