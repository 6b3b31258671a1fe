"""Blocks that travel compute as if they had stayed, also where their slot is overwritten as soon as it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from headshot_ui import pinned
from headshot_ui.families.flux_parts import eight_bit, modulation, streaming
from tests.families.flux.flux_tiny import add_lora, drawn, inputs, loss_and_gradients, tiny_transformer

LORA = ["to_q", "to_k", "to_v", "add_q_proj", "proj_mlp"]


@dataclass
class Hasty:
    """Spoils a slot the moment a copy into it begins, and brings the copy only when it is waited for."""

    said: list[str] = field(default_factory=list)
    coming: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    first_bytes: dict[bytes, int] = field(default_factory=dict)

    def slots(self, count: int, size: int) -> Sequence[torch.Tensor]:
        return [torch.full((size,), 0x7F, dtype=torch.uint8) for _ in range(count)]

    def send(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        assert slot not in self.coming, "two blocks on their way to one slot"
        target.fill_(0x7F)
        which = self.first_bytes.setdefault(bytes(source[:64].tolist()), len(self.first_bytes))
        self.said.append(f"send {which}")
        self.coming[slot] = (target, source)

    def wait(self, slot: int) -> None:
        self.said.append("wait" if slot in self.coming else "there")
        if slot in self.coming:
            target, source = self.coming.pop(slot)
            target.copy_(source)

    def wait_for_all(self) -> None:
        for slot in list(self.coming):
            self.wait(slot)


def streamed(model: Any, count: int) -> tuple[streaming.Streamed, Hasty]:
    carrier = Hasty()
    return streaming.stream(model, streaming.chosen_blocks(model, count), "cpu", lambda device: carrier), carrier


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_drawing_is_bit_equal(count: int) -> None:
    model = tiny_transformer()
    wanted = [drawn(model, inputs(1, seed=seed)) for seed in range(2)]
    made, _ = streamed(model, count)
    for seed in (0, 1, 0):
        assert torch.equal(drawn(model, inputs(1, seed=seed)), wanted[seed])
    made.stop()
    assert torch.equal(drawn(model, inputs(1, seed=1)), wanted[1])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_training_is_bit_equal(count: int) -> None:
    model, other = tiny_transformer(), tiny_transformer()
    wanted, wanted_grads = loss_and_gradients(other, inputs(1), add_lora(other, LORA))
    streamed(model, count)
    parameters = add_lora(model, LORA)
    model.enable_gradient_checkpointing()
    model.train()
    for _ in range(2):
        loss, grads = loss_and_gradients(model, inputs(1), parameters)
        assert torch.equal(loss, wanted)
        assert all(torch.equal(mine, other) for mine, other in zip(grads, wanted_grads, strict=True))


def test_a_picture_between_a_step_and_its_gradients() -> None:
    model, other = tiny_transformer(), tiny_transformer()
    _, wanted = loss_and_gradients(other, inputs(1), add_lora(other, LORA))
    picture = drawn(other, inputs(1, seed=5))
    streamed(model, 5)
    parameters = add_lora(model, LORA)
    model.enable_gradient_checkpointing()
    model.train()
    loss = (model(**inputs(1))[0].float() - 0.3).square().mean()
    assert torch.equal(drawn(model, inputs(1, seed=5)), picture)
    grads = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(mine, other) for mine, other in zip(grads, wanted, strict=True))


def test_each_block_sets_out_while_the_one_before_computes() -> None:
    model = tiny_transformer()
    _, carrier = streamed(model, 4)
    drawn(model, inputs(1))
    forwards = ["send 0", "send 1", "wait", "wait", "send 2", "wait", "send 3", "wait"]
    assert carrier.said == forwards
    parameters = add_lora(model, LORA)
    model.enable_gradient_checkpointing()
    model.train()
    carrier.said.clear()
    loss_and_gradients(model, inputs(1), parameters)
    # On the way back the last two are there still; each of the others travels once more. The first two end in the
    # slots, and travel all the same with the next step: one that a card repeats does not know what it finds there.
    step = [*forwards, "there", "there", "send 1", "wait", "send 0", "wait"]
    assert carrier.said == step
    loss_and_gradients(model, inputs(1), parameters)
    assert carrier.said == step + step and not carrier.coming


def test_learning_without_checkpointing_is_refused() -> None:
    model = tiny_transformer()
    streamed(model, 2)
    parameters = add_lora(model, LORA)
    with pytest.raises(RuntimeError, match="only learn with gradient checkpointing"):
        loss_and_gradients(model, inputs(1), parameters)


def test_with_8_bit_and_dropped_modulation() -> None:
    models = [tiny_transformer(dtype=torch.bfloat16) for _ in range(2)]
    given = inputs(1, dtype=torch.bfloat16)
    results = []
    for model, count in zip(models, (0, 5), strict=True):
        condition = modulation.Condition(given["timestep"], given["guidance"], given["pooled_projections"])
        rows = modulation.table(model, [condition], "cpu", torch.bfloat16)
        dropped = modulation.drop(model)
        eight_bit.shrink(model, torch.bfloat16)
        whole = streaming.block_bytes(model.single_transformer_blocks[0])
        if count:
            made, _ = streamed(model, count)
            assert made.waiting_bytes >= 4 * whole and made.slot_bytes >= 2 * whole
        parameters = add_lora(model, LORA)
        for parameter in parameters:
            parameter.data = parameter.data.float()
        model.enable_gradient_checkpointing()
        model.train()
        dropped.use(rows[0])
        results.append(loss_and_gradients(model, given, parameters))
    (loss, grads), (other_loss, other_grads) = results
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(mine, other) for mine, other in zip(grads, other_grads, strict=True))


def test_addresses_on_the_device_do_not_change() -> None:
    model = tiny_transformer()
    streamed(model, 5)
    before = [weight.data_ptr() for weight in model.parameters()]
    drawn(model, inputs(1))
    drawn(model, inputs(1, seed=3))
    assert [weight.data_ptr() for weight in model.parameters()] == before


def test_stopping_gives_every_weight_back() -> None:
    model = tiny_transformer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    made, carrier = streamed(model, 6)
    with torch.no_grad():
        made._begin(model, ())  # cancelled in the middle of a pass
    made.stop()
    assert not carrier.coming and not model._forward_pre_hooks
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    places = {weight.untyped_storage().data_ptr() for weight in model.transformer_blocks[0].parameters()}
    assert len(places) == 1


def runs_of(model: Any) -> list[int]:
    """Where in memory the weights of each block lie that travelled and came back."""
    return [module.__dict__[streaming._PACKED][0].data_ptr() for module in streaming.chosen_blocks(model, 4)]


def test_what_travelled_before_is_not_packed_again() -> None:
    model = tiny_transformer()
    streamed(model, 4)[0].stop()
    first = runs_of(model)
    add_lora(model, LORA)  # beside the weights that travel
    wanted = drawn(model, inputs(1))
    made, _ = streamed(model, 4)
    assert torch.equal(drawn(model, inputs(1)), wanted) and runs_of(model) == first
    made.stop()
    changed = streaming.chosen_blocks(model, 4)[1]
    weight = next(weight for weight in changed.parameters() if not weight.requires_grad)
    weight.data = weight.data * 2  # elsewhere in memory, as after a way to the card and back
    other = drawn(model, inputs(1))
    made, _ = streamed(model, 4)
    assert torch.equal(drawn(model, inputs(1)), other) and not torch.equal(other, wanted)
    again = runs_of(model)
    assert again[1] != first[1] and [*again[:1], *again[2:]] == [*first[:1], *first[2:]]
    made.stop()
    streaming.forget_packed(model)
    assert not any(streaming._PACKED in module.__dict__ for module in model.modules())


def test_which_blocks_travel() -> None:
    model = tiny_transformer(double=3, single=6)
    names = {id(module): name for name, module in model.named_modules()}

    def chosen(count: int) -> list[str]:
        short = [names[id(block)] for block in streaming.chosen_blocks(model, count)]
        return [name.replace("single_transformer_blocks.", "s").replace("transformer_blocks.", "d") for name in short]

    assert chosen(2) == ["s1", "s4"] and chosen(3) == ["s1", "s3", "s5"]
    assert chosen(7) == ["d1", "s0", "s1", "s2", "s3", "s4", "s5"]
    assert chosen(9) == ["d0", "d1", "d2", "s0", "s1", "s2", "s3", "s4", "s5"]
    with pytest.raises(ValueError, match="only 9"):
        chosen(10)


def test_the_cpu_needs_no_carrier() -> None:
    model = tiny_transformer()
    wanted = drawn(model, inputs(1))
    streaming.stream(model, streaming.chosen_blocks(model, 4), "cpu")
    assert torch.equal(drawn(model, inputs(1)), wanted)


def test_t5_travels_too() -> None:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=5, num_heads=2, dropout_rate=0.0)
    t5 = T5EncoderModel(config).eval().requires_grad_(False)
    words = torch.randint(0, 20, (2, 7))
    wanted = t5(words)[0]
    carrier = Hasty()
    made = streaming.stream(t5, list(t5.encoder.block), "cpu", lambda device: carrier)
    with torch.no_grad():
        assert torch.equal(t5(words)[0], wanted) and torch.equal(t5(words)[0], wanted)
    made.stop()
    assert torch.equal(t5(words)[0], wanted)


class FakeCuda:
    """Streams and events that note what is asked of them, and in which order."""

    def __init__(self, said: list[str]) -> None:
        self.said, self.on, self.recording = said, "computing", False

    def Stream(self, device: str) -> FakeStream:  # noqa: N802
        return FakeStream(self, "side")

    def Event(self) -> FakeEvent:  # noqa: N802
        return FakeEvent(self.said, self)

    def current_stream(self) -> FakeStream:
        return FakeStream(self, self.on)

    def is_current_stream_capturing(self) -> bool:
        return self.recording

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.on = stream.name
        yield
        self.on = "computing"


@dataclass
class FakeStream:
    cuda: FakeCuda
    name: str

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.said.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: FakeEvent) -> None:
        if event.in_graph and not self.cuda.recording:
            raise RuntimeError("CUDA error: operation not permitted on an event last recorded in a capturing stream")
        self.cuda.said.append(f"{self.name} waits for {event.recorded}")


@dataclass
class FakeEvent:
    said: list[str]
    cuda: FakeCuda
    recorded: str = "nothing"
    in_graph: bool = False

    def record(self, stream: FakeStream) -> None:
        self.recorded, self.in_graph = "the copy", self.cuda.recording
        self.said.append(f"event on {stream.name}")


def test_a_card_copies_beside_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    cuda = FakeCuda(said)
    monkeypatch.setattr(torch, "cuda", cuda)
    carrier = streaming.CardCarrier("cpu")
    slots = carrier.slots(2, 8)

    class Target:
        def copy_(self, source: torch.Tensor, non_blocking: bool) -> None:
            assert non_blocking
            said.append(f"copy on {cuda.on}")

    carrier.send(1, Target(), slots[0])  # type: ignore[arg-type]
    assert said == ["side waits for computing", "copy on side", "event on side"]
    carrier.wait(1)
    assert said[3:] == ["computing waits for the copy"] and carrier.arrived[0].recorded == "nothing"


class Driver:
    """Stands in for CUDA's runtime."""

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        return 0


