"""When graphics memory runs out while drawing: on in a smaller way, the same pictures, and none of them lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.families.protocol import DenoiseRequest, DenoiseStep, RefineRequest
from headshot_ui.generation.plan import PIXELS_PER_BATCH
from headshot_ui.generation.records import read_ranking
from headshot_ui.generation.runner import DRAWING, GenerateResult, generate
from headshot_ui.less_memory import LEAST_LESS
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import read_png_metadata
from tests.generation.fakes import FakeBase, FakeFamily, FakeRefiner, Reports, make_store
from tests.generation.test_generate import lora_file

SPEC = GenerateSpec("robin", "fake", prompt="portrait of {subject}", count=6, seed=10, width=256, height=256)
SHORT = "CUDA out of memory. Tried to allocate 136.00 MiB."


@pytest.fixture(autouse=True)
def by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of 256 x 256 at once, as a GPU might."""
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 4 * 256**2)


@dataclass
class SmallCard(FakeBase):
    """Holds so many pictures at once from the given batch on, in the way it was last made to fit."""

    holds: int = 4
    since: int = 0  # batches that were tried
    ways: list[Fitting] = field(default_factory=list)  # from the largest
    way: int = 0
    enough: int = 0  # the first way that holds a picture
    fits: list[tuple[DenoiserWork, str | None, int | None]] = field(default_factory=list)
    tried: list[tuple[int, ...]] = field(default_factory=list)
    undecoded: int = 0  # decodings that fail
    decoded: list[bool] = field(default_factory=list)  # in tiles

    def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> Any:
        self.fits.append((work, precision, under))
        for index, way in enumerate(self.ways):
            if precision in (None, way.precision) and (under is None or way.vram_bytes <= under):
                self.way = index
                return way
        if self.ways:
            raise MemoryBudgetError("Nothing fits.")
        return None

    def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        self.tried.append(tuple(request.seeds))
        short = len(self.tried) > self.since and (len(request.seeds) > self.holds or self.way < self.enough)
        for step in super().denoise(request):
            yield step
            if short and step.step == 2:
                raise torch.OutOfMemoryError(SHORT)

    def decode_latents(self, latents: torch.Tensor, in_tiles: bool = False) -> list[Image.Image]:
        self.decoded.append(in_tiles)
        if len(self.decoded) <= self.undecoded:
            raise torch.OutOfMemoryError(SHORT)
        return super().decode_latents(latents)


def way(title: str, gib: float, precision: str = "") -> Fitting:
    return Fitting(title, f"It fits in {title}.", precision, int(gib * 2**30), 1, 1)


WAYS = [way("16 bit", 25), way("16 bit, less", 20), way("8 bit", 11, "8 bit"), way("8 bit, streamed", 8, "8 bit")]

Drawn = Callable[..., tuple[list[bytes], Reports]]


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    def of(base: FakeBase, name: str = "a", spec: GenerateSpec = SPEC) -> tuple[list[bytes], Reports]:
        reports = Reports()
        made = generate(spec, make_store(tmp_path / name), base, reports)
        return files(made), reports

    return of


def files(made: GenerateResult) -> list[bytes]:
    return [picture.path.read_bytes() for picture in made.pictures]


# --- fewer at once ------------------------------------------------------------------------------------
def test_a_batch_is_halved_until_it_fits(drawn: Drawn) -> None:
    wanted = drawn(FakeBase(), "whole")[0]
    base = SmallCard(holds=1)
    found, reports = drawn(base)
    assert found == wanted and len(found) == 6
    assert base.tried == [(10, 11, 12, 13), (10, 11), (10,), (11,), (12,), (13,), (14,), (15,)]
    assert [note.split("so ")[1] for note in reports.notes] == [
        "2 pictures are drawn at a time from here on.", "one picture is drawn at a time from here on."
    ]  # fmt: skip
    steps = [step for stage, step, _ in reports.seen if stage == DRAWING]
    assert steps[-1] == 36 and all(total == 36 for stage, _, total in reports.seen if stage == DRAWING)


def test_what_was_drawn_before_is_not_drawn_again(drawn: Drawn) -> None:
    wanted = drawn(FakeBase(), "whole", replace(SPEC, count=8))[0]
    base = SmallCard(holds=2, since=1)
    found, _ = drawn(base, spec=replace(SPEC, count=8))
    assert found == wanted
    assert base.tried == [(10, 11, 12, 13), (14, 15, 16, 17), (14, 15), (16, 17)]


def test_larger_pictures_that_wait_are_drawn_in_as_few_pixels_at_once() -> None:
    from headshot_ui.generation.plan import PlannedPicture
    from headshot_ui.generation.smaller import draw_all

    def group(side: int, *indexes: int) -> list[PlannedPicture]:
        return [PlannedPicture(index, "", "", "", "", index, side, side) for index in indexes]

    seen: list[tuple[list[int], bool]] = []

    def draw(batch: Any, last: bool) -> None:
        seen.append(([picture.index for picture in batch], last))
        if len(seen) == 1:
            raise torch.OutOfMemoryError(SHORT)

    let_go: list[int] = []
    draw_all([group(64, 0, 1, 2, 3), group(128, 4, 5), group(32, *range(6, 16))], draw, lambda said: None, "cpu",
             let_go=lambda: let_go.append(len(seen)))  # fmt: skip
    assert [batch for batch, _ in seen] == [[0, 1, 2, 3], [0, 1], [2, 3], [4], [5], [*range(6, 14)], [14, 15]]
    assert [last for _, last in seen] == [False] * 6 + [True] and let_go == [1]


