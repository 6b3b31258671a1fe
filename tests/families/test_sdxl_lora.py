"""LoRA goes on, off and to disk without residue, and says so when it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.settings import Settings

PROMPT = "portrait of tok person"


def draw(loaded: LoadedBase) -> torch.Tensor:
    wanted = DenoiseRequest(
        loaded.encode_prompts([PROMPT]), loaded.encode_prompts([""]), (1,), 2, guidance_scale=2.0, height=64, width=64
    )
    return list(loaded.denoise(wanted))[-1].latents


def make_lora(loaded: LoadedBase, path: Path, seed: int, rank: int = 2, alpha: float | None = None) -> torch.Tensor:
    """Save a LoRA with an effect; what the base draws with it while it is being trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in loaded.add_trainable_lora(rank, alpha or rank, seed):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    drawn = draw(loaded)
    metadata = {"rank": str(rank), "alpha": str(alpha or rank), "trigger": "tok"}
    loaded.save_lora(path, loaded.trainable_lora_state(), metadata)
    loaded.use_loras(())
    return drawn


def test_a_fresh_lora_is_float32_reproducible_and_without_effect(tiny: LoadedBase) -> None:
    before = draw(tiny)
    first = [parameter.clone() for parameter in tiny.add_trainable_lora(4, 4, seed=5)]
    assert {parameter.dtype for parameter in first} == {torch.float32}
    assert torch.equal(draw(tiny), before)
    again = tiny.add_trainable_lora(4, 4, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = tiny.add_trainable_lora(4, 4, seed=6)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_attention_and_feed_forward_are_trained(tiny: LoadedBase) -> None:
    tiny.add_trainable_lora(2, 2, seed=0)
    modules = {name.rpartition(".lora_")[0] for name in tiny.trainable_lora_state()}
    endings = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    assert all(module.startswith("unet.") and module.endswith(endings) for module in modules)
    assert len(modules) == 10 * tiny_transformer_layers(tiny)


def tiny_transformer_layers(loaded: LoadedBase) -> int:
    return sum(type(module).__name__ == "BasicTransformerBlock" for module in loaded.modules.unet.modules())


def test_seeding_a_lora_leaves_the_global_generator_alone(tiny: LoadedBase) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    tiny.add_trainable_lora(2, 2, seed=9)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_saved_state_goes_back_exactly(tiny: LoadedBase) -> None:
    for index, parameter in enumerate(tiny.add_trainable_lora(2, 2, seed=0)):
        parameter.data += index / 1000
    state = tiny.trainable_lora_state()
    tiny.add_trainable_lora(2, 2, seed=1)
    tiny.set_trainable_lora_state(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny.trainable_lora_state().items())
    tiny.add_trainable_lora(3, 3, seed=1)
    with pytest.raises(ModelError, match="rank"):
        tiny.set_trainable_lora_state(state)


@pytest.mark.parametrize(("rank", "alpha"), [(2, 2.0), (4, 8.0), (4, 1.0)])
def test_plain_diffusers_loads_it_with_the_identical_effect(
    rank: int, alpha: float, tiny: LoadedBase, models_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    trained = make_lora(tiny, path, seed=3, rank=rank, alpha=alpha)
    tiny.use_loras([(path, 1.0)])
    assert torch.equal(draw(tiny), trained)

    pipe = StableDiffusionXLPipeline.from_pretrained(models_dir / "tiny", dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64, "output_type": "latent"}
    bare = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **common).images
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    with_lora = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **common).images
    assert torch.equal(with_lora, trained)
    assert not torch.allclose(with_lora, bare, atol=1e-3)