def test_blocks_travel_from_locked_memory_as_soon_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "_cudart", Driver)
    monkeypatch.setattr(pinned, "_locked", pinned._Locked())
    monkeypatch.setattr(pinned, "LEAST_BYTES", 1024)
    pinned._locked.may = 10**9
    model = tiny_transformer()
    wanted = drawn(model, inputs(1))
    made, carrier = streamed(model, 5)
    pinned.settle()
    sources: list[torch.Tensor] = []
    monkeypatch.setattr(
        carrier,
        "send",
        lambda slot, target, source: (sources.append(source), Hasty.send(carrier, slot, target, source)),
    )
    for _ in range(2):
        assert torch.equal(drawn(model, inputs(1)), wanted)
    locked = [range(address, address + size) for address, size in pinned._locked.sizes.items()]
    assert len(sources) >= 10 and all(any(s.data_ptr() in block for block in locked) for s in sources)
    made.stop()
    assert torch.equal(drawn(model, inputs(1)), wanted)
    made, _ = streamed(model, 5)  # the next job
    pinned.settle()
    assert torch.equal(drawn(model, inputs(1)), wanted)
    assert [*pinned._locked.sizes] == [block.start for block in locked], "nothing is locked again"
    made.stop()


def test_blocks_come_back_after_a_pass_that_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded pass leaves events that nobody outside of the graph may wait for."""
    model = tiny_transformer()
    wanted, said = drawn(model, inputs(1)), list[str]()
    cuda = FakeCuda(said)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cuda", cuda)
        patch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
        made = streaming.stream(model, streaming.chosen_blocks(model, 3), "cpu", streaming.CardCarrier, lock=False)
        for cuda.recording in (False, True):
            assert torch.equal(drawn(model, inputs(1)), wanted)
        cuda.recording = False
        made.stop()
    assert said[-1] == "computing waits for side"
    assert torch.equal(drawn(model, inputs(1)), wanted)


def test_what_is_not_locked_is_not_recorded_and_leaves_no_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with little memory locks some blocks and not others."""
    model = tiny_transformer()
    wanted, said = drawn(model, inputs(1)), list[str]()
    cuda = FakeCuda(said)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cuda", cuda)
        made = streaming.stream(model, streaming.chosen_blocks(model, 4), "cpu", streaming.CardCarrier, lock=False)
        locked = {block.flat.data_ptr() for block in made._blocks[:3]}
        patch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in locked)
        cuda.recording = True
        with pytest.raises(RuntimeError, match="not page-locked"):
            drawn(model, inputs(1))
        last = len(said) - said[::-1].index("event on side") - 1
        assert said[last:] == ["event on side", "computing waits for the copy"], "a copy that nothing waits for"
        cuda.recording = False
        assert torch.equal(drawn(model, inputs(1)), wanted)