def test_the_refiner_draws_fewer_at_once_too(drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = lora_file(tmp_path / "refiner.safetensors")
    monkeypatch.setattr("headshot_ui.families.all_families", lambda: {"sdxl": FakeFamily(weights)})
    spec = replace(SPEC, refine="img2img")

    class Refiner(FakeRefiner):
        def refine(self, request: RefineRequest) -> Iterator[DenoiseStep]:
            if len(request.seeds) > self.holds:
                self.requests.append(request)
                raise torch.OutOfMemoryError(SHORT)
            return super().refine(request)

    def made(holds: int) -> tuple[list[bytes], list[int]]:
        base, refiner = FakeBase(), Refiner([])
        refiner.holds = holds  # type: ignore[attr-defined]
        result = generate(spec, make_store(tmp_path / str(holds)), base, Reports(), open_refiner=refiner.open)
        return files(result), [len(request.seeds) for request in refiner.requests]

    whole, at_once = made(4)
    assert at_once == [4, 2]
    assert made(2) == (whole, [4, 2, 2, 2])


# --- a smaller way ------------------------------------------------------------------------------------
def test_a_single_picture_is_drawn_in_the_next_smaller_way(drawn: Drawn, tmp_path: Path) -> None:
    """Nothing was drawn yet, so that any number format will do; the pictures say which it was."""
    base = SmallCard(holds=4, ways=WAYS, enough=2)
    found, reports = drawn(base)
    assert len(found) == 6 and base.tried[2:] == [(10,)] * 3 + [(seed,) for seed in range(11, 16)]
    work = DenoiserWork(None, 256, 256, 1, 6)
    assert [(asked[1], asked[2]) for asked in base.fits] == [
        (None, None), (None, WAYS[0].vram_bytes - LEAST_LESS), (None, WAYS[1].vram_bytes - LEAST_LESS)
    ]  # fmt: skip
    assert base.fits[0][0] == replace(work, batch=4) and all(asked[0] == work for asked in base.fits[1:])
    assert reports.notes[-1].endswith("drawing goes on in a smaller way. It fits in 8 bit.")
    one = next((tmp_path / "a").rglob("0*.png"))
    assert read_png_metadata(one)["precision"] == "8 bit"
    assert base.events.count(("keep", "denoiser")) == 3


def test_pictures_of_one_request_keep_to_their_number_format(tmp_path: Path) -> None:
    base = SmallCard(holds=4, since=1, ways=WAYS, enough=2)
    with pytest.raises(torch.OutOfMemoryError, match="136"):
        generate(SPEC, make_store(tmp_path), base, Reports())
    assert [asked[1] for asked in base.fits] == [None, "", ""] and base.way == 1
    (ranking,) = tmp_path.rglob("headshots.json")
    assert len(read_ranking(ranking.parent)) == 4, "what was drawn is there"


def test_without_a_smaller_way_it_is_the_error_that_is_told(tmp_path: Path) -> None:
    base = SmallCard(holds=0)
    with pytest.raises(torch.OutOfMemoryError, match="136"):
        generate(SPEC, make_store(tmp_path), base, Reports())
    assert base.tried == [(10, 11, 12, 13), (10, 11), (10,)] and len(base.fits) == 1


def test_the_way_of_a_large_batch_is_not_tried_again_for_one_picture(drawn: Drawn) -> None:
    """What is asked for is another way, not a smaller figure for the same one."""

    class Estimating(SmallCard):
        def fit(self, work: DenoiserWork, precision: str | None = None, under: int | None = None) -> Any:
            more = 3 * 2**30 if work.batch > 1 else 0
            found = super().fit(work, precision, under)
            return replace(found, vram_bytes=found.vram_bytes + more)

    base = Estimating(holds=4, ways=WAYS, enough=1)
    drawn(base)
    assert base.way == 1 and base.tried.count((10,)) == 2


# --- decoding -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("fails", "tiles"), [(1, [False, False]), (2, [False, False, True])])
def test_a_picture_is_decoded_alone_on_the_card_and_then_in_tiles(drawn: Drawn, fails: int, tiles: list[bool]) -> None:
    base = SmallCard(undecoded=fails)
    found, _ = drawn(base)
    assert found == drawn(FakeBase(), "whole")[0] and base.decoded == tiles + [False] * 5
    assert base.events.count(("keep",)) == fails and base.events.count(("keep", "vae")) == 1 + fails


def test_a_picture_that_cannot_be_decoded_costs_no_other(tmp_path: Path) -> None:
    base = SmallCard()

    def decode(latents: torch.Tensor, in_tiles: bool = False) -> list[Image.Image]:
        if latents[0, 0, 0, 0] == 12:
            raise torch.OutOfMemoryError(SHORT)
        return FakeBase.decode_latents(base, latents)

    base.decode_latents = decode  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError, match="136"):
        generate(SPEC, make_store(tmp_path), base, Reports())
    assert len(list(tmp_path.rglob("0*.png"))) == 5


def test_other_errors_are_not_mistaken_for_it(tmp_path: Path) -> None:
    base = SmallCard()
    base.fail_in_batch = 1
    with pytest.raises(RuntimeError, match="^out of memory$"):
        generate(SPEC, make_store(tmp_path), base, Reports())
    assert base.tried == [(10, 11, 12, 13)]
