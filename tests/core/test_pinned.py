"""Which weights get a copy in locked memory, what lies where afterwards, and what happens when the system refuses.

Card and driver are fakes: what is on the card are copies in main memory that nothing else knows of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from headshot_ui import pinned, swapping
from headshot_ui.memory import LOCKED_SHARE, LOCKED_SHARE_WINDOWS, lockable_bytes
from headshot_ui.settings import Settings
from headshot_ui.swapping import forget_copies, move

CARD = "card"


class Card:
    """What was sent to it."""

    def __init__(self) -> None:
        self.there: list[torch.Tensor] = []  # for ever, so that no address is used twice
        self.sent: list[int] = []  # addresses

    def holds(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return any(storage == there.untyped_storage().data_ptr() for there in self.there)

    def take(self, here: torch.Tensor, device: str, dtype: torch.dtype | None, staging: None = None) -> torch.Tensor:
        assert device == CARD and staging is None and not self.holds(here)
        self.sent.append(here.data_ptr())
        there = here.clone()
        self.there.append(there.to(dtype) if dtype is not None and there.is_floating_point() else there)
        return self.there[-1]


class Driver:
    """Notes what is locked now; refuses from the call number ``refuses_at`` on."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.calls = 0
        self.refuses_at = 10**9

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls += 1
        if self.calls > self.refuses_at:
            return 2
        self.locked[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """With room for a megabyte of locked memory, in blocks of 4 KiB."""
    fake = Driver()
    monkeypatch.setattr(pinned, "_cudart", lambda: fake)
    monkeypatch.setattr(pinned, "_locked", pinned._Locked())
    monkeypatch.setattr(pinned, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(pinned, "LEAST_BYTES", 1024)
    pinned._locked.may = 2**20
    yield fake
    pinned.settle()


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    monkeypatch.setattr(swapping, "_sent", fake.take)
    monkeypatch.setattr(swapping, "_is_here", lambda tensor: not fake.holds(tensor))
    return fake


def net(width: int = 32) -> torch.nn.Module:
    """Four matrices of ``width``² float32 numbers, biases and two running means."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, width) for _ in range(4)]
    return torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(width)).requires_grad_(False).eval()


def there_and_back(module: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
    move(module, CARD, dtype=dtype)
    pinned.settle()
    move(module, "cpu")


def all_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def in_locked_memory(module: torch.nn.Module) -> list[bool]:
    return [pinned.place_of(tensor) is not None for tensor in all_tensors(module)]


# --- what is locked -----------------------------------------------------------------------------------
def test_after_its_first_time_on_the_card_a_module_waits_in_locked_blocks(driver: Driver, card: Card) -> None:
    module = net()
    before = [tensor.clone() for tensor in all_tensors(module)]
    move(module, CARD)
    pinned.settle()
    assert all(card.holds(tensor) for tensor in all_tensors(module))
    move(module, "cpu")
    assert all(in_locked_memory(module))
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))
    sizes = driver.locked.values()
    needed = sum(tensor.nbytes for tensor in before)
    assert needed <= sum(sizes) <= needed + 512 * len(before) and pinned._locked.bytes == sum(sizes)
    assert len(sizes) > 4, "blocks of at most 4 KiB, and one for whole numbers"
    inside = lambda t: any(a <= t.data_ptr() and t.data_ptr() + t.nbytes <= a + n for a, n in driver.locked.items())  # noqa: E731
    assert all(inside(tensor) and tensor.data_ptr() % 16 == 0 for tensor in all_tensors(module))


def test_each_block_travels_as_one(driver: Driver, card: Card) -> None:
    module = net()
    before = [tensor.clone() for tensor in all_tensors(module)]
    there_and_back(module)
    card.sent.clear()
    move(module, CARD)
    assert sorted(card.sent) == sorted(driver.locked)
    storages = {tensor.untyped_storage().data_ptr() for tensor in all_tensors(module)}
    assert len(storages) == len(driver.locked), "tensors are views of what arrived"
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))


def test_a_second_journey_locks_nothing_more_and_copies_nothing_back(driver: Driver) -> None:
    module = net()
    there_and_back(module)
    places, calls = [tensor.data_ptr() for tensor in all_tensors(module)], driver.calls
    for _ in range(3):
        there_and_back(module)
        assert [tensor.data_ptr() for tensor in all_tensors(module)] == places
    assert driver.calls == calls


def test_what_came_back_before_it_was_locked_is_used_from_there_the_next_time(driver: Driver) -> None:
    module = net()
    with pinned._locked.turn:  # the thread has to wait
        move(module, CARD)
        move(module, "cpu")
        assert not any(in_locked_memory(module))
    pinned.settle()
    there_and_back(module)
    assert all(in_locked_memory(module))


def test_the_card_has_its_own_number_format_and_main_memory_that_of_the_file(driver: Driver) -> None:
    module = net().half()
    for _ in range(2):  # as tensors, then as blocks
        move(module, CARD, dtype=torch.bfloat16)
        assert {t.dtype for t in all_tensors(module)} == {torch.bfloat16, torch.int64}
        pinned.settle()
        move(module, "cpu")
        assert {t.dtype for t in all_tensors(module)} == {torch.float16, torch.int64}
    assert all(in_locked_memory(module))


def test_order_in_memory_is_kept(driver: Driver) -> None:
    module = torch.nn.Conv2d(8, 8, 3).requires_grad_(False).to(memory_format=torch.channels_last)
    before = module.weight.clone()
    there_and_back(module)
    move(module, CARD)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    move(module, "cpu")
    assert torch.equal(module.weight, before) and module.weight.stride() == before.stride()


# --- what is not --------------------------------------------------------------------------------------
def test_trained_weights_are_never_locked_and_keep_their_number_format(driver: Driver) -> None:
    module = net()
    module[0].weight.requires_grad_(True)
    for _ in range(2):
        move(module, CARD, dtype=torch.bfloat16)
        assert module[0].weight.dtype == torch.float32 and module[1].weight.dtype == torch.bfloat16
        with torch.no_grad():
            module[0].weight.add_(1.0)
        trained = module[0].weight.clone()
        pinned.settle()
        move(module, "cpu")
        assert torch.equal(module[0].weight, trained)
    assert pinned.place_of(module[0].weight) is None and pinned.place_of(module[1].weight) is not None


def test_what_was_written_to_on_the_card_comes_back_as_it_is_there(driver: Driver, card: Card) -> None:
    module = net()
    there_and_back(module)
    move(module, CARD)
    module[2].bias.fill_(5.0)
    move(module, "cpu")
    assert torch.equal(module[2].bias, torch.full((32,), 5.0)) and not card.holds(module[2].bias)
    there_and_back(module)
    assert torch.equal(module[2].bias, torch.full((32,), 5.0))
    assert [pinned.place_of(tensor) is None for tensor in (module[2].bias, module[2].weight)] == [True, False]


def test_weights_written_to_in_main_memory_are_not_overwritten_by_their_copy(driver: Driver) -> None:
    module = net()
    with pinned._locked.turn:
        move(module, CARD)
        move(module, "cpu")
    pinned.settle()
    module[0].weight.data = torch.full((32, 32), 7.0)
    module[0].bias.fill_(6.0)
    move(module, CARD)
    move(module, "cpu")
    assert torch.equal(module[0].bias, torch.full((32,), 6.0))
    assert torch.equal(module[0].weight, torch.full((32, 32), 7.0))
    module[1].weight.data = torch.full((32, 32), 8.0)  # after it lay in its block
    there_and_back(module)
    assert torch.equal(module[1].weight, torch.full((32, 32), 8.0))


def test_without_leave_nothing_is_locked(driver: Driver) -> None:
    module = net()
    pinned._locked.may = 0
    there_and_back(module)
    move(module, CARD, keep_copy=False)
    assert driver.calls == 0 and not any(pinned._PLACE in tensor.__dict__ for tensor in all_tensors(module))


def test_no_more_is_locked_than_may_be(driver: Driver) -> None:
    module = net()
    pinned._locked.may = 10_000  # two of its four matrices
    there_and_back(module)
    assert 0 < sum(driver.locked.values()) <= 10_000
    assert sum(in_locked_memory(module)) >= 2 and not all(in_locked_memory(module))
    before = [tensor.clone() for tensor in all_tensors(module)]
    there_and_back(module)
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))


@pytest.mark.parametrize("refuses_at", [0, 2])
def test_a_refusal_is_told_once_and_weights_stay_where_they_are(
    refuses_at: int,
    driver: Driver,
    caplog: pytest.LogCaptureFixture,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver.refuses_at = refuses_at
    module = net()
    before = [tensor.clone() for tensor in all_tensors(module)]
    there_and_back(module)
    there_and_back(net())
    assert len([r for r in caplog.records if "could not be page-locked" in r.message]) == 1
    assert driver.calls == refuses_at + 1 and not pinned.allowed()
    there_and_back(module)
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))
    pinned.allow(on_a_card(settings, monkeypatch))
    assert not pinned.allowed(), "it is not asked again"


def test_exports_on_the_cpu_take_no_leave_away(
    settings: Settings, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headshot_ui.pinned.total_ram_bytes", lambda: 1000)
    pinned.allow(on_a_card(settings, monkeypatch))
    pinned.allow(settings)
    assert pinned._locked.may == 1000 * LOCKED_SHARE


def on_a_card(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    monkeypatch.setattr("sys.platform", "linux")
    return Settings.from_environment(root=settings.root, device="cuda", environment={})


def test_small_things_are_not_worth_a_block(driver: Driver) -> None:
    there_and_back(torch.nn.Linear(8, 8).requires_grad_(False))
    assert driver.calls == 0


# --- the end ------------------------------------------------------------------------------------------
def test_a_module_that_goes_is_unlocked(driver: Driver) -> None:
    module = net()
    there_and_back(module)
    move(module, CARD)
    del module
    assert driver.locked == {} and pinned._locked.bytes == 0


def test_a_module_that_goes_before_its_turn_is_not_locked_at_all(driver: Driver) -> None:
    module = net()
    with pinned._locked.turn:
        move(module, CARD)
        del module
    pinned.settle()
    assert driver.calls == 0


def test_forgotten_copies_are_unlocked(driver: Driver) -> None:
    module = net()
    there_and_back(module)
    move(module, CARD)
    forget_copies(module)
    assert driver.locked == {}


# --- how much -----------------------------------------------------------------------------------------
def test_a_share_of_main_memory_may_be_locked_but_none_under_a_limit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = on_a_card(settings, monkeypatch)
    assert lockable_bytes(1000, card) == 1000 * LOCKED_SHARE
    assert lockable_bytes(1000, replace(card, ram_limit_bytes=900)) == 0
    assert lockable_bytes(1000, settings) == 0, "a CPU has nothing to fill"
    monkeypatch.setattr("sys.platform", "win32")
    assert lockable_bytes(1000, card) == 1000 * LOCKED_SHARE_WINDOWS < 500


# --- sent ahead ---------------------------------------------------------------------------------------
class Ahead:
    """The side stream: copies to the card, and the events that were waited for."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.sent: list[int] = []
        self.waited = 0
        self.full_at = 10**9  # copies

    def __call__(self, here: torch.Tensor, device: str, dtype: torch.dtype | None) -> tuple[torch.Tensor, Ahead]:
        if len(self.sent) == self.full_at:
            raise torch.OutOfMemoryError
        self.sent.append(here.data_ptr())
        return self.card.take(here, device, dtype), self

    def wait(self) -> None:
        self.waited += 1


@pytest.fixture
def ahead(card: Card, monkeypatch: pytest.MonkeyPatch) -> Ahead:
    fake = Ahead(card)
    monkeypatch.setattr(swapping, "_ahead", fake)
    return fake


def test_what_was_sent_ahead_is_waited_for_and_not_sent_again(driver: Driver, card: Card, ahead: Ahead) -> None:
    module = net()
    before = [tensor.clone() for tensor in all_tensors(module)]
    assert not swapping.send(module, CARD, 2**20), "it is not in locked memory yet"
    there_and_back(module)
    card.sent.clear()
    assert swapping.send(module, CARD, 2**20) and sorted(ahead.sent) == sorted(driver.locked)
    assert not any(card.holds(tensor) for tensor in all_tensors(module)) and ahead.waited == 0
    move(module, CARD)
    assert len(card.sent) == len(ahead.sent) == ahead.waited
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))
    move(module, "cpu")
    move(module, CARD)
    assert len(card.sent) == 2 * len(ahead.sent) == 2 * ahead.waited, "the usual way again"


