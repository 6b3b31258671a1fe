"""Every way of fitting through the whole base model: the same pictures, losses and LoRAs, and nothing left behind."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headshot_ui import families
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.flux_parts import fitted, modulation, streaming
from headshot_ui.families.flux_parts.choosing import Chosen
from headshot_ui.families.flux_parts.eight_bit import EightBitLinear
from headshot_ui.families.flux_parts.fitted import beforehand_of, is_travelling
from headshot_ui.families.flux_parts.fitting import Fit, Together
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.flux_parts.lora_facts import place_in_files
from headshot_ui.families.flux_parts.lora_write import lora_bytes
from headshot_ui.families.protocol import DenoiseRequest, TrainBatch
from headshot_ui.settings import Settings
from headshot_ui.specs import FULL, NONE
from tests.families.flux.flux_loras import by_hand, random_layers

PROMPT = "portrait of tok person"
EVERYTHING = frozenset({"text", "vae", "denoiser"})


def way(eight_bit: bool = False, dropped: bool = False, streamed: int = 0) -> Fit:
    return Fit(eight_bit, dropped, streamed, 3, 0, 0, False)


ORDINARY, DROPPED, EIGHT = way(), way(dropped=True), way(eight_bit=True, dropped=True)
SAME_NUMBERS = [DROPPED, way(streamed=2), way(dropped=True, streamed=3)]
EIGHT_BIT = [EIGHT, way(eight_bit=True), way(eight_bit=True, dropped=True, streamed=3)]


@pytest.fixture(scope="module")
def _base(settings: Settings) -> LoadedFlux:
    return LoadedFlux.read(families.find_base("tiny-flux", settings), settings)


@pytest.fixture
def base(_base: LoadedFlux) -> Iterator[LoadedFlux]:
    yield _base
    _base.checkpoint_gradients(NONE)
    _base.use_loras(())
    _base.make_fit(None)


def transformer_of(base: LoadedFlux) -> Any:
    return base._shelf.modules("denoiser")[0]


def draw(base: LoadedFlux, prompts: int = 2, **changes: Any) -> torch.Tensor:
    """Latents of ``prompts`` pictures, with every part having its turn."""
    base.keep(frozenset({"text"}))
    embeds = base.encode_prompts([PROMPT, "person in soft light"][:prompts])
    base.keep(frozenset({"denoiser"}))
    request = replace(DenoiseRequest(embeds, embeds, (3, 4)[:prompts], 3, 3.5, 64, 48), **changes)
    last = list(base.denoise(request))[-1].latents
    base.keep(frozenset())
    return last


def batch_of(count: int) -> TrainBatch:
    generator = torch.Generator().manual_seed(1)
    embeds = {
        "prompt_embeds": torch.randn(count, 48, 24, generator=generator),
        "pooled_prompt_embeds": torch.randn(count, 16, generator=generator),
    }
    latents = torch.randn(count, 16, 8, 6, generator=generator)
    return TrainBatch(latents, embeds, [(64, 48)] * count, [(0, 0)] * count)


def learn(base: LoadedFlux, count: int = 1) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses of two steps, and the gradients of a LoRA that does something."""
    parameters = base.add_trainable_lora(rank=2, alpha=3.0, seed=0)
    numbers = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=numbers) * 0.2
    base.checkpoint_gradients(FULL)

    def coming() -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(7)
        for _ in range(2):
            yield base.loss_inputs(batch_of(count), generator, None)

    base.prepare_for(coming())
    losses = []
    for inputs in coming():
        loss = base.loss(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(grads) == len(parameters) and all(grad.norm() > 0 for grad in grads)
    return losses, grads


def equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@dataclass(frozen=True)
class Ordinary:
    """What the base model makes without any way of fitting."""

    drawn: torch.Tensor
    with_lora: torch.Tensor
    learned: tuple[list[torch.Tensor], list[torch.Tensor]]
    learned_two: tuple[list[torch.Tensor], list[torch.Tensor]]


@pytest.fixture(scope="module")
def ordinary(_base: LoadedFlux, lora_path: Path) -> Ordinary:
    _base.make_fit(None)
    drawn, learned, two = draw(_base), learn(_base), learn(_base, 2)
    _base.checkpoint_gradients(NONE)
    _base.use_loras([(lora_path, 0.7)])
    with_lora = draw(_base)
    _base.use_loras(())
    return Ordinary(drawn, with_lora, learned, two)


# --- the same numbers ---------------------------------------------------------------------------------
@pytest.mark.parametrize("fit", SAME_NUMBERS, ids=lambda fit: fit.title)
def test_what_leaves_weights_alone_leaves_pictures_alone(base: LoadedFlux, ordinary: Ordinary, fit: Fit) -> None:
    base.make_fit(fit)
    wanted = ordinary.drawn
    assert torch.equal(draw(base), wanted) and torch.equal(draw(base), wanted)
    assert (beforehand_of(transformer_of(base)) is not None) == fit.dropped
    base.make_fit(None)
    assert torch.equal(draw(base), wanted) and beforehand_of(transformer_of(base)) is None


@pytest.mark.parametrize("fit", SAME_NUMBERS, ids=lambda fit: fit.title)
def test_and_what_is_learned(base: LoadedFlux, ordinary: Ordinary, fit: Fit) -> None:
    base.make_fit(fit)
    found, found_grads = learn(base)
    losses, grads = ordinary.learned
    assert losses[0] != losses[1] and equal(found, losses) and equal(found_grads, grads)
    if fit.dropped and not fit.streamed:
        assert torch.allclose(torch.stack(learn(base, 2)[0]), torch.stack(ordinary.learned_two[0]), rtol=1e-5)


def rounded(base: LoadedFlux, dropped: bool) -> None:
    """Give the ordinary transformer the weights that one in 8 bit computes with."""
    base.make_fit(way(eight_bit=True, dropped=dropped))
    base.keep(frozenset({"denoiser"}))
    small = base._shelf.present("denoiser")[0]
    weights = {name: module.full_weight() for name, module in small.named_modules()
               if isinstance(module, EightBitLinear)}  # fmt: skip
    base.make_fit(None)
    ordinary = base._shelf.present("denoiser")[0]
    for name, weight in weights.items():
        ordinary.get_submodule(name).weight.data = weight


@pytest.mark.parametrize("fit", EIGHT_BIT[:2], ids=lambda fit: f"{fit.title} {fit.dropped}")
def test_in_8_bit_it_computes_with_the_rounded_weights(
    settings: Settings, base: LoadedFlux, ordinary: Ordinary, fit: Fit
) -> None:
    whole = ordinary.drawn
    other = LoadedFlux.read(base.info, settings)
    rounded(other, fit.dropped)
    wanted, wanted_losses = draw(other), learn(other)
    base.make_fit(fit)
    found, losses = draw(base), learn(base)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert 1e-4 < (found - whole).abs().max() / whole.abs().max() < 0.05
    assert torch.allclose(torch.stack(losses[0]), torch.stack(wanted_losses[0]), rtol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(losses[1], wanted_losses[1], strict=True))


def test_blocks_that_travel_change_nothing_in_8_bit(base: LoadedFlux) -> None:
    base.make_fit(EIGHT)
    wanted, learned = draw(base), learn(base)
    here = transformer_of(base)
    base.use_loras(())
    base.make_fit(replace(EIGHT, streamed=2))
    assert torch.equal(draw(base), wanted)
    losses, grads = learn(base)
    assert equal(losses, learned[0]) and equal(grads, learned[1])
    assert transformer_of(base) is here, "it need not be read again"
    assert is_travelling(here)
    base.keep(frozenset({"vae"}))
    assert not is_travelling(here)


def test_blocks_that_travel_no_more_give_their_memory_back(base: LoadedFlux) -> None:
    def packed() -> int:
        modules = [*transformer_of(base).modules(), *base._shelf.modules("text")[1].modules()]
        return sum(streaming._PACKED in module.__dict__ for module in modules)

    base.make_fit(replace(EIGHT, streamed=3), streams_text=True)
    wanted = draw(base)
    here = transformer_of(base)
    layers = len(base._shelf.modules("text")[1].encoder.block)
    assert packed() == 3 + layers
    base.make_fit(EIGHT, streams_text=True)
    assert packed() == layers
    base.make_fit(EIGHT)
    assert packed() == 0 and transformer_of(base) is here
    assert torch.equal(draw(base), wanted)


def test_text_encoders_that_travel_read_the_same(base: LoadedFlux) -> None:
    wanted = base.encode_prompts([PROMPT])
    base.make_fit(EIGHT, streams_text=True)
    found = base.encode_prompts([PROMPT])
    assert is_travelling(base._shelf.modules("text")[1])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    base.keep(frozenset({"denoiser"}))
    assert not is_travelling(base._shelf.modules("text")[1])


# --- steps that are recorded --------------------------------------------------------------------------
def test_a_recorded_step_is_given_its_row(base: LoadedFlux) -> None:
    """A recording repeats with other tensors and nothing else."""
    steps, rows = [], []

    def recorder(step: Any, module: torch.nn.Module) -> Any:
        steps.append(step)

        def recorded(*tensors: torch.Tensor) -> Any:
            rows.append(tensors[-1])
            assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
            return step(*tensors)

        return recorded

    base.make_fit(DROPPED)
    draw(base, recorder=recorder)
    draw(base, recorder=recorder)
    assert len(rows) == 6 and rows[0].shape == rows[1].shape and not torch.equal(rows[0], rows[1])
    assert steps[0] == steps[1] and hash(steps[0]) == hash(steps[1]), "recorded once"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each table had that was computed."""
    seen: list[int] = []
    real = modulation.table
    monkeypatch.setattr(modulation, "table", lambda *args: seen.append(len(args[1])) or real(*args))
    return seen


def test_a_table_is_made_once_for_equal_pictures(base: LoadedFlux, ordinary: Ordinary, made: list[int]) -> None:
    base.make_fit(DROPPED)
    assert torch.equal(draw(base), ordinary.drawn) and not torch.equal(draw(base, seeds=(7, 8)), ordinary.drawn)
    assert made == [3]
    draw(base, steps=2)
    draw(base, prompts=1)
    assert torch.equal(draw(base), ordinary.drawn) and made == [3, 2, 3]
    draw(base, guidance_scale=3.0)
    assert made == [3, 2, 3, 3]


def test_the_tables_unused_longest_go_first(base: LoadedFlux, made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    base.make_fit(DROPPED)
    draw(base, steps=2)
    (table,) = beforehand_of(transformer_of(base)).last.values()  # type: ignore[union-attr]
    monkeypatch.setattr(fitted, "KEPT_BYTES", 5 * table.nbytes // 2)
    for guidance in (3.5, 4.0, 3.5, 5.0, 3.5, 4.0):
        draw(base, steps=2, guidance_scale=guidance)
    assert len(made) == 4, "4.0 had to go for 5.0"
    monkeypatch.setattr(fitted, "KEPT_BYTES", 1)
    draw(base, steps=3)
    assert len(beforehand_of(transformer_of(base)).last) == 1  # type: ignore[union-attr]


def test_tables_outlast_a_job_unless_a_lora_embeds_otherwise(
    settings: Settings, base: LoadedFlux, ordinary: Ordinary, lora_path: Path, made: list[int], tmp_path: Path
) -> None:
    where, tensors = place_in_files(base.info), dict[str, torch.Tensor]()
    chosen = [name for name in where.shapes if "time_text_embed.text_embedder" in name]
    for name, layer in random_layers(where, chosen, rank=2).items():
        tensors |= by_hand(name, layer.down, layer.up, None, kohya=False)
    embedding = tmp_path / "embedding.safetensors"
    save_file(tensors, embedding)
    base.make_fit(DROPPED)
    draw(base)
    base.use_loras([(lora_path, 0.7)])
    assert torch.equal(draw(base), ordinary.with_lora)
    base.use_loras(())
    assert torch.equal(draw(base), ordinary.drawn) and made == [3]
    base.use_loras([(embedding, 1.0)])
    found = draw(base)
    assert not torch.equal(found, ordinary.drawn) and made == [3, 3]
    base.use_loras(())
    assert torch.equal(draw(base), ordinary.drawn) and made == [3, 3, 3]
    base.make_fit(None)
    base.use_loras([(embedding, 1.0)])
    assert torch.equal(draw(base), found), "as with the layers themselves"


# --- LoRA ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lora_path(_base: LoadedFlux, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    where = place_in_files(_base.info)
    chosen = [name for name in where.shapes if ".attn.to_q" in name or name.endswith((".net.2", ".proj_mlp"))]
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in random_layers(where, chosen, rank=2).items():
        tensors |= by_hand(name, layer.down, layer.up, None, kohya=False)
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("fit", [*SAME_NUMBERS, *EIGHT_BIT], ids=lambda fit: f"{fit.title} {fit.dropped}")
def test_a_finished_lora_goes_on_and_off(base: LoadedFlux, ordinary: Ordinary, lora_path: Path, fit: Fit) -> None:
    base.make_fit(fit)
    bare = draw(base)
    base.use_loras([(lora_path, 0.7)])
    found = draw(base)
    assert (found - bare).abs().max() > 0.02
    if fit.eight_bit:
        assert (found - ordinary.with_lora).abs().max() < 0.1 * (ordinary.with_lora - ordinary.drawn).abs().max()
    else:
        assert torch.equal(found, ordinary.with_lora)
    base.use_loras(())
    assert torch.equal(draw(base), bare)


def test_relatives_stand_on_8_bit_too(base: LoadedFlux) -> None:
    from headshot_ui.families.lora_parts.base_layer import computing_dtype, full_weight
    from headshot_ui.families.lora_parts.relatives import Change, RelatedLayer

    weight = torch.randn(8, 6)
    from headshot_ui.families.flux_parts.eight_bit import rounded as to_8_bit

    numbers, factors = to_8_bit(weight)
    small = EightBitLinear(numbers, factors, torch.zeros(8, dtype=torch.bfloat16))
    plain = torch.nn.Linear(6, 8).requires_grad_(False)
    plain.weight.data = small.full_weight()
    assert computing_dtype(small) == torch.bfloat16 and torch.equal(full_weight(small), small.full_weight())
    layer = RelatedLayer({"down": torch.randn(2, 6), "up": torch.randn(8, 2)}, None, torch.rand(8, 1) + 1)
    made, wanted = Change(small, layer), Change(plain, layer)
    assert made.weight.dtype == torch.bfloat16
    assert torch.allclose(made.change(), wanted.change(), rtol=0.05, atol=0.1)


# --- memory -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fit", [None, DROPPED, way(eight_bit=True, dropped=True, streamed=2)])
def test_what_is_let_go_of_is_gone(settings: Settings, fit: Fit | None) -> None:
    base = LoadedFlux.read(families.find_base("tiny-flux", settings), settings)
    base.make_fit(fit, streams_text=fit is not None)
    draw(base)
    module = weakref.ref(transformer_of(base))
    flats = [weakref.ref(tensor) for tensor in itertools.islice(transformer_of(base).parameters(), 5)]
    base.shed()
    gc.collect()
    assert module() is None and all(flat() is None for flat in flats)
    draw(base)
    module = weakref.ref(transformer_of(base)) if base._shelf.modules("denoiser") else module
    base.release()
    gc.collect()
    assert module() is None


@pytest.mark.parametrize("frugal", [False, True])
def test_a_dora_measures_the_weights_it_stands_on_where_blocks_travel(
    frugal: bool, base: LoadedFlux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card, and where main memory is short, LoRAs go on when a part sets out; they may come while it is there."""
    generator = torch.Generator().manual_seed(2)
    rows, inside = 3 * 32, 32  # of the first block, whose slot another one has by the end of a pass
    shapes = {"lora_down.weight": (4, inside), "lora_up.weight": (rows, 4), "dora_scale": (rows, 1)}
    made = {name: torch.randn(*shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    path = tmp_path / "dora.safetensors"
    save_file({f"lora_unet_double_blocks_0_img_attn_qkv.{name}": tensor for name, tensor in made.items()}, path)
    embeds = base.encode_prompts([PROMPT])

    def latents() -> torch.Tensor:
        return list(base.denoise(DenoiseRequest(embeds, embeds, (3,), 2, 3.5, 64, 48)))[-1].latents

    bare = latents()
    base.use_loras([(path, 1.0)])
    wanted = latents()
    assert not torch.allclose(wanted, bare, atol=1e-3)
    base.use_loras(())
    monkeypatch.setattr(base._shelf, "frugal", frugal)
    base.make_fit(way(streamed=3))
    latents()  # slots are full of other blocks
    if frugal:
        base.keep(frozenset())
    base.use_loras([(path, 1.0)])
    assert torch.equal(latents(), wanted) and is_travelling(transformer_of(base))


def test_a_lora_on_modulation_layers_may_follow_a_job_that_dropped_them(base: LoadedFlux, tmp_path: Path) -> None:
    """A training leaves the transformer where it is; the next request puts its LoRA on before it asks for a way."""
    place = place_in_files(base.info)
    shapes = [name for name in place.shapes if ".norm" in name and name.endswith(".linear")]
    layers = random_layers(place, shapes, rank=3, alpha=1.0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes("kohya", layers, place, {"family": "flux"}, "x"))
    bare = draw(base)
    base.use_loras([(path, 1.0)])
    wanted = draw(base)
    base.use_loras(())
    base.make_fit(DROPPED)
    draw(base)
    assert beforehand_of(transformer_of(base)) is not None
    base.use_loras([(path, 1.0)])
    base.make_fit(way(streamed=2))
    assert torch.equal(draw(base), wanted) and not torch.equal(wanted, bare)


def test_parts_stay_together_as_long_as_the_way_says_so(settings: Settings) -> None:
    found = [Chosen(ORDINARY, together=Together(5, 7)), Chosen(ORDINARY), None]
    base = LoadedFlux.read(families.find_base("tiny-flux", settings), settings, lambda *given: found[0])
    work = DenoiserWork(None, 64, 64, 1, 2)
    for takes in (7, None, None):
        fitting = base.fit(work)
        assert base.takes_bytes == takes and base._shelf.together == (takes is not None)
        assert (fitting is not None and fitting.staying_bytes) == bool(takes) * 5
        found.pop(0)
