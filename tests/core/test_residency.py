"""Which models stay in memory, which leave the device, and what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headshot_ui import residency as residency_module
from headshot_ui.errors import Cancelled, MemoryBudgetError, ModelError
from headshot_ui.memory import OVERHEAD_BYTES
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.settings import Settings
from tests.core.fakes import FakeLoaded, write_weights

AWAY = frozenset[str]()


class Loader:
    """Loads a fake model under its key, whose one weight file has ``numbers`` float32 numbers."""

    def __init__(self, models_dir: Path, kind: str, name: str, numbers: int = 0) -> None:
        self.key = ModelKey(kind, name, name.title(), (models_dir / name,))
        self.made: list[FakeLoaded] = []
        self.resize(numbers)

    def resize(self, numbers: int, part: str = "unet") -> None:
        write_weights(self.key.files[0] / part / "x.safetensors", {"w": ("F32", numbers)})

    def __call__(self) -> FakeLoaded:
        self.made.append(FakeLoaded(self.key))
        return self.made[-1]

    @property
    def only(self) -> FakeLoaded:
        (one,) = self.made
        return one


@pytest.fixture
def residency(settings: Settings) -> Residency:
    return Residency(settings)


@pytest.fixture
def demo(settings: Settings) -> Loader:
    return Loader(settings.models_dir, "base", "demo")


@pytest.fixture
def other(settings: Settings) -> Loader:
    return Loader(settings.models_dir, "base", "other")


@pytest.fixture
def refiner(settings: Settings) -> Loader:
    return Loader(settings.models_dir, "refiner", "refiner")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend a size of main memory, and how much of it is free (a function is asked each time)."""

    def set_memory(free: int | Callable[[], int], total: int = 2**40) -> None:
        answer = free if callable(free) else lambda: free
        monkeypatch.setattr(residency_module, "free_ram_bytes", answer)
        monkeypatch.setattr(residency_module, "total_ram_bytes", lambda: total)

    return set_memory


@pytest.fixture
def card(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Residency]:
    """A residency on a card with so many bytes free."""

    def make(free: int) -> Residency:
        monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
        monkeypatch.setattr(residency_module, "free_vram_bytes", lambda settings: free)
        monkeypatch.setattr(residency_module, "vram_budget_bytes", lambda settings: free)
        return Residency(Settings.from_environment(root=settings.root, device="cuda", dtype="float32", environment={}))

    return make


def use(residency: Residency, *loaders: Loader) -> None:
    for loader in loaders:
        with residency.use(loader.key, loader):
            pass


# --- one model ----------------------------------------------------------------------------------------
def test_the_same_model_is_loaded_once_and_loras_are_off_after_each_use(residency: Residency, demo: Loader) -> None:
    for _ in range(3):
        with residency.use(demo.key, demo) as loaded:
            loaded.use_loras([(Path("a"), 1.0)])
    assert demo.only.released == 0 and demo.only.loras[-1] == () and residency.resident == (demo.key,)


def test_a_changed_model_of_the_same_id_takes_the_place_of_the_old_one(residency: Residency, demo: Loader) -> None:
    use(residency, demo)
    changed = replace(demo.key, version="other defaults")
    with residency.use(changed, demo):
        assert residency.resident == (changed,)
    assert [loaded.released for loaded in demo.made] == [1, 0]


def test_a_cancel_keeps_the_model_without_its_loras(residency: Residency, demo: Loader) -> None:
    with pytest.raises(Cancelled), residency.use(demo.key, demo) as loaded:
        loaded.use_loras([(Path("a"), 1.0)])
        raise Cancelled
    assert residency.resident == (demo.key,) and demo.only.released == 0 and demo.only.loras[-1] == ()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyboardInterrupt()])
def test_any_other_error_evicts(residency: Residency, demo: Loader, error: BaseException) -> None:
    with pytest.raises(type(error)), residency.use(demo.key, demo):
        raise error
    assert residency.resident == () and demo.only.released == 1
    with residency.use(demo.key, demo):
        assert len(demo.made) == 2


def test_a_model_that_cannot_be_cleaned_is_evicted(
    residency: Residency, demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeLoaded, loras: Any) -> None:
        raise RuntimeError("cannot take it off")

    monkeypatch.setattr(FakeLoaded, "use_loras", broken)
    with pytest.raises(RuntimeError, match="cannot take it off"), residency.use(demo.key, demo):
        pass
    assert residency.resident == ()


def test_eviction_lets_go_of_the_model(residency: Residency, demo: Loader) -> None:
    use(residency, demo)
    watch = weakref.ref(demo.made.pop())
    residency.evict()
    assert watch() is None


