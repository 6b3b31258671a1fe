"""The staged batch, with a base model that only writes down what is asked of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from headshot_ui import compiling
from headshot_ui.errors import Cancelled, ModelError, SpecError, StoreError
from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.families.protocol import Abilities, DenoiseRequest, DenoiseStep
from headshot_ui.generation import finish
from headshot_ui.generation.plan import PIXELS_PER_BATCH, batch_size
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import read_ranking, regenerate
from headshot_ui.generation.runner import DRAWING, FINISHING, generate
from headshot_ui.runs import change_run, create_run
from headshot_ui.specs import GenerateSpec, TrainSpec
from headshot_ui.store import Store, read_png_metadata, save_png, write_json_atomic
from tests.generation.fakes import FakeBase, RedJudge, Reports, make_store

SPEC = GenerateSpec("robin", "fake", prompt="portrait of {subject}", count=6, seed=10)


def lora_file(path: Path, metadata: dict[str, str] | None = None, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"unet.a.lora_A.weight": np.full((1, 1), value, np.float32)}, path, metadata=metadata)
    return path


@pytest.fixture
def by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of 256 x 256 at once, as a GPU might."""
    monkeypatch.setitem(PIXELS_PER_BATCH, "cpu", 4 * 256**2)


def finished_run(store: Store, base: str = "fake", value: float = 1.0) -> str:
    run = create_run(store, TrainSpec("robin", base))
    lora_file(run.folder / "lora.safetensors", value=value)
    return change_run(run, state="done", lora="lora.safetensors").name


def folders(store: Store) -> list[Path]:
    return sorted(path for path in store.headshots_dir("robin").glob("*") if path.is_dir())


def test_every_part_of_the_model_is_fetched_once_for_the_whole_request(tmp_path: Path, by_four: None):
    store, base = make_store(tmp_path), FakeBase()
    lora = lora_file(tmp_path / "me.safetensors")
    spec = replace(SPEC, presets=("navy-suit",), lora=str(lora), width=256, height=256)
    generate(spec, store, base, Reports())
    kinds = [event[0] if event[0] != "keep" else event for event in base.events]
    order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    drawing = [("keep", "denoiser"), "denoise", "loras"]
    assert order == ["loras", ("keep", "text"), "encode", *drawing, ("keep", "vae"), "decode"]
    texts = [event[1] for event in base.events if event[0] == "encode"]
    assert len(texts) == len(set(texts)) == 4, "two prompts, the preset's negative and the empty one, each once"
    seeds = [event[1] for event in base.events if event[0] == "denoise"]
    assert seeds == [(10, 11, 12, 13), (14, 15, 16, 17), (18, 19, 20, 21)]
    steps = spec.steps or base.info.defaults.sampling_steps
    assert base.asked == [(DenoiserWork(None, 256, 256, 4, steps), 1)], "to fit, once its LoRA is on"


