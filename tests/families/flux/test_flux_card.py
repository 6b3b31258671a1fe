"""Parts as the libraries load them; and, on a card, recorded steps and weights that come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families, pinned
from headshot_ui.capture import Graphs
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase, TrainBatch
from headshot_ui.settings import Settings
from headshot_ui.specs import CHECKPOINTING, FULL
from headshot_ui.training.computing import on_device
from headshot_ui.training.rehearsal import look_ahead
from tests.training.conftest import make_dataset
from tests.training.test_loop import trainer_for

PROMPT = "portrait of tok person"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_mapped_parts_are_those_the_libraries_load(part: str, dtype: torch.dtype, models_dir: Path) -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    from headshot_ui.families.shared_parts.load import quiet
    from headshot_ui.families.shared_parts.mapped import read_mapped

    kinds = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
             "text_encoder_2": T5EncoderModel}  # fmt: skip
    folder = models_dir / "dev"
    with quiet():
        usual = kinds[part].from_pretrained(folder / part, dtype=dtype, local_files_only=True)
        mapped = read_mapped(kinds[part], folder, part, dtype)
    assert mapped is not None and type(mapped) is type(usual)
    for wanted, found in (
        (usual.state_dict(), mapped.state_dict()),
        (dict(usual.named_buffers()), dict(mapped.named_buffers())),
        (dict(usual.named_parameters()), dict(mapped.named_parameters())),  # what is tied has one name
    ):
        assert list(wanted) == list(found)
        same = {name for name, tensor in wanted.items() if torch.equal(found[name], tensor)}
        assert same == wanted.keys()
        assert all(found[name].dtype == tensor.dtype for name, tensor in wanted.items())
    attention = [getattr(model.config, "_attn_implementation", None) for model in (usual, mapped)]
    assert attention[0] == attention[1]


# --- on a card ----------------------------------------------------------------------------------------
@pytest.fixture
def on_card(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedFlux]:
    """Like FLUX.1-dev in bfloat16 on a card, where everything may be locked."""
    monkeypatch.setattr(pinned, "LEAST_BYTES", 0)
    monkeypatch.setattr(pinned, "BLOCK_BYTES", 2**16)
    card = replace(settings, wanted_device="cuda", wanted_dtype="bfloat16")
    pinned.allow(card)
    yield LoadedFlux.read(families.find_base("tiny-flux", card), card)
    pinned.settle()
    gc.collect()


def draw(base: LoadedBase, recorded: Graphs | None = None, **changes: Any) -> torch.Tensor:
    """Latents, with every part moved on its own."""
    base.keep(frozenset({"text"}))
    embeds = base.encode_prompts([PROMPT] * 2)
    base.keep(frozenset({"denoiser"}))
    recorder = None if recorded is None else recorded.record
    request = DenoiseRequest(embeds, embeds, (3, 4), 5, 3.5, 64, 64, recorder=recorder)
    return list(base.denoise(replace(request, **changes)))[-1].latents.cpu()


def draw_one(base: LoadedBase, recorded: Graphs | None = None) -> torch.Tensor:
    """As ``draw``, a single picture."""
    base.keep(frozenset({"text"}))
    embeds = base.encode_prompts([PROMPT])
    base.keep(frozenset({"denoiser"}))
    if recorded is not None:
        pinned.settle()  # no step is recorded while memory is being locked
    recorder = None if recorded is None else recorded.record
    return list(base.denoise(DenoiseRequest(embeds, embeds, (3,), 5, 3.5, 64, 64, recorder=recorder)))[-1].latents.cpu()


def lora_file(base: LoadedBase, path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    parameters = base.add_trainable_lora(4, 4.0, 1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    base.save_lora(path, base.trainable_lora_state(), {})
    base.use_loras(())
    return path


@pytest.mark.gpu
def test_recorded_and_eager_are_equal_bit_by_bit(on_card: LoadedBase, tmp_path: Path) -> None:
    recorded = Graphs("cuda")
    bare = draw(on_card)
    path = lora_file(on_card, tmp_path / "lora.safetensors")
    for chosen in ([], [(path, 1.0)], [(path, 0.5)], []):
        on_card.use_loras(chosen)
        for guidance in (3.5, 9.0):  # an input, so one recording is for all
            eager = draw(on_card, guidance_scale=guidance)
            assert torch.equal(draw(on_card, recorded, guidance_scale=guidance), eager)
    assert torch.equal(draw(on_card, recorded), bare)


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize(("dropped", "streamed"), [(True, 0), (True, 2), (True, 3), (False, 2)])
def test_every_way_of_fitting_draws_the_same(
    on_card: LoadedFlux, eight_bit: bool, dropped: bool, streamed: int
) -> None:
    """One picture: rows of modulation are then made as a step would make them."""
    on_card.make_fit(Fit(eight_bit, False, 0, 3, 0, 0, True) if eight_bit else None)
    wanted = draw_one(on_card)
    on_card.make_fit(Fit(eight_bit, dropped, streamed, 3, 0, 0, True), streams_text=streamed > 0)
    for _ in range(2):  # before memory is locked and after
        found = draw_one(on_card)
        # In 8 bit without dropping the modulation layers are rounded too.
        assert torch.equal(found, wanted) or (eight_bit and dropped and (found - wanted).abs().max() < 0.5)
        recorded = Graphs("cuda")
        assert torch.equal(draw_one(on_card, recorded), found) and len(recorded) == 1
        pinned.settle()
    on_card.keep(frozenset())
    assert {module.device.type for module in on_card._shelf.modules("denoiser")} <= {"cpu"}
    on_card.release()


@pytest.mark.gpu
@pytest.mark.parametrize("streamed", [0, 3])
def test_steps_of_every_way_are_recorded(on_card: LoadedFlux, streamed: int, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "two", ((64, 64), (64, 64), (64, 48), (64, 48)))
    on_card.make_fit(Fit(True, True, streamed, 3, 0, 0, True))
    ends = []
    for recorded in (False, True):
        trainer = trainer_for(on_card, dataset, batch_size=1, gradient_checkpointing=FULL, steps=12)
        trainer.captured = trainer.captured if recorded else None
        pinned.settle()
        look_ahead(trainer)
        ends.append([trainer.run_step() for _ in range(12)])
        if recorded:
            assert trainer.captured is not None and len(trainer.captured.recordings) == 2, "one per shape"
        trainer.let_go()
    on_card.use_loras(())
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)


@pytest.mark.gpu
def test_a_base_is_the_same_before_it_is_locked_and_after(on_card: LoadedBase) -> None:
    first = draw(on_card)
    pinned.settle()
    for _ in range(3):
        assert torch.equal(draw(on_card), first)
    on_card.keep(frozenset())
    transformer, t5 = on_card._shelf.modules("denoiser")[0], on_card._shelf.modules("text")[1]  # type: ignore[attr-defined]
    assert all(pinned.place_of(weight) is not None for weight in transformer.parameters())
    assert t5.shared.weight is t5.encoder.embed_tokens.weight
    assert {module.device.type for module in (transformer, t5)} == {"cpu"}


@pytest.mark.gpu
def test_a_loss_is_that_of_the_cpu(on_card: LoadedBase, tiny: LoadedBase) -> None:
    embeds = tiny.encode_prompts([PROMPT] * 2)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = TrainBatch(latents, embeds, [(64, 64)] * 2, [(0, 0)] * 2)
    losses = []
    for base in (tiny, on_card):
        parameters = base.add_trainable_lora(2, 2.0, 0)
        inputs = on_device(base.loss_inputs(batch, torch.Generator().manual_seed(5), None), parameters[0].device)
        loss = base.loss(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in parameters)
        base.use_loras(())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_recorded_and_ordinary_steps_agree(checkpointing: str, on_card: LoadedBase, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "two", ((64, 64), (64, 64), (64, 48), (64, 48)))
    ends = []
    for recorded in (False, True):
        trainer = trainer_for(on_card, dataset, batch_size=1, gradient_checkpointing=checkpointing)
        trainer.captured = trainer.captured if recorded else None
        pinned.settle()
        losses = [trainer.run_step() for _ in range(12)]
        if recorded:
            assert trainer.captured is not None and len(trainer.captured.recordings) == 2, "one per shape"
        state = on_card.trainable_lora_state()
        ends.append((losses, torch.cat([tensor.flatten() for tensor in state.values()])))
        trainer.let_go()
    on_card.use_loras(())
    (losses, lora), (again, other) = ends
    assert again == pytest.approx(losses, rel=1e-2)  # in bfloat16, and sums come in another order each time
    assert (lora - other).norm() < 0.05 * lora.norm()