def test_eviction_survives_a_broken_release(
    residency: Residency, demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeLoaded) -> None:
        raise RuntimeError("the GPU is lost")

    monkeypatch.setattr(FakeLoaded, "release", broken)
    use(residency, demo)
    residency.evict()
    assert residency.resident == ()


def test_a_failed_load_leaves_nothing_behind_and_the_others_as_they_are(
    residency: Residency, demo: Loader, other: Loader
) -> None:
    use(residency, demo)

    def load() -> Any:
        raise ModelError("damaged")

    with pytest.raises(ModelError), residency.use(other.key, load):
        pass
    assert residency.resident == (demo.key,) and demo.only.released == 0


def test_a_thing_with_nothing_to_move_is_held_all_the_same(residency: Residency, demo: Loader) -> None:
    key = ModelKey("detector", "faces", "Face detector", ())
    thing = object()
    for _ in range(2):
        with residency.use(key, lambda: thing) as found:
            assert found is thing
        use(residency, demo)
    residency.evict()
    assert residency.resident == ()


# --- several, one inside the other --------------------------------------------------------------------
def test_the_base_stays_while_the_refiner_is_used_and_each_leaves_the_device_for_the_other(
    residency: Residency, demo: Loader, refiner: Loader
) -> None:
    with residency.use(demo.key, demo) as base:
        base.use_loras([(Path("a"), 1.0)])
        for turn in range(1, 3):
            with residency.use(refiner.key, refiner):
                assert demo.only.kept == [AWAY] * turn, "the base leaves the device first"
                assert demo.only.loras[-1] == ((Path("a"), 1.0),), "and keeps its LoRA, for it is still in use"
            assert refiner.only.kept == [AWAY] * turn, "then the refiner makes way for the base"
    assert demo.only.loras[-1] == () and (demo.only.released, refiner.only.released) == (0, 0)
    assert set(residency.resident) == {demo.key, refiner.key}


def test_a_model_used_twice_at_once_is_cleaned_when_the_last_use_ends(residency: Residency, demo: Loader) -> None:
    with residency.use(demo.key, demo) as outer:
        with residency.use(demo.key, demo) as inner:
            assert inner is outer
        assert demo.only.loras == [] and demo.only.kept == []
    assert demo.only.loras == [()]


def test_an_error_inside_evicts_what_is_in_use_and_nothing_else(
    residency: Residency, demo: Loader, other: Loader, refiner: Loader
) -> None:
    use(residency, other)
    with pytest.raises(ZeroDivisionError), residency.use(demo.key, demo), residency.use(refiner.key, refiner):
        raise ZeroDivisionError
    assert (demo.only.released, refiner.only.released) == (1, 1) and residency.resident == (other.key,)


def test_an_error_that_the_outer_block_survives_costs_only_the_inner_model(
    residency: Residency, demo: Loader, refiner: Loader
) -> None:
    with residency.use(demo.key, demo):
        with pytest.raises(ZeroDivisionError), residency.use(refiner.key, refiner):
            raise ZeroDivisionError
        assert residency.resident == (demo.key,)
    assert demo.only.released == 0 and refiner.only.released == 1


def test_a_cancel_inside_keeps_all_of_them(residency: Residency, demo: Loader, refiner: Loader) -> None:
    with pytest.raises(Cancelled), residency.use(demo.key, demo), residency.use(refiner.key, refiner):
        raise Cancelled
    assert set(residency.resident) == {demo.key, refiner.key} and demo.only.loras[-1] == ()


def test_what_is_in_use_is_evicted_only_when_its_block_ends(residency: Residency, demo: Loader) -> None:
    with residency.use(demo.key, demo):
        residency.evict()
        assert demo.only.released == 0
    assert demo.only.released == 1 and residency.resident == ()


# --- the device ---------------------------------------------------------------------------------------
def test_on_a_card_small_models_stay_beside_each_other(
    card: Callable[[int], Residency], demo: Loader, refiner: Loader
) -> None:
    for loader in (demo, refiner):
        loader.resize(1_000_000)  # 4 MB each
    on_card = card(OVERHEAD_BYTES * 100)  # a quarter holds them easily
    use(on_card, demo, refiner, demo)
    assert demo.only.kept == [] and refiner.only.kept == []


