"""FLUX.1 through the whole program: the same requests, and plain sentences for what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui import families
from headshot_ui.base_bytes import lora_bytes
from headshot_ui.engine import Engine, Parts, real_parts
from headshot_ui.errors import SpecError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.generation.plan import plan
from headshot_ui.generation.plan import resolve as resolve_drawing
from headshot_ui.generation.presets import FamilyWords, load_presets
from headshot_ui.likeness import Likeness
from headshot_ui.logs import stop_log
from headshot_ui.recipes import load_recipes
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec
from headshot_ui.store import Store, read_png_metadata
from headshot_ui.training.plan import resolve
from headshot_ui.ui.prompt_words import said_of
from headshot_ui.usual_base import photographs
from tests.core.fakes import grey_pictures
from tests.training.conftest import make_dataset, trained_to_the_end

TRAIN = TrainSpec("anna", "tiny-flux", steps=4, rank=2, checkpoint_every=2, sample_every=100, seed=3)
GENERATE = GenerateSpec("anna", "tiny-flux", prompt="portrait of {subject}", count=2)


class HalfAlike:
    """A judge that needs no network."""

    def score(self, image: Image.Image) -> Likeness:
        return Likeness(0.5, 50.0, True)


def without_faces() -> Parts:
    return replace(real_parts(), prepare=grey_pictures, load_detector=lambda *_: None, load_recogniser=lambda *_: None,
                   load_judge=lambda *_: HalfAlike())  # fmt: skip


@pytest.fixture
def engine(models_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    settings = Settings.from_environment(
        root=tmp_path, models_dir=models_dir, outputs_dir=tmp_path / "outputs", device="cpu", dtype="float32"
    )
    with Engine(settings, without_faces) as engine:
        yield engine
    stop_log()


def test_photos_become_a_lora_and_pictures(engine: Engine) -> None:
    train_ = TrainSpec("anna", "tiny-flux", learning_rate=0.05)  # large, so that two steps can be seen
    spec = HeadshotsSpec(PrepareSpec("anna", ("photos",), "tiny-flux"), train_, replace(GENERATE, seed=4))
    made = engine.forecast(spec)
    assert [stage.name for stage in made.stages] == ["prepare", "train", "before", "generate"] and made.fits
    last = engine.submit(spec).wait(120)
    assert last.error is None, engine.log_file and engine.log_file.read_text("utf-8")
    trained, generated = last.result.trained, last.result.generated
    assert trained.steps == 2 and (trained.run_dir / "samples" / "step-000002.png").is_file()
    with_lora = {picture.path.name: Image.open(picture.path).tobytes() for picture in generated.pictures}
    without = {path.name: Image.open(path).tobytes() for path in (trained.run_dir / "before").rglob("*-prompt-*.png")}
    assert len(with_lora) == 2 and with_lora.keys() == without.keys()
    assert all(with_lora[name] != without[name] for name in with_lora), "the LoRA changes the pictures"
    about = read_png_metadata(generated.pictures[0].path)
    assert about["picture"]["negative_prompt"] == "" and about["request"]["guided_share"] == 1.0


def test_looks_are_drawn_without_what_it_does_not_read(engine: Engine) -> None:
    last = engine.submit(GenerateSpec("anna", "tiny-flux", presets=("navy-suit",), count=1, speed="fast")).wait(60)
    assert last.error is None
    assert any("is drawn fast: in steps that change little" in note for note in last.notes)
    assert read_png_metadata(last.result.pictures[0].path)["picture"]["negative_prompt"] == ""


def test_a_stopped_training_ends_as_one_that_was_not(tiny: LoadedBase, settings: Settings, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", ((64, 64),) * 3)
    ends = []
    for cancel_at in (None, 3):
        store = Store(replace(settings, outputs_dir=tmp_path / str(cancel_at)))
        ends.append(trained_to_the_end(TRAIN, store, tiny, dataset, cancel_at))
    assert ends[0] == ends[1] and len(ends[0][0]) == 4
    assert len({name.partition(".lora_")[0] for name in ends[0][1]}) == 12 + 2 * 5


def test_the_plan_counts_what_is_learned(tiny: LoadedBase) -> None:
    parameters = tiny.add_trainable_lora(rank=8, alpha=8.0, seed=0)
    assert lora_bytes(tiny.info, 8) == 4 * sum(parameter.numel() for parameter in parameters)


def test_learning_takes_what_was_measured_at_full_size(tmp_path: Path) -> None:
    """An H200's figures (GiB in all, weights 22.2; ``flux-train-h200.json``), which have the LoRA in them."""
    from headshot_ui.families.flux_parts.fitting import activation_bytes, tokens_of
    from headshot_ui.families.flux_parts.sizes import shape_of

    for side, checkpointed, measured in ((512, False, 32.33), (1024, True, 25.94)):
        tokens = tokens_of(side * side, 1, 8, 512)
        estimated = activation_bytes(shape_of({}), tokens, float(checkpointed), 2) / 2**30
        least = 0.75 if checkpointed else 0.85
        assert least < estimated / (measured - 22.2) < 1, (side, checkpointed, estimated)