@pytest.mark.parametrize(("room", "full_at", "blocks"), [(9000, 99, 3), (4000, 99, 0), (2**20, 1, 1)])
def test_no_more_is_sent_ahead_than_there_is_room(
    room: int, full_at: int, blocks: int, driver: Driver, ahead: Ahead
) -> None:
    module = net()
    before = [tensor.clone() for tensor in all_tensors(module)]
    there_and_back(module)
    ahead.full_at = full_at
    assert swapping.send(module, CARD, room) == (blocks > 0) and len(ahead.sent) == blocks
    move(module, CARD)
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(module), before, strict=True))


def test_changing_the_number_format_takes_room_for_both(driver: Driver, ahead: Ahead) -> None:
    module = net().half()
    there_and_back(module)
    first = next(iter(driver.locked.values()))
    assert not swapping.send(module, CARD, 2 * first - 1, torch.bfloat16)
    assert swapping.send(module, CARD, 2 * first, torch.bfloat16)
    move(module, CARD, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16} and ahead.waited == 1


def test_what_is_not_wanted_after_all_goes_when_its_copy_has_ended(driver: Driver, card: Card, ahead: Ahead) -> None:
    module = net()
    there_and_back(module)
    swapping.send(module, CARD, 2**20)
    move(module, "cpu")
    assert ahead.waited == len(ahead.sent)
    places = [pinned.place_of(tensor) for tensor in all_tensors(module)]
    assert all(place is not None and place.block.coming is None for place in places)
    swapping.send(module, CARD, 2**20)
    sent = len(card.sent)
    move(module, CARD, dtype=torch.float64)  # and in another format it is of no use
    assert len(card.sent) > sent and module[0].weight.dtype == torch.float64