def test_an_odd_alpha_keeps_its_effect(tiny: LoadedBase, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    trained = make_lora(tiny, path, seed=3, rank=4, alpha=3.0)
    tiny.use_loras([(path, 1.0)])
    assert torch.allclose(draw(tiny), trained, atol=1e-5)


def test_files_of_other_programs_have_their_own_effect(tiny: LoadedBase, tmp_path: Path) -> None:
    """diffusers' own (alpha in the header) and kohya's (alpha beside each layer, other names)."""
    generator = torch.Generator().manual_seed(3)
    for parameter in tiny.add_trainable_lora(rank=4, alpha=2.0, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    trained, state = draw(tiny), tiny.trainable_lora_state()
    config = tiny.modules.unet.peft_config["subject"].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers={name.removeprefix("unet."): tensor for name, tensor in state.items()},
        weight_name="theirs.safetensors",
        unet_lora_adapter_metadata=config,
    )
    kohya = {}
    for name, tensor in state.items():
        module, _, kind = name.removeprefix("unet.").partition(".lora_")
        stem = f"lora_unet_{module.replace('.', '_')}"
        kohya[f"{stem}.{'lora_down' if kind == 'A.weight' else 'lora_up'}.weight"] = tensor
        kohya[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    for name in ("theirs.safetensors", "kohya.safetensors"):
        tiny.use_loras([(tmp_path / name, 1.0)])
        assert torch.allclose(draw(tiny), trained, atol=1e-5), name


def test_the_header_tells_what_it_is(tiny: LoadedBase, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    make_lora(tiny, path, seed=3)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["family"] == "sdxl"
    assert header["base"] == "tiny-sdxl"
    assert (header["rank"], header["alpha"], header["trigger"]) == ("2", "2", "tok")


def test_loras_are_swapped_mixed_weighted_and_removed_without_residue(tiny: LoadedBase, tmp_path: Path) -> None:
    before = draw(tiny)
    keys = list(tiny.modules.unet.state_dict())
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    alone = [make_lora(tiny, path, seed=index, rank=2 + index) for index, path in enumerate(paths)]
    for path, expected in [*zip(paths, alone, strict=True), (paths[0], alone[0])]:
        tiny.use_loras([(path, 1.0)])
        assert torch.equal(draw(tiny), expected)
    tiny.use_loras([(paths[0], 0.0)])
    assert torch.allclose(draw(tiny), before, atol=1e-6)
    tiny.use_loras([(paths[0], 0.5), (paths[1], 0.5)])
    mixed = draw(tiny)
    assert not any(torch.allclose(mixed, one, atol=1e-3) for one in (before, *alone))
    tiny.use_loras(())
    assert torch.equal(draw(tiny), before)
    assert list(tiny.modules.unet.state_dict()) == keys  # not even a wrapper is left


def test_a_lora_that_does_not_fit_is_refused(tiny: LoadedBase, settings: Settings, tmp_path: Path) -> None:
    """Each file is refused with a sentence that names it, and the LoRA in use stays in use."""
    good = tmp_path / "good.safetensors"
    make_lora(tiny, good, seed=1)
    tensors = load_file(good)
    tiny.use_loras([(good, 1.0)])
    expected = draw(tiny)

    def refused(name: str, words: str) -> None:
        with pytest.raises(ModelError, match=words) as caught:
            tiny.use_loras([(tmp_path / name, 1.0)])
        assert str(tmp_path / name) in str(caught.value)
        assert torch.equal(draw(tiny), expected)

    wider = families.load_base(families.find_base("wider-sdxl", settings), settings)
    make_lora(wider, tmp_path / "wider.safetensors", seed=1)
    refused("wider.safetensors", "another size")

    save_file(tensors, tmp_path / "flux.safetensors", metadata={"family": "flux"})
    refused("flux.safetensors", "family “flux”")

    unmarked = {name.replace("unet.", "transformer."): tensor for name, tensor in tensors.items()}
    save_file(unmarked, tmp_path / "unmarked.safetensors")
    refused("unmarked.safetensors", "another size or kind")

    renamed = {name.replace("down_blocks", "side_blocks"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    refused("renamed.safetensors", "another size or kind")

    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-50])
    refused("cut.safetensors", "damaged")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    refused("empty.safetensors", "damaged")
    refused("absent.safetensors", "not there")


def test_taking_loras_off_fetches_no_model_back_to_the_device(
    tiny: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the device belongs to the refiner."""
    path = tmp_path / "mine.safetensors"
    make_lora(tiny, path, seed=1)
    before = draw(tiny)
    tiny.use_loras([(path, 1.0)])
    monkeypatch.setattr(tiny._shelf, "ready", lambda part: pytest.fail(f"{part} was moved"))
    tiny.use_loras(())
    monkeypatch.undo()
    assert torch.equal(draw(tiny), before)