def test_words_for_what_should_not_be_there_are_left_out_of_looks(settings: Settings) -> None:
    class AnyWord:
        info = replace(families.find_base("tiny-flux", settings), demo=False)

        def unknown_words(self, text: str) -> tuple[str, ...]:
            return ()

    look = replace(load_presets(settings)["navy-suit"], families={"flux": FamilyWords("a photograph", "a drawing")})
    spec = resolve_drawing(replace(GENERATE, presets=("navy-suit",), prompt=""), AnyWord.info, {"navy-suit": look})
    pictures = plan(spec, AnyWord(), {"navy-suit": look}, "tok", "person")
    assert {picture.negative_prompt for picture in pictures} == {""}
    assert all(picture.prompt.endswith(", a photograph") for picture in pictures)


# --- what it cannot do --------------------------------------------------------------------------------
def refused(spec: TrainSpec, settings: Settings) -> SpecError:
    with pytest.raises(SpecError) as caught:
        resolve(spec, families.find_base(spec.base, settings), load_recipes())
    return caught.value


def test_what_draws_in_a_few_steps_is_not_trained_on(settings: Settings) -> None:
    error = refused(replace(TRAIN, base="tiny-schnell"), settings)
    assert error.field == "base" and "train on FLUX.1-dev" in str(error)
    info = families.find_base("tiny-schnell", settings)
    slower = replace(info, defaults=replace(info.defaults, sampling_steps=16))
    assert families.abilities(slower).untrainable == "", "only built like schnell"


def test_what_cannot_be_trained_on_is_not_what_is_meant_where_nothing_is_named(settings: Settings) -> None:
    infos = [replace(info, demo=False, title=info.id[::-1]) for info in families.all_bases(settings)]
    assert [info.id for info in photographs(infos)] == ["tiny-flux", "tiny-schnell"]


def test_min_snr_gamma_is_told_to_be_without_meaning(settings: Settings) -> None:
    error = refused(replace(TRAIN, min_snr_gamma=5.0), settings)
    assert error.field == "min_snr_gamma" and str(error).endswith("leave it empty.")


def test_a_negative_prompt_is_told_before_anything_is_drawn(engine: Engine, settings: Settings) -> None:
    spec = replace(GENERATE, negative_prompt="dark")
    with pytest.raises(SpecError, match="reads no words for what should not be") as planned:
        engine.forecast(spec)
    assert planned.value.field == "negative_prompt"
    assert str(engine.submit(spec).wait(60).error) == str(planned.value)
    info = families.find_base("tiny-flux", settings)
    assert said_of(info, "negative_prompt", "dark") == str(planned.value)
    assert said_of(info, "negative_prompt", " ") == ""


def test_settings_of_a_base_are_checked(models_dir: Path, tmp_path: Path) -> None:
    from headshot_ui.errors import ModelError
    from headshot_ui.families.bases import read_base

    data = json.loads((models_dir / "dev" / "base.json").read_text("utf-8"))
    for name, wrong in (("timestep_density", "often"), ("training_guidance", -1.0)):
        changed = {**data, "defaults": {**data["defaults"], name: wrong}}
        (tmp_path / "base.json").write_text(json.dumps(changed), "utf-8")
        with pytest.raises(ModelError, match=f"“{name}”"):
            read_base(tmp_path / "base.json")