def test_what_is_without_effect_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A base without negative prompts, or guidance that steers away from nothing."""
    requests: list[DenoiseRequest] = []
    without = Abilities(reads_negative_prompt=False, takes_refiner=False)

    class Base(FakeBase):
        def denoise(self, request: DenoiseRequest) -> Iterator[DenoiseStep]:
            requests.append(request)
            return super().denoise(request)

    def read(**changes: object) -> list[str]:
        base, spec = Base(), replace(SPEC, presets=("navy-suit",), count=1, **changes)
        generate(spec, make_store(tmp_path), base, Reports())
        return [text for event in base.events if event[0] == "encode" for text in event[1]]

    assert len(read()) == 4 and all(request.negative_embeds is not None for request in requests)
    requests.clear()
    for changes in ({"guidance_scale": 1.0}, {}):
        if not changes:
            monkeypatch.setattr("headshot_ui.families.abilities", lambda info: without)
        assert len(read(**changes)) == 2, "the two prompts"
        assert requests and all(request.negative_embeds is None for request in requests)
        requests.clear()


def test_pictures_are_saved_with_seed_prompt_and_mark(tmp_path: Path):
    store = make_store(tmp_path)
    result = generate(SPEC, store, FakeBase(), Reports())
    assert result.folder.parent == store.headshots_dir("robin")
    assert [picture.seed for picture in result.pictures] == list(range(10, 16))
    assert sorted(result.folder.glob("*.png")) == [picture.path for picture in result.pictures]
    picture = result.pictures[3]
    assert picture.prompt == "portrait of tok person"
    with Image.open(picture.path) as image:
        assert image.getpixel((0, 0))[0] == 13
        assert image.size == (64, 64)
    data = read_png_metadata(picture.path)
    assert data["ai_generated"].startswith("AI-generated")
    assert data["program"].startswith("headshot_ui 0.")
    assert (data["request"]["steps"], data["request"]["guidance_scale"]) == (6, 3.5), "the base's defaults, filled in"
    assert data["lora"] is None


def test_defaults_of_the_base_give_way_to_the_request(tmp_path: Path):
    spec = replace(SPEC, count=1, steps=2, guidance_scale=7.0, width=128, height=64)
    base, reports = FakeBase(), Reports()
    result = generate(spec, make_store(tmp_path), base, reports)
    assert ("denoise", (10,), 128, 64) in base.events
    assert max(total for stage, _, total in reports.seen if stage == DRAWING) == 2
    assert read_png_metadata(result.pictures[0].path)["request"]["guidance_scale"] == 7.0


def test_a_recipe_fills_in_what_the_request_leaves_open_and_is_written_into_the_picture(tmp_path: Path):
    store = make_store(tmp_path)
    path = store.settings.outputs_dir / "recipes" / "mine.json"
    said = {"steps": 5, "guidance_scale": 6.5, "negative_prompt": "blurry"}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"id": "mine", "title": "Mine", "note": "My own.", "generate": said}))
    spec = replace(SPEC, presets=("navy-suit",), prompt="", count=1, guidance_scale=4.0, recipe="mine")
    base, reports = FakeBase(), Reports()
    made = generate(spec, store, base, reports).pictures[0]
    request = read_png_metadata(made.path)["request"]
    assert (request["steps"], request["guidance_scale"], request["recipe"]) == (5, 4.0, "mine")
    assert request["negative_prompt"] == "blurry", "instead of the preset's own"
    assert max(total for stage, _, total in reports.seen if stage == DRAWING) == 5
    assert ("encode", ("blurry",)) in base.events
    with pytest.raises(SpecError, match="no recipe “yours”; choose from default, .*mine"):
        generate(replace(spec, recipe="yours"), store, FakeBase(), Reports())


def test_no_presets_and_no_prompt_means_every_preset(tmp_path: Path):
    result = generate(replace(SPEC, prompt="", count=1, steps=1), make_store(tmp_path), FakeBase(), Reports())
    assert [picture.preset for picture in result.pictures] == list(load_presets())
    assert result.pictures[0].title == load_presets()["navy-suit"].title


def test_progress_never_goes_back_and_ends_at_the_total(tmp_path: Path, by_four: None):
    reports = Reports()
    generate(replace(SPEC, width=256, height=256), make_store(tmp_path), FakeBase(), reports)
    for stage in (DRAWING, FINISHING):
        steps = [step for name, step, _ in reports.seen if name == stage]
        totals = {total for name, _, total in reports.seen if name == stage}
        assert steps == sorted(steps)
        assert steps[-1] == totals.pop()
        assert not totals
    assert [name for name, _, total in reports.seen if name == DRAWING and total != 36] == []
    live = [path for path in reports.previews if path.name == "preview.png"]
    assert len(live) >= 2
    with Image.open(live[0]) as image:
        assert max(image.size) <= 512
    assert reports.previews[-1].parent == folders(make_store(tmp_path))[0], "the last one shown is a finished picture"


def test_own_presets_and_a_person_s_trigger_are_used(tmp_path: Path):
    store = make_store(tmp_path)
    write_json_atomic(store.dataset_dir("robin") / "dataset.json", {"trigger": "zzz", "class_word": "woman"})
    prompts = generate(replace(SPEC, count=1), store, FakeBase(), Reports()).pictures
    assert prompts[0].prompt == "portrait of zzz woman"
    lora = lora_file(tmp_path / "me.safetensors", {"trigger": "abc", "class_word": "person"})
    prompts = generate(replace(SPEC, count=1, lora=str(lora)), store, FakeBase(), Reports()).pictures
    assert prompts[0].prompt == "portrait of abc person", "the LoRA knows best what it was trained with"


# --- ranking ---------------------------------------------------------------------------------------
def test_the_most_alike_come_first_and_rejected_ones_last(tmp_path: Path):
    result = generate(replace(SPEC, keep_best=2), make_store(tmp_path), FakeBase(), Reports(), RedJudge(crowd=[15]))
    assert [picture.seed for picture in result.pictures] == [14, 13, 12, 11, 10, 15]
    assert [picture.rank for picture in result.pictures] == [1, 2, 3, 4, 5, 6]
    assert [picture.kept for picture in result.pictures] == [True, True, False, False, False, False]
    assert all(picture.path.is_file() for picture in result.pictures), "keeping the best deletes nothing"
    assert read_ranking(result.folder) == result.pictures


def test_a_rejected_picture_is_never_among_the_best(tmp_path: Path):
    judge = RedJudge(crowd=range(10, 15))
    result = generate(replace(SPEC, keep_best=4), make_store(tmp_path), FakeBase(), Reports(), judge)
    assert [picture.seed for picture in result.pictures if picture.kept] == [15]


def test_without_a_judge_nothing_is_ranked(tmp_path: Path):
    result = generate(replace(SPEC, keep_best=2), make_store(tmp_path), FakeBase(), Reports())
    assert {(picture.rank, picture.kept, picture.likeness) for picture in result.pictures} == {(None, True, None)}


def test_a_picture_removed_by_hand_is_left_out_of_the_ranking(tmp_path: Path):
    result = generate(SPEC, make_store(tmp_path), FakeBase(), Reports(), RedJudge())
    result.pictures[2].path.unlink()
    assert read_ranking(result.folder) == result.pictures[:2] + result.pictures[3:]
    (result.folder / "headshots.json").write_text('{"pictures": [{"path": "a.png"}]}')
    with pytest.raises(StoreError, match="headshots.json"):
        read_ranking(result.folder)


# --- LoRA ------------------------------------------------------------------------------------------
def test_latest_means_the_newest_finished_run_of_this_base_and_is_written_down_by_name(tmp_path: Path):
    store, base = make_store(tmp_path), FakeBase()
    finished_run(store, value=1.0)
    newest = finished_run(store, value=2.0)
    finished_run(store, base="another")
    create_run(store, TrainSpec("robin", "fake"))  # still running
    result = generate(replace(SPEC, count=1, lora="latest", lora_scale=0.5), store, base, Reports())
    data = read_png_metadata(result.pictures[0].path)
    assert (data["request"]["lora"], data["lora"]["name"], data["lora"]["scale"]) == (newest, newest, 0.5)
    assert len(data["lora"]["sha256"]) == 64
    with Image.open(result.pictures[0].path) as image:
        assert image.getpixel((0, 0))[2] == 20, "the LoRA was on with its strength"
    assert base.loras == ()


@pytest.mark.parametrize(
    ("lora", "error", "what"),
    [
        ("latest", SpecError, "train first"),
        ("no-such-run", StoreError, "no-such-run"),
        ("missing.safetensors", SpecError, "missing.safetensors"),
        ("text.safetensors", ModelError, "damaged"),
        *((f"anna.{ending}", ModelError, f"anna.{ending} is a pickle file.*take the .safetensors")
          for ending in ("pt", "CKPT", "bin")),
        ("other-base", ModelError, "another"),
        ("unfinished", SpecError, "no LoRA yet"),
    ],
)  # fmt: skip
def test_a_lora_that_cannot_be_used_is_told_before_anything_is_made(tmp_path: Path, lora: str, error: type, what: str):
    store, base = make_store(tmp_path), FakeBase()
    (tmp_path / "text.safetensors").write_text("no tensors")
    if lora == "other-base":
        lora = finished_run(store, base="another")
    elif lora == "unfinished":
        lora = create_run(store, TrainSpec("robin", "fake")).name
    elif lora.endswith(".safetensors"):
        lora = str(tmp_path / lora)
    with pytest.raises(error, match=what):
        generate(replace(SPEC, lora=lora), store, base, Reports())
    assert base.events == []
    assert folders(store) == []


# --- cancel and errors -------------------------------------------------------------------------------
def test_cancelling_while_drawing_keeps_every_finished_picture(tmp_path: Path, by_four: None):
    store, base = make_store(tmp_path), FakeBase()
    spec = replace(SPEC, width=256, height=256, lora=str(lora_file(tmp_path / "me.safetensors")))
    reports = Reports(DRAWING, 10)  # report 1 is the start, 2-7 the first batch of four, the rest the second
    with pytest.raises(Cancelled):
        generate(spec, store, base, reports, RedJudge())
    kept = read_ranking(folders(store)[0])
    assert [picture.seed for picture in kept] == [13, 12, 11, 10]
    assert [picture.rank for picture in kept] == [1, 2, 3, 4]
    assert json.loads((folders(store)[0] / "headshots.json").read_text())["state"] == "cancelled"
    assert base.loras == ()
    assert reports.seen[-1][0] == DRAWING, "nothing is reported after a cancel"


def test_cancelling_at_the_last_step_of_a_batch_keeps_the_batch(tmp_path: Path, by_four: None):
    store = make_store(tmp_path)
    with pytest.raises(Cancelled):
        generate(replace(SPEC, width=256, height=256), store, FakeBase(), Reports(DRAWING, 7))
    assert len(read_ranking(folders(store)[0])) == 4


def test_cancelling_while_finishing_keeps_all(tmp_path: Path):
    store = make_store(tmp_path)
    with pytest.raises(Cancelled):
        generate(SPEC, store, FakeBase(), Reports(FINISHING, 2), RedJudge())
    assert len(read_ranking(folders(store)[0])) == 6


def test_cancelling_before_the_first_picture_leaves_no_folder(tmp_path: Path, by_four: None):
    store, base = make_store(tmp_path), FakeBase()
    with pytest.raises(Cancelled):
        generate(SPEC, store, base, Reports(DRAWING, 3))
    assert folders(store) == []
    assert ("decode", 1) not in base.events


def test_an_error_in_a_later_batch_loses_no_finished_picture(tmp_path: Path, by_four: None):
    store, base = make_store(tmp_path), FakeBase(fail_in_batch=2)
    spec = replace(SPEC, width=256, height=256, lora=str(lora_file(tmp_path / "me.safetensors")))
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(spec, store, base, Reports())
    assert len(read_ranking(folders(store)[0])) == 4
    assert json.loads((folders(store)[0] / "headshots.json").read_text())["state"] == "failed"
    assert base.loras == ()


def test_a_failing_judge_loses_no_saved_picture(tmp_path: Path):
    class Broken(RedJudge):
        def score(self, image: Image.Image):
            if image.getpixel((0, 0))[0] == 12:
                raise RuntimeError("broken judge")
            return super().score(image)

    store = make_store(tmp_path)
    with pytest.raises(RuntimeError, match="broken judge"):
        generate(SPEC, store, FakeBase(), Reports(), Broken())
    assert len(list(folders(store)[0].glob("*.png"))) == 6
    assert [picture.seed for picture in read_ranking(folders(store)[0]) if picture.likeness is None][0] == 12


def test_pictures_are_written_while_the_next_ones_are_decoded_and_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, base, reports = make_store(tmp_path), FakeBase(), Reports()
    third_decoded = threading.Event()
    decode = base.decode_latents

    def decoding(latents: torch.Tensor) -> list[Image.Image]:
        if sum(event[0] == "decode" for event in base.events) == 2:
            third_decoded.set()
        return decode(latents)

    def slowly(path: Path, *rest: object) -> None:
        if path.name.startswith("001"):
            assert third_decoded.wait(5), "the first picture was waited for"
        save_png(path, *rest)

    monkeypatch.setattr(base, "decode_latents", decoding)
    monkeypatch.setattr(finish, "save_png", slowly)
    result = generate(SPEC, store, base, reports)
    assert [picture.seed for picture in result.pictures] == [10, 11, 12, 13, 14, 15]
    assert [step for stage, step, _ in reports.seen if stage == FINISHING] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_ends_the_work_and_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, *rest: object) -> None:
        if path.name.startswith("002"):
            raise StoreError("002.png could not be written: the disk is full.")
        save_png(path, *rest)

    monkeypatch.setattr(finish, "save_png", full)
    store, base = make_store(tmp_path), FakeBase()
    with pytest.raises(StoreError, match="002.png"):
        generate(replace(SPEC, count=12), store, base, Reports())
    kept = read_ranking(folders(store)[0])
    assert kept[0].seed == 10 and 11 not in [picture.seed for picture in kept]
    assert len(kept) == len(list(folders(store)[0].glob("*.png"))) < 11
    assert sum(event[0] == "decode" for event in base.events) < 12, "decoded on although nothing could be written"


def test_the_first_problem_is_told_when_the_ranking_cannot_be_written_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import headshot_ui.generation.runner as runner

    def full(*_: object) -> None:
        raise StoreError("headshots.json could not be written: the disk is full.")

    monkeypatch.setattr(runner, "write_ranking", full)
    store = make_store(tmp_path)
    with pytest.raises(Cancelled):
        generate(SPEC, store, FakeBase(), Reports(FINISHING, 2))
    with pytest.raises(StoreError, match="disk is full"):
        generate(SPEC, store, FakeBase(), Reports())
    assert [len(list(folder.glob("*.png"))) for folder in folders(store)] == [6, 6]


# --- bad requests ------------------------------------------------------------------------------------
def test_unknown_words_are_named(tmp_path: Path):
    base = FakeBase(vocabulary=frozenset(("portrait", "of", "tok", "person", "wearing", "a")))
    with pytest.raises(SpecError, match="“spacesuit”, “moon”") as caught:
        generate(replace(SPEC, prompt="{subject} wearing a spacesuit of moon"), make_store(tmp_path), base, Reports())
    assert caught.value.field == "prompt"
    with pytest.raises(SpecError, match="“blurry”") as caught:
        generate(replace(SPEC, negative_prompt="blurry"), make_store(tmp_path), base, Reports())
    assert caught.value.field == "negative_prompt"
    assert base.events == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"presets": ("tuxedo",)}, "presets"), ({"base": "other"}, "base"), ({"prompt": "{age}"}, "prompt")],
)
def test_bad_requests_are_told_with_their_field(tmp_path: Path, changes: dict, field: str):
    with pytest.raises(SpecError) as caught:
        generate(replace(SPEC, **changes), make_store(tmp_path), FakeBase(), Reports())
    assert caught.value.field == field


def test_pictures_of_another_program_cannot_be_made_again(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(StoreError, match="holiday.png"):
        regenerate(tmp_path / "holiday.png")


def test_batches_suit_the_device():
    assert batch_size("cpu", 64, 64) == 1
    assert batch_size("cuda", 1024, 1024) == 4
    assert batch_size("cuda", 1024, 1024, vram_limit_bytes=6 * 2**30) == 1
    assert batch_size("cuda", 1024, 1024, vram_limit_bytes=24 * 2**30) == 4
    assert batch_size("cuda", 1024, 1024, vram_limit_bytes=int(47.4 * 2**30)) == 8  # what a card of 48 GB has
    assert batch_size("cuda", 1024, 1024, vram_limit_bytes=140 * 2**30) == 8
    assert batch_size("cuda", 64, 64) == 16


@pytest.mark.parametrize("precision", ["8 bit", ""])
def test_a_picture_says_that_its_base_was_rounded_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    fitting = Fitting("8 bit", "The base is computed in 8 bit.", precision, 1, 1, 1)
    monkeypatch.setattr(FakeBase, "fit", lambda self, work, precision=None: fitting)
    store = make_store(tmp_path)
    path = generate(replace(SPEC, count=1), store, FakeBase(), Reports()).pictures[0].path
    assert read_png_metadata(path).get("precision", "") == precision
    assert regenerate(path).seed == 10


@pytest.mark.parametrize("asked", ["auto", "always"])
def test_only_what_is_asked_for_draws_with_compiled_blocks_and_the_picture_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """They round otherwise: with “auto” the same seed and settings would not always give the same picture."""
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    asked_for: list[Any] = []
    monkeypatch.setattr(compiling, "when_ready", lambda record, *_: asked_for.append(record) or record)
    monkeypatch.setattr(FakeBase, "repeated", lambda self: (), raising=False)
    store = make_store(tmp_path)
    store = Store(replace(store.settings, compile=asked))
    path = generate(replace(SPEC, count=1), store, FakeBase(), Reports()).pictures[0].path
    assert bool(asked_for) == (asked == "always")
    assert read_png_metadata(path).get("compiled", False) == (asked == "always")
    assert regenerate(path).seed == 10
