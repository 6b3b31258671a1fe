"""The engine with the real training and drawing on a tiny random model: the stages fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file

from headshot_ui import families
from headshot_ui.engine import Engine, LikenessCount, Parts, real_parts
from headshot_ui.families.sdxl_parts.lora_facts import place_in_files
from headshot_ui.families.sdxl_parts.lora_write import kohya_tensors
from headshot_ui.likeness import Likeness
from headshot_ui.logs import stop_log
from headshot_ui.runs import latest_run
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec
from headshot_ui.store import read_png_metadata
from tests.core.fakes import grey_pictures
from tests.families.lora_maker import random_layers, usual_layers
from tests.tiny_models import make_tiny_refiner, make_tiny_sdxl


class HalfAlike:
    """A judge that needs no network."""

    def score(self, image: Image.Image) -> Likeness:
        return Likeness(0.5, 50.0, True)


def without_faces() -> Parts:
    return replace(real_parts(), prepare=grey_pictures, load_detector=lambda *_: None, load_recogniser=lambda *_: None,
                   load_judge=lambda *_: HalfAlike())  # fmt: skip


def test_photos_become_a_lora_and_ranked_pictures(settings: Settings, tmp_path: Path) -> None:
    make_tiny_sdxl(tmp_path / "models" / "tiny")
    make_tiny_refiner(tmp_path / "models" / "refiner")
    spec = HeadshotsSpec(
        PrepareSpec("anna", ("photos",), "tiny-sdxl"),
        TrainSpec("anna", "tiny-sdxl", learning_rate=0.01),  # large, so that four steps can be seen
        GenerateSpec("anna", "tiny-sdxl", prompt="portrait of {subject}", count=2, refine="ensemble",
                     refiner_switch=0.5),
    )  # fmt: skip
    with Engine(settings, without_faces) as engine:
        last = engine.submit(spec).wait(300)
        log = engine.log_file
    stop_log()
    assert last.error is None, log and log.read_text("utf-8")
    made = last.result
    assert made.trained.steps == 4 and made.trained.lora_path.is_file()
    assert latest_run(engine.store, "anna", "tiny-sdxl") is not None
    assert made.before == made.after == LikenessCount(2, 2, 50.0)
    with_lora = {picture.path for picture in made.generated.pictures}
    without = set((made.trained.run_dir / "before").rglob("*-prompt-*.png"))
    assert len(with_lora) == len(without) == 2
    assert {path.name for path in with_lora} == {path.name for path in without}, "the same seeds both times"
    pixels = [{path.name: Image.open(path).tobytes() for path in paths} for paths in (with_lora, without)]
    assert all(pixels[0][name] != pixels[1][name] for name in pixels[0]), "the LoRA changes the pictures"
    assert [use.name for use in made.stages] == ["prepare", "train", "before", "generate"]
    assert all(read_png_metadata(path)["refiner"]["id"] == "tiny-refiner" for path in with_lora)


def test_a_lora_of_the_text_encoders_changes_the_pictures_of_its_job_only(settings: Settings, tmp_path: Path) -> None:
    """It has no layer of the UNet, so that nothing but the prompts, encoded with it on, can change a picture."""
    make_tiny_sdxl(tmp_path / "models" / "tiny")
    where = place_in_files(families.find_base("tiny-sdxl", settings))
    layers = random_layers(where, [*usual_layers(where, "text_encoder"), *usual_layers(where, "text_encoder_2")])
    file = tmp_path / "words.safetensors"
    save_file(kohya_tensors(layers, where.topology), file)
    spec = GenerateSpec("anna", "tiny-sdxl", prompt="portrait of {subject}", count=2, refine="off", seed=4, lora=None)
    jobs = (spec, replace(spec, lora=str(file)), spec, replace(spec, lora=str(file), lora_scale=0.5))
    drawn = []
    with Engine(settings, without_faces) as engine:
        for job in jobs:
            last = engine.submit(job).wait(300)
            assert last.error is None
            drawn.append({picture.seed: Image.open(picture.path).tobytes() for picture in last.result.pictures})
    stop_log()
    bare, with_it, after, half = drawn
    assert bare.keys() == with_it.keys() == half.keys() and len(bare) == 2
    assert after == bare, "bit for bit"
    assert all(with_it[seed] != bare[seed] and half[seed] not in (bare[seed], with_it[seed]) for seed in bare)