def test_on_a_card_unused_models_leave_before_those_in_use(
    card: Callable[[int], Residency], demo: Loader, refiner: Loader, other: Loader
) -> None:
    quarter = (OVERHEAD_BYTES + 2**28) // 4
    for loader in (demo, refiner, other):
        loader.resize(quarter * 2 // 5 // 4)  # two fit into a quarter of the card, three do not
    on_card = card(OVERHEAD_BYTES + 2**28)
    use(on_card, other)
    with on_card.use(demo.key, demo), on_card.use(refiner.key, refiner):
        pass
    assert other.only.kept == [AWAY], "nobody uses it"
    assert demo.only.kept == [] and refiner.only.kept == []


def test_a_large_model_that_says_what_it_takes_stays_beside_small_networks(
    card: Callable[[int], Residency], settings: Settings, demo: Loader, other: Loader
) -> None:
    """Its weights are more than a quarter of the card, and it was found that with all it computes it takes half."""
    gib = 2**30
    demo.resize(3 * gib // 4)
    other.resize(1000)
    detector = Loader(settings.models_dir, "detector", "faces", 1000)
    on_card = card(8 * gib)
    use(on_card, demo, detector)
    assert demo.only.kept == [AWAY], "nothing is known of it"
    demo.only.takes_bytes = 4 * gib
    demo.only.kept.clear()
    use(on_card, demo, detector, demo, detector)
    assert demo.only.kept == []
    use(on_card, other)
    assert demo.only.kept == [AWAY], "another base may be to do anything"
    demo.only.takes_bytes = 7.5 * gib
    demo.only.kept.clear()
    use(on_card, demo, detector)
    assert demo.only.kept == [AWAY], "not clearly"


def test_what_comes_next_sets_out_into_spare_room_and_counts_as_there(
    card: Callable[[int], Residency], demo: Loader, refiner: Loader, other: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[frozenset[str], int]] = []
    answers = [False, True]
    monkeypatch.setattr(FakeLoaded, "expect", lambda self, *given: asked.append(given) or answers.pop(0), raising=False)
    monkeypatch.setattr(residency_module, "spare_vram_bytes", lambda settings: 123)
    for loader in (demo, refiner, other):
        loader.resize(OVERHEAD_BYTES)
    on_card = card(OVERHEAD_BYTES * 6)
    parts = frozenset({"denoiser"})
    on_card.expect(refiner.key, parts)
    assert asked == [], "it is not in memory"
    use(on_card, refiner)
    with on_card.use(demo.key, demo):
        left = len(refiner.only.kept)
        on_card.expect(refiner.key, parts)
        use(on_card, other)
        assert len(refiner.only.kept) == left, "nothing of it set out"
        on_card.expect(refiner.key, parts)
        assert asked == [(parts, 123)] * 2
        on_card.expect(refiner.key, parts)
        assert len(asked) == 2, "it is there"
        use(on_card, other)
        assert refiner.only.kept[left:] == [AWAY], "and leaves for another"


def test_the_graphics_memory_must_hold_the_largest_part(card: Callable[[int], Residency], demo: Loader) -> None:
    on_card = card(OVERHEAD_BYTES + 3_000_000)
    for part in ("unet", "text_encoder"):
        demo.resize(700_000, part)
    use(on_card, demo)  # 2.8 MB each: they take turns
    on_card.evict()
    demo.resize(800_000)
    with pytest.raises(MemoryBudgetError, match="of graphics memory"):
        use(on_card, demo)


# --- main memory --------------------------------------------------------------------------------------
def test_the_longest_unused_goes_first_and_before_the_load(
    residency: Residency, settings: Settings, memory: Callable[..., None]
) -> None:
    a, b, c = loaders = [Loader(settings.models_dir, "base", name, 1_000_000) for name in "abc"]
    held = lambda: 4_000_000 * sum(sum(1 - one.released for one in loader.made) for loader in loaders)  # noqa: E731
    memory(lambda: OVERHEAD_BYTES + 9_000_000 - held())  # room for two of them
    use(residency, a, b, a)
    assert residency.resident == (b.key, a.key)

    def load() -> FakeLoaded:
        assert (a.only.released, b.only.released) == (0, 1), "room is there before the new one comes"
        return c()

    with residency.use(c.key, load):
        pass
    assert residency.resident == (a.key, c.key)


def test_no_more_than_is_needed_is_evicted_but_as_much_as_is(
    residency: Residency, settings: Settings, memory: Callable[..., None]
) -> None:
    small = [Loader(settings.models_dir, "base", name, 500_000) for name in "abcd"]
    large = Loader(settings.models_dir, "base", "large", 1_250_000)
    held = lambda: 2_000_000 * sum(sum(1 - one.released for one in loader.made) for loader in small)  # noqa: E731
    memory(lambda: OVERHEAD_BYTES + 9_000_000 - held())
    use(residency, *small, large)
    assert [loader.only.released for loader in small] == [1, 1, 0, 0]


def test_unused_models_keep_to_half_of_main_memory(
    residency: Residency, settings: Settings, memory: Callable[..., None]
) -> None:
    a, b, c = (Loader(settings.models_dir, "base", name, 1_000_000) for name in "abc")
    memory(2**40, total=2 * 9_000_000)
    use(residency, a, b)
    assert set(residency.resident) == {a.key, b.key}
    use(residency, c)
    assert set(residency.resident) == {b.key, c.key}


def test_what_is_in_use_is_never_evicted_for_room(
    residency: Residency, demo: Loader, refiner: Loader, memory: Callable[..., None]
) -> None:
    for loader in (demo, refiner):
        loader.resize(1_000_000)
    memory(lambda: OVERHEAD_BYTES + 5_000_000 - 4_000_000 * len(demo.made))
    with residency.use(demo.key, demo):
        with pytest.raises(MemoryBudgetError, match="“Refiner” needs"), residency.use(refiner.key, refiner):
            pass
        assert demo.only.released == 0 and refiner.made == []


def test_a_model_that_does_not_fit_is_refused_before_loading_and_the_nearest_named(
    residency: Residency, settings: Settings, demo: Loader, other: Loader, memory: Callable[..., None]
) -> None:
    tiny = Loader(settings.models_dir, "base", "tiny", 1000)
    demo.resize(4_000_000)
    other.resize(2_000_000)
    memory(OVERHEAD_BYTES + 10_000_000)
    words = r"“Demo” needs about 527\.3 MB of memory and 521\.5 MB is free: .*choose the base model “other”\."
    with pytest.raises(MemoryBudgetError, match=words), residency.use(demo.key, demo, [tiny.key, other.key]):
        pass
    assert not demo.made
    with pytest.raises(MemoryBudgetError, match="no installed model needs less"):
        use(residency, demo)
    use(residency, other)


def test_bases_count_in_the_number_format_they_are_loaded_in_and_networks_for_faces_in_float32(
    settings: Settings,
) -> None:
    half = Residency(Settings.from_environment(root=settings.root, device="cpu", dtype="bfloat16", environment={}))
    for kind, expected in (("base", 2_000_000), ("refiner", 2_000_000), ("restorer", 4_000_000)):
        loader = Loader(settings.models_dir, kind, kind, 1_000_000)
        assert half.memory_for(loader.key)[0].needed == expected + OVERHEAD_BYTES


def test_what_is_in_use_drops_parts_before_another_model_is_refused(
    residency: Residency, demo: Loader, refiner: Loader, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loader in (demo, refiner):
        loader.resize(1_000_000)
    shed: list[object] = []
    monkeypatch.setattr(FakeLoaded, "shed", lambda self: shed.append(self), raising=False)
    memory(lambda: OVERHEAD_BYTES + 5_000_000 - (4_000_000 if demo.made and not shed else 0))
    with residency.use(demo.key, demo), residency.use(refiner.key, refiner):
        assert shed == [demo.only] and demo.only.released == 0
    use(residency, demo)
    assert len(demo.made) == 1, "it was not loaded anew"


def test_a_limit_of_main_memory_counts_what_the_process_has(
    settings: Settings, demo: Loader, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.resize(1_000_000)
    memory(2**40)
    monkeypatch.setattr("headshot_ui.memory.own_ram_bytes", lambda: 2**30)
    for room, fits in ((3_000_000, False), (5_000_000, True)):
        limited = Residency(replace(settings, ram_limit_bytes=2**30 + OVERHEAD_BYTES + room))
        assert limited.memory_for(demo.key)[0].fits == fits


def test_a_refusal_on_a_card_says_who_holds_its_memory(
    card: Callable[[int], Residency], memory: Callable[..., None], demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(2**40)
    monkeypatch.setattr(residency_module, "out_of_graphics_memory", lambda: "A game holds 5 GB: close it.")
    with pytest.raises(MemoryBudgetError) as told, card(-5).use(demo.key, demo):
        pass
    assert "of graphics memory and 0 bytes is free" in str(told.value), "less than nothing is nothing"
    assert str(told.value).endswith(". A game holds 5 GB: close it.") and demo.made == []
    memory(5)
    with pytest.raises(MemoryBudgetError) as told, card(2**40).use(demo.key, demo):
        pass
    assert "game" not in str(told.value), "main memory is another matter"


def test_the_allocator_is_limited_before_anything_is_loaded(
    residency: Residency, memory: Callable[..., None], demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(2**40)
    loaded_when_limited: list[int] = []
    monkeypatch.setattr(residency_module, "limit_vram", lambda settings: loaded_when_limited.append(len(demo.made)))
    use(residency, demo, demo)
    assert loaded_when_limited == [0, 1], "and anew at each use: what others leave free changes"
