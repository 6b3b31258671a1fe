"""LoRA on FLUX.1: trained, saved, put on by this program and by diffusers with the same effect, and off again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from tests.families.flux.conftest import pipeline_of

PROMPT = "portrait of tok person"


def transformer_of(loaded: LoadedBase) -> torch.nn.Module:
    module: torch.nn.Module = loaded._shelf.modules("denoiser")[0]  # type: ignore[attr-defined]
    return module


def draw(loaded: LoadedBase) -> torch.Tensor:
    embeds = loaded.encode_prompts([PROMPT])
    return list(loaded.denoise(DenoiseRequest(embeds, embeds, (3,), 2, 3.5, 64, 64)))[-1].latents


def learned(loaded: LoadedBase) -> dict[str, torch.Tensor]:
    """The state of a LoRA that does something."""
    generator = torch.Generator().manual_seed(3)
    loaded.add_trainable_lora(rank=2, alpha=4.0, seed=0)
    state = loaded.trainable_lora_state()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in state.items()}


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_fresh_lora_is_of_its_seed_alone_and_without_effect(tiny: LoadedBase) -> None:
    bare = draw(tiny)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 50)
        parameters = tiny.add_trainable_lora(2, 2.0, seed)
        assert all(parameter.dtype == torch.float32 for parameter in parameters)
        states.append(tiny.trainable_lora_state())
    assert torch.equal(draw(tiny), bare)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())
    assert "transformer.single_transformer_blocks.1.proj_out.lora_A.weight" in states[0]
    assert len(states[0]) == 2 * (12 + 2 * 5) and all(name.startswith("transformer.") for name in states[0])


def test_a_state_goes_back_exactly(tiny: LoadedBase) -> None:
    state = learned(tiny)
    tiny.set_trainable_lora_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny.trainable_lora_state().items())
    with pytest.raises(ModelError, match="start a new training run"):
        tiny.set_trainable_lora_state({name: tensor[:1] for name, tensor in state.items()})


def test_a_saved_lora_draws_what_was_trained_here_and_in_diffusers(
    tiny: LoadedBase, models_dir: Path, tmp_path: Path
) -> None:
    bare, before = draw(tiny), bits(transformer_of(tiny))
    tiny.set_trainable_lora_state(state := learned(tiny))
    trained = draw(tiny)
    path = tmp_path / "lora.safetensors"
    tiny.save_lora(path, state, {"alpha": "4.0", "rank": "2"})
    tiny.use_loras([(path, 1.0)])
    again = draw(tiny)
    assert (trained - bare).abs().max() > 1e-3 and (again - trained).abs().max() < 1e-5
    tiny.use_loras([(path, 0.5)])
    assert (draw(tiny) - again).abs().max() > 1e-4
    tiny.use_loras(())
    after = bits(transformer_of(tiny))
    assert after.keys() == before.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(draw(tiny), bare)

    pipeline = pipeline_of(models_dir / "dev")
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    packed = pipeline(
        prompt=PROMPT, height=64, width=64, num_inference_steps=2, guidance_scale=3.5,
        generator=torch.Generator().manual_seed(3), max_sequence_length=48, output_type="latent",
    ).images  # fmt: skip
    assert (pipeline._unpack_latents(packed, 64, 64, 8) - again).abs().max() < 1e-5


def test_trained_layers_compute_as_peft_does(tiny: LoadedBase) -> None:
    """Where something is learned (gradients) and where not (samples) the numbers are the same but for rounding."""
    tiny.set_trainable_lora_state(learned(tiny))
    transformer = transformer_of(tiny)
    generator = torch.Generator().manual_seed(1)
    layer = transformer.get_submodule("single_transformer_blocks.0.proj_out")
    x = torch.randn(1, 5, layer.get_base_layer().in_features, generator=generator)
    with torch.no_grad():
        plain = layer(x)
    assert (layer(x) - plain).abs().max() < 1e-5 and (plain - layer.get_base_layer()(x)).abs().max() > 1e-2
    outer = transformer.get_submodule("proj_out")
    assert not hasattr(outer, "lora_A") and not hasattr(transformer.get_submodule("norm_out.linear"), "lora_A")


def test_a_lora_for_another_size_or_layer_is_refused_whole(tiny: LoadedBase, tmp_path: Path) -> None:
    before, state = bits(transformer_of(tiny)), learned(tiny)
    tiny.use_loras(())
    name = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"
    wider = {name.format("A"): torch.ones(2, 48), name.format("B"): torch.ones(48, 2)}
    strange = {key.replace("blocks.0", "blocks.7"): tensor for key, tensor in wider.items()}
    for wrong in (state | wider, state | strange):
        path = tmp_path / "lora.safetensors"
        tiny.save_lora(path, wrong, {})
        with pytest.raises(ModelError, match=str(path)) as told:
            tiny.use_loras([(path, 1.0)])
        assert "choose another LoRA" in str(told.value)
        with pytest.raises(ModelError, match=str(path)):
            families.check_lora(path, tiny.info)
    assert bits(transformer_of(tiny)).keys() == before.keys()
