"""The refiner's stage: when it comes, what it is asked for, and what is kept when it stops or does harm."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui import families
from headshot_ui.errors import Cancelled, MemoryBudgetError, ModelError, SpecError
from headshot_ui.generation.plan import PIXELS_PER_BATCH
from headshot_ui.generation.records import Picture, read_ranking, regenerate
from headshot_ui.generation.refine import LIKENESS_MAY_FALL_BY, RefinerDoor, chosen_refiner, why_not_refined
from headshot_ui.generation.runner import DRAWING, FINISHING, REFINING, GenerateResult, generate
from headshot_ui.likeness import Likeness
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, read_png_metadata
from tests.generation.fakes import (
    INFO,
    REFINED_GREEN,
    REFINER,
    FakeBase,
    FakeFamily,
    FakeRefiner,
    RedJudge,
    Reports,
    make_store,
)
from tests.generation.test_generate import folders, lora_file

SPEC = GenerateSpec("robin", "fake", prompt="{subject}", count=6, seed=100, steps=10, width=256, height=256)
ENSEMBLE, IMG2IMG = replace(SPEC, refine="ensemble"), replace(SPEC, refine="img2img")


def info_with(**defaults: object):
    return replace(INFO, defaults=replace(INFO.defaults, **defaults))


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFamily:
    """A refiner is installed, and four pictures are drawn at once."""
    (tmp_path / "weights").write_bytes(b"weights")
    fake = FakeFamily(tmp_path / "weights")
    monkeypatch.setattr(families, "all_families", lambda: {"sdxl": fake})
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 4 * 256**2)
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


@pytest.fixture
def base() -> FakeBase:
    return FakeBase()


@pytest.fixture
def refiner(base: FakeBase, family: FakeFamily) -> FakeRefiner:
    return FakeRefiner(base.events)


def colour(picture: Picture) -> tuple[int, ...]:
    with Image.open(picture.path) as image:
        return image.getpixel((0, 0))


def is_refined(picture: Picture) -> bool:
    return colour(picture)[1] == REFINED_GREEN


def draw(
    spec: GenerateSpec, store: Store, base: FakeBase, refiner: FakeRefiner, judge=None, **reports
) -> GenerateResult:
    return generate(spec, store, base, Reports(**reports), judge, refiner.open)


# --- order and requests ---------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", [ENSEMBLE, IMG2IMG])
def test_the_base_leaves_before_the_refiner_comes_and_each_comes_once(
    spec: GenerateSpec, tmp_path: Path, store: Store, base: FakeBase, refiner: FakeRefiner
):
    draw(replace(spec, lora=str(lora_file(tmp_path / "me.safetensors"))), store, base, refiner)
    kinds = [
        e[0] if isinstance(e, tuple) and e[0] in ("encode", "denoise", "decode", "loras") else e for e in base.events
    ]
    order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    drawing = [("keep", "denoiser"), "denoise", "loras", ("keep",)]
    refining = ["open refiner", "refine", ("refiner keeps",), "close refiner"]
    assert order == ["loras", ("keep", "text"), "encode", *drawing, *refining, ("keep", "vae"), "decode"]
    loras = [event for event in base.events if event[0] == "loras"]
    assert [len(event) for event in loras] == [2, 1], "on for reading and drawing, off before the refiner"


def test_each_stage_is_told_while_the_one_before_computes(store: Store, base: FakeBase, refiner: FakeRefiner):
    told: list[int] = []
    reports = Reports()
    door = RefinerDoor(refiner.open, lambda: told.append(reports.seen[-1][1]))
    generate(ENSEMBLE, store, base, reports, None, door)
    encoded = base.events.index(next(event for event in base.events if event[0] == "encode"))
    assert base.expected == [(encoded + 1, "denoiser")], "after the first of several prompts"
    assert told == [4 * 8], "in the last batch of two, after its first step of eight"
    assert "open refiner" in base.events


def test_an_ensemble_splits_the_schedule_at_the_same_place(store: Store, base: FakeBase, refiner: FakeRefiner):
    seen = []
    original = base.denoise
    base.denoise = lambda request: seen.append(request) or original(request)  # type: ignore[method-assign]
    draw(replace(ENSEMBLE, refiner_switch=0.6), store, base, refiner)
    assert [request.stop_at for request in seen] == [0.6, 0.6]
    assert [(request.start_at, request.strength) for request in refiner.requests] == [(0.6, None), (0.6, None)]
    for mine, theirs in zip(seen, refiner.requests, strict=True):
        for name in ("seeds", "steps", "guidance_scale", "height", "width"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert (mine.embeds["prompt_embeds"] == theirs.embeds["prompt_embeds"]).all()


def test_img2img_draws_over_finished_pictures(store: Store, base: FakeBase, refiner: FakeRefiner):
    result = draw(replace(IMG2IMG, refiner_strength=0.4), store, base, refiner)
    assert [(request.start_at, request.strength) for request in refiner.requests] == [(None, 0.4), (None, 0.4)]
    assert refiner.requests[0].latents[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert [colour(picture)[:2] for picture in result.pictures] == [(seed, REFINED_GREEN) for seed in range(100, 106)]
    assert all(picture.refined and not picture.why_not_refined for picture in result.pictures)
    assert sum(event[0] == "decode" for event in base.events) == 6, "nobody judges, so nothing is decoded twice"


def test_a_refiner_that_reads_the_empty_prompt_gets_it_read(
    store: Store, base: FakeBase, family: FakeFamily, refiner: FakeRefiner
):
    draw(IMG2IMG, store, base, refiner)
    family.zeros = False
    draw(IMG2IMG, store, base, refiner)
    zeros, read = refiner.requests[0].negative_embeds, refiner.requests[-1].negative_embeds
    assert zeros["prompt_embeds"].unique().tolist() == [0]
    assert read["prompt_embeds"].unique().tolist() == [ord(" ")]


@pytest.mark.parametrize(("spec", "drawing", "refining"), [(ENSEMBLE, 8, 2), (IMG2IMG, 10, 3)])
def test_progress_of_both_stages_ends_at_its_total_and_shows_pictures(
    spec: GenerateSpec, drawing: int, refining: int, store: Store, base: FakeBase, refiner: FakeRefiner
):
    reports = Reports()
    generate(spec, store, base, reports, None, refiner.open)
    for stage, steps in ((DRAWING, drawing), (REFINING, refining)):
        seen = [step for name, step, _ in reports.seen if name == stage]
        assert seen == sorted(seen) and (seen[0], seen[-1]) == (0, 6 * steps)
        assert {total for name, _, total in reports.seen if name == stage} == {6 * steps}
    stages = list(dict.fromkeys(name for name, _, _ in reports.seen))
    assert stages[-3:] == [DRAWING, REFINING, FINISHING]


# --- what is written down -------------------------------------------------------------------------------
def test_the_request_is_completed_and_pictures_name_their_refiner(
    store: Store, base: FakeBase, family: FakeFamily, refiner: FakeRefiner
):
    import hashlib

    result = draw(ENSEMBLE, store, base, refiner)
    data = read_png_metadata(result.pictures[0].path)
    fields = ("refine", "refiner", "refiner_switch", "refiner_strength")
    assert [data["request"][name] for name in fields] == ["ensemble", "fake-refiner", 0.8, 0.3]
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert data["refiner"] == {"id": "fake-refiner", "sha256": sha256, "way": "ensemble", "why_not_refined": ""}
    ranking = json.loads((result.folder / "headshots.json").read_text())
    assert ranking["refiner"]["sha256"] == sha256
    assert read_ranking(result.folder) == result.pictures


def test_without_refining_the_request_says_so(store: Store, base: FakeBase):
    data = read_png_metadata(generate(SPEC, store, base, Reports()).pictures[0].path)
    assert (data["request"]["refine"], data["request"]["refiner"], data["refiner"]) == ("off", None, None)


# --- stops and errors -----------------------------------------------------------------------------------
def test_a_stop_while_refining_finishes_img2img_pictures_as_they_are(
    store: Store, base: FakeBase, refiner: FakeRefiner
):
    # Reports of the stage: the start, 3 of the first batch of four, the rest of the second.
    with pytest.raises(Cancelled):
        draw(IMG2IMG, store, base, refiner, RedJudge(), cancel_stage=REFINING, cancel_at=5)
    kept = read_ranking(folders(store)[0])
    assert sorted(picture.seed for picture in kept) == [100, 101, 102, 103, 104, 105]
    for picture in kept:
        assert picture.refined == is_refined(picture) == (picture.seed < 104)
        assert ("stopped" in picture.why_not_refined) == (picture.seed >= 104)
        assert regenerate(picture.path).refine == ("img2img" if picture.seed < 104 else "off")
    assert json.loads((folders(store)[0] / "headshots.json").read_text())["state"] == "cancelled"
    assert ("refiner keeps",) in base.events


def test_a_stop_at_the_last_step_of_a_batch_keeps_the_batch(store: Store, base: FakeBase, refiner: FakeRefiner):
    with pytest.raises(Cancelled):
        draw(ENSEMBLE, store, base, refiner, cancel_stage=REFINING, cancel_at=3)
    assert sorted(p.seed for p in read_ranking(folders(store)[0]) if p.refined) == [100, 101, 102, 103]


def test_a_stop_while_refining_keeps_what_the_base_expected_of_the_rest(
    store: Store, base: FakeBase, refiner: FakeRefiner
):
    with pytest.raises(Cancelled):
        draw(ENSEMBLE, store, base, refiner, RedJudge(), cancel_stage=REFINING, cancel_at=4)
    kept = {picture.seed: picture for picture in read_ranking(folders(store)[0])}
    assert sorted(kept) == [100, 101, 102, 103, 104, 105]
    for seed, picture in kept.items():
        assert picture.refined == is_refined(picture) == (seed < 104)
        assert colour(picture)[0] == (seed if seed >= 104 else colour(picture)[0]), "clean, not noisy"
        assert ("draw it again to see it finished" in picture.why_not_refined) == (seed >= 104)
        assert picture.likeness is not None
        again = regenerate(picture.path)
        assert (again.refine, again.refiner) == ("ensemble", "fake-refiner"), "finished this time"


def test_a_family_that_cannot_tell_what_is_behind_the_noise_leaves_noisy_pictures_out_and_counts_them(
    store: Store, base: FakeBase, refiner: FakeRefiner, caplog: pytest.LogCaptureFixture
):
    base.tells_clean = False
    with pytest.raises(Cancelled), caplog.at_level(logging.WARNING):
        draw(ENSEMBLE, store, base, refiner, cancel_stage=REFINING, cancel_at=4)
    kept = read_ranking(folders(store)[0])
    assert [picture.seed for picture in kept] == [100, 101, 102, 103]
    assert all(picture.refined and is_refined(picture) for picture in kept)
    assert "2 of 6 pictures were still noisy" in caplog.text


def test_a_stop_while_the_base_draws(store: Store, base: FakeBase, refiner: FakeRefiner):
    with pytest.raises(Cancelled):  # the first batch is through at report 9: 1 start, 7 steps, 1 kept
        draw(ENSEMBLE, store, base, refiner, cancel_stage=DRAWING, cancel_at=8)
    assert folders(store) == [], "half-drawn pictures are no pictures"
    with pytest.raises(Cancelled):
        draw(ENSEMBLE, store, base, refiner, cancel_stage=DRAWING, cancel_at=12)
    (set_of_ensemble,) = folders(store)
    unfinished = read_ranking(set_of_ensemble)
    assert [(picture.seed, colour(picture)[0]) for picture in unfinished] == [(s, s) for s in range(100, 104)]
    assert all("finished" in picture.why_not_refined and not picture.refined for picture in unfinished)
    with pytest.raises(Cancelled):
        draw(IMG2IMG, store, base, refiner, cancel_stage=DRAWING, cancel_at=12)
    kept = read_ranking(next(folder for folder in folders(store) if folder != set_of_ensemble))
    assert [picture.seed for picture in kept] == [100, 101, 102, 103]
    assert not any(picture.refined or is_refined(picture) for picture in kept)
    assert "open refiner" not in base.events


def test_a_refiner_that_cannot_be_loaded_loses_no_finished_picture(store: Store, base: FakeBase, refiner: FakeRefiner):
    refiner.problem = MemoryBudgetError("too big")
    with pytest.raises(MemoryBudgetError, match="too big"):
        draw(IMG2IMG, store, base, refiner)
    kept = read_ranking(folders(store)[0])
    assert len(kept) == 6 and not any(picture.refined for picture in kept)
    assert json.loads((folders(store)[0] / "headshots.json").read_text())["state"] == "failed"


# --- does refining harm the likeness? -------------------------------------------------------------------
def test_where_refining_harms_the_likeness_the_unrefined_picture_is_kept(
    store: Store, base: FakeBase, refiner: FakeRefiner
):
    refiner.spoilt = (103, 105)
    result = draw(IMG2IMG, store, base, refiner, RedJudge())
    for picture in result.pictures:
        spoilt = picture.seed in refiner.spoilt
        assert is_refined(picture) == picture.refined == (not spoilt)
        assert bool(picture.why_not_refined) == spoilt
        assert picture.likeness == RedJudge().score(Image.new("RGB", (8, 8), colour(picture)))
        assert read_png_metadata(picture.path)["refiner"]["why_not_refined"] == picture.why_not_refined
        assert regenerate(picture.path).refine == ("off" if spoilt else "img2img")
    assert [picture.seed for picture in result.pictures] == [105, 104, 103, 102, 101, 100], "ranked by what was kept"
    first = result.pictures[0]
    assert first.why_not_refined.startswith("Refining lowered the likeness from 41 to 25 percent")
    assert len(list(result.folder.glob("*.png"))) == 6
    assert sum(event[0] == "decode" for event in base.events) == 12, "one decode more for each picture"


def test_an_ensemble_has_nothing_to_compare_with(store: Store, base: FakeBase, refiner: FakeRefiner):
    refiner.spoilt = (103,)
    result = draw(ENSEMBLE, store, base, refiner, RedJudge())
    assert all(picture.refined for picture in result.pictures)
    assert sum(event[0] == "decode" for event in base.events) == 6


@pytest.mark.parametrize(
    ("refined", "unrefined", "words"),
    [
        ((80 - LIKENESS_MAY_FALL_BY, ""), (80, ""), ""),
        ((74, ""), (80, ""), "from 80 to 74 percent"),
        ((90, ""), (80, ""), ""),
        ((0, "no face was found"), (80, "several faces were found"), ""),
        ((80, "several faces were found"), (80, ""), "After refining, several faces were found"),
    ],
)
def test_what_counts_as_harm(refined: tuple[float, str], unrefined: tuple[float, str], words: str):
    why = why_not_refined(*(Likeness(0, percent, True, reason) for percent, reason in (refined, unrefined)))
    assert words in why and bool(words) == bool(why)


def test_a_failing_judge_loses_no_refined_picture(store: Store, base: FakeBase, refiner: FakeRefiner):
    class Broken(RedJudge):
        def score(self, image: Image.Image) -> Likeness:
            if image.getpixel((0, 0))[:2] != (102, REFINED_GREEN) and image.getpixel((0, 0))[0] == 102:
                raise RuntimeError("broken judge")
            return super().score(image)

    with pytest.raises(RuntimeError, match="broken judge"):
        draw(IMG2IMG, store, base, refiner, Broken())
    assert len(read_ranking(folders(store)[0])) == 6
    assert all(is_refined(picture) for picture in read_ranking(folders(store)[0]))


# --- which refiner, if any ------------------------------------------------------------------------------
def test_the_base_s_defaults_decide_when_the_request_says_nothing(store: Store, family: FakeFamily):
    assert chosen_refiner(SPEC, INFO, store.settings) is None
    for way in ("ensemble", "img2img"):
        assert chosen_refiner(SPEC, info_with(refine=way), store.settings) == REFINER
        assert chosen_refiner(replace(SPEC, refine="off"), info_with(refine=way), store.settings) is None
    for asked in (
        {"refine": "img2img"},
        {"refiner": "fake-refiner"},
        {"refiner_switch": 0.5},
        {"refiner_strength": 0.5},
    ):
        assert chosen_refiner(replace(SPEC, **asked), INFO, store.settings) == REFINER


def test_a_setting_of_one_way_asks_for_that_way(store: Store, base: FakeBase, refiner: FakeRefiner):
    base.info = info_with(refine="ensemble")
    draw(replace(SPEC, refiner_strength=0.5), store, base, refiner)
    assert refiner.requests[-1].strength == 0.5
    draw(replace(SPEC, refiner_switch=0.5), store, base, refiner)
    assert refiner.requests[-1].start_at == 0.5


def test_no_refiner_is_an_error_only_for_those_who_asked(
    store: Store, base: FakeBase, family: FakeFamily, caplog: pytest.LogCaptureFixture
):
    family.refiner = None
    for asked in ({"refine": "ensemble"}, {"refine": "img2img"}, {"refiner": "fake-refiner"}):
        with pytest.raises(ModelError, match="There is no refiner"):
            chosen_refiner(replace(SPEC, **asked), INFO, store.settings)
    with caplog.at_level(logging.WARNING):
        assert chosen_refiner(SPEC, info_with(refine="ensemble"), store.settings) is None
    assert "are not refined: There is no refiner" in caplog.text
    assert base.events == [] and folders(store) == []


def test_without_a_way_to_open_refiners(store: Store, base: FakeBase, family: FakeFamily):
    with pytest.raises(ModelError, match="choose “off”"):
        generate(ENSEMBLE, store, base, Reports())
    assert base.events == []
    base.info = info_with(refine="ensemble")
    assert not any(picture.refined for picture in generate(SPEC, store, base, Reports()).pictures)


def test_an_ensemble_needs_the_base_s_schedule(store: Store, family: FakeFamily):
    family.same_schedule = False
    with pytest.raises(ModelError, match="choose “img2img”"):
        chosen_refiner(ENSEMBLE, INFO, store.settings)
    assert chosen_refiner(IMG2IMG, INFO, store.settings) == REFINER
    assert chosen_refiner(SPEC, info_with(refine="ensemble"), store.settings) is None


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"refine": "img2img", "refiner_strength": 0.05}, "refiner_strength", "choose at least 0.1,"),
        ({"refine": "img2img", "steps": 3}, "refiner_strength", "choose at least 0.34,"),
        ({"refine": "img2img", "steps": 1}, "refiner_strength", "With 1 step,.*at least 1,"),
        ({"refine": "ensemble", "refiner_switch": 0.05}, "refiner_switch", "the base model has nothing.*choose 0.06"),
        ({"refine": "ensemble", "steps": 2}, "refiner_switch", "the refiner has nothing.*choose 0.74"),
        ({"refine": "ensemble", "steps": 1}, "refiner_switch", "draw: use more steps"),
    ],
)
def test_no_step_left_for_one_of_them_is_told_with_what_works(
    changes: dict, field: str, words: str, store: Store, base: FakeBase, refiner: FakeRefiner
):
    with pytest.raises(SpecError, match=words) as caught:
        draw(replace(SPEC, **changes), store, base, refiner)
    assert caught.value.field == field
    assert base.events == [] and folders(store) == []


def test_a_default_that_leaves_no_step_is_left_out(store: Store, family: FakeFamily, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert chosen_refiner(replace(SPEC, steps=2), info_with(refine="img2img"), store.settings) is None
    assert "With 2 steps" in caplog.text
