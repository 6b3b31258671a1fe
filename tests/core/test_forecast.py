"""The plan of a request: its numbers against files of known size, what was measured before, and what would fit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headshot_ui import forecast as forecast_module
from headshot_ui.amounts import FINDING_FACES, Known, plan_generate, plan_train, without_lora
from headshot_ui.base_bytes import DRAWING, LEARNING, SDXL_DENOISER_PARAMETERS, lora_bytes
from headshot_ui.engine import Engine
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import BaseInfo, RefinerInfo
from headshot_ui.forecast import PROCESS_BYTES, Forecast, StageForecast, forecast, forecast_lines
from headshot_ui.logs import stop_log
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.runs import create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import (
    CHECKPOINTING,
    ExportSpec,
    GenerateSpec,
    HeadshotsSpec,
    PrepareSpec,
    RestoreSpec,
    Spec,
    TrainSpec,
)
from headshot_ui.store import Store
from tests.core.fakes import FakeWorld, write_weights

ROOT = Path(__file__).parents[2]
DENOISER, TEXT, VAE = 1_000_000, 300_000, 100  # numbers; in float32 four times as many bytes
TRAIN = TrainSpec("anna", "demo", steps=100, batch_size=2, rank=8, gradient_checkpointing="none")
GENERATE = GenerateSpec("anna", "demo", presets=("navy-suit", "white-shirt"), count=3, steps=10, width=64, height=64)


@pytest.fixture
def peaks(settings: Settings) -> Peaks:
    return Peaks(settings.outputs_dir)


@pytest.fixture
def world(settings: Settings) -> FakeWorld:
    """The base “demo” has weights of known size."""
    folder = settings.models_dir / "demo"
    write_weights(folder / "unet" / "x.safetensors", {"w": ("F16", DENOISER)})
    write_weights(folder / "text_encoder" / "x.safetensors", {"w": ("F16", TEXT // 3)})
    write_weights(folder / "text_encoder_2" / "x.safetensors", {"w": ("F16", TEXT // 3 * 2)})
    write_weights(folder / "vae" / "x.safetensors", {"w": ("F16", VAE)})
    return FakeWorld(settings)


@pytest.fixture
def plan(
    settings: Settings, world: FakeWorld, peaks: Peaks, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Forecast]:
    def make(spec: Spec, limit: int = 2**40) -> Forecast:
        monkeypatch.setattr(forecast_module, "free_ram_bytes", lambda: limit)
        monkeypatch.setattr(forecast_module, "own_ram_bytes", lambda: 0)
        return forecast(spec, settings, world.parts(), peaks)

    return make


@pytest.fixture
def on_card(
    settings: Settings, world: FakeWorld, peaks: Peaks, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Forecast]:
    def make(spec: Spec, budget: int = 2**40) -> Forecast:
        monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
        monkeypatch.setattr(forecast_module, "vram_budget_bytes", lambda settings: budget)
        monkeypatch.setattr(forecast_module, "plan_notes", lambda settings, device: (f"On {device}.",))
        monkeypatch.setattr(forecast_module, "who_holds_memory", lambda: "A game holds 5 GB: close it.")
        card = Settings.from_environment(root=settings.root, device="cuda", dtype="float16", environment={})
        return forecast(spec, card, world.parts(), peaks)

    return make


def width(numbers: int) -> float:
    return float((numbers / SDXL_DENOISER_PARAMETERS) ** 0.5)


# --- estimates ----------------------------------------------------------------------------------------
def test_in_main_memory_all_weights_count_and_the_most_demanding_part_computes(plan: Callable[..., Forecast]) -> None:
    made = plan(TRAIN)
    (train,) = made.stages
    assert (made.memory_kind, made.fits, made.advice, made.seconds) == ("memory", True, "", None)
    assert train.on_device == ("text encoders", "VAE", "denoiser") and not train.measured
    learning = int(LEARNING["none"] * 64 * 64 * 2 * width(DENOISER) * 2)  # float32 takes twice the bytes of 16 bit
    assert train.peak_bytes == pytest.approx(PROCESS_BYTES + 4 * (DENOISER + TEXT + VAE) + learning, abs=4)


def test_on_a_card_parts_take_turns_so_the_largest_turn_counts(
    on_card: Callable[..., Forecast], settings: Settings
) -> None:
    (drawing,) = on_card(GENERATE).stages
    assert drawing.on_device == ("text encoders", "denoiser", "VAE", "face detector")
    assert drawing.peak_bytes == CONTEXT_BYTES + FINDING_FACES, "more than this small base needs"
    numbers = 20_000_000
    write_weights(settings.models_dir / "demo" / "unet" / "x.safetensors", {"w": ("F16", numbers)})
    made = on_card(replace(GENERATE, width=1536, height=1536))  # in one batch: what fits four of 1024 x 1024
    working = int(DRAWING * 1536 * 1536 * width(numbers))
    assert made.memory_kind == "graphics memory" and working > FINDING_FACES
    assert made.peak_bytes == pytest.approx(CONTEXT_BYTES + 2 * numbers + working, abs=4)


def test_a_refiner_is_named_and_counted(plan: Callable[..., Forecast], world: FakeWorld, settings: Settings) -> None:
    plain = plan(GENERATE)
    world.refiner = RefinerInfo("fine", "fake", "Fine", settings.models_dir / "fine", "", "")
    write_weights(world.refiner.folder / "unet" / "x.safetensors", {"w": ("F16", 500_000)})
    refined = plan(GENERATE)
    assert refined.stages[0].on_device == ("text encoders", "denoiser", "refiner", "VAE", "face detector")
    assert refined.peak_bytes - plain.peak_bytes == 4 * 500_000


def test_checkpointing_and_smaller_batches_need_less(plan: Callable[..., Forecast]) -> None:
    peaks = [
        plan(replace(TRAIN, batch_size=size, gradient_checkpointing=on)).peak_bytes
        for size, on in ((4, "none"), (2, "none"), (2, "partial"), (2, "full"), (1, "full"))
    ]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 5


def test_the_disk_a_run_takes_follows_from_the_attention_of_the_denoiser(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "unet").mkdir()
    names = {"mid.attn1.to_q.weight": (6, 10), "mid.attn1.to_out.0.weight": (10, 10), "mid.conv.weight": (9, 9)}
    arrays = {name: np.zeros(shape, np.float16) for name, shape in names.items()}
    save_file({**arrays, "mid.attn1.to_out.0.bias": np.zeros(10, np.float16)}, tmp_path / "unet" / "x.safetensors")
    info = BaseInfo("x", "sdxl", "X", tmp_path, "", "", 64)
    assert lora_bytes(info, rank=8) == 4 * 8 * ((6 + 10) + (10 + 10))


def test_restoring_counts_the_restorer_and_the_pictures(
    plan: Callable[..., Forecast], tmp_path: Path, world: FakeWorld
) -> None:
    for name in "ab":
        Image.new("RGB", (300, 200)).save(tmp_path / f"{name}.png")
    once = plan(RestoreSpec("anna", (str(tmp_path / "a.png"), str(tmp_path / "b.png"))))
    assert once.stages[0].on_device == ("face detector", "restorer")
    assert once.disk_bytes == 2 * 3 * 300 * 200
    larger = plan(RestoreSpec("anna", (str(tmp_path / "a.png"),), upscale=4, parse_face=True))
    assert larger.stages[0].on_device == ("face detector", "restorer", "face parser", "upscaler")
    assert larger.disk_bytes == 3 * 300 * 200 * 16 and larger.peak_bytes > once.peak_bytes


def test_all_of_it_has_every_stage_and_what_is_not_asked_for_has_none(plan: Callable[..., Forecast]) -> None:
    spec = HeadshotsSpec(PrepareSpec("anna", ("photos",), "demo"), TRAIN, GENERATE)
    assert [stage.name for stage in plan(spec).stages] == ["prepare", "train", "before", "generate"]
    whole = plan(replace(spec, restore_best=4, export_best=1))
    assert [stage.name for stage in whole.stages] == ["prepare", "train", "before", "generate", "restore", "export"]


def test_a_missing_restorer_leaves_its_stage_out_of_the_whole_job_only(
    plan: Callable[..., Forecast], world: FakeWorld
) -> None:
    world.no_restorer = "There is none."
    spec = HeadshotsSpec(PrepareSpec("anna", ("photos",), "demo"), TRAIN, GENERATE, restore_best=4)
    assert "restore" not in [stage.name for stage in plan(spec).stages]
    with pytest.raises(ModelError, match="There is none"):
        plan(RestoreSpec("anna", ("a.png",)))


def test_comparing_draws_few_pictures_whatever_was_asked_for() -> None:
    every = tuple("abcdefghij")
    assert without_lora(GenerateSpec("anna", "demo", count=9), every).presets == every[:4]
    chosen = without_lora(GenerateSpec("anna", "demo", presets=("c", "d"), count=9, lora="x", keep_best=3), every)
    assert (chosen.presets, chosen.count, chosen.lora, chosen.keep_best) == (("c", "d"), 1, None, None)
    own = without_lora(GenerateSpec("anna", "demo", prompt="{subject}", count=9), every)
    assert (own.presets, own.count) == ((), 4)


# --- recipes, sizes and optimizers --------------------------------------------------------------------
def test_8_bit_moments_need_less(on_card: Callable[..., Forecast], settings: Settings) -> None:
    rows, columns, rank = 1000, 2000, 8  # 8,000 and 16,000 numbers to train
    name = "up.attn1.to_q.weight"
    write_weights(settings.models_dir / "demo" / "unet" / "x.safetensors", {name: ("F16", rows * columns)})
    path = settings.models_dir / "demo" / "unet" / "x.safetensors"
    header = {name: {"dtype": "F16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * rows * columns))
    wide, narrow = (plan_train_bytes(on_card, optimizer) for optimizer in ("adamw", "adamw8bit"))
    numbers = rank * (rows + columns)
    scales = 2 * 4 * (-(-rank * rows // 256) + -(-rank * columns // 256))
    assert wide[0] - narrow[0] == pytest.approx(8 * numbers - 2 * numbers - scales)
    assert wide[1] - narrow[1] == 3 * (8 * numbers - 2 * numbers - scales), "in each of three checkpoints"


def plan_train_bytes(on_card: Callable[..., Forecast], optimizer: str) -> tuple[int, int]:
    """Of graphics memory while learning, far above what else is in it, and of the disk."""
    made = on_card(replace(TRAIN, batch_size=64, gradient_checkpointing="none", optimizer=optimizer))
    return made.peak_bytes, made.disk_bytes


def test_work_is_counted_in_photos_learned_from_and_goes_with_accumulation(
    settings: Settings, world: FakeWorld
) -> None:
    known = Known(settings, world.parts(), "cpu", "float32")
    once = plan_train(replace(TRAIN, steps=1000, batch_size=1), known)
    four = plan_train(replace(TRAIN, steps=1000, batch_size=1, gradient_accumulation=4), known)
    assert (once.units, four.units, once.size, four.size) == (1000, 4000, "64x64 batch 1", "64x64 batch 1")


def test_each_level_of_checkpointing_is_another_measurement(settings: Settings, world: FakeWorld) -> None:
    """Those of none and full go by the names they had before there were levels, so that old measurements count."""
    known = Known(settings, world.parts(), "cpu", "float32")
    sizes = [plan_train(replace(TRAIN, gradient_checkpointing=level), known).size for level in CHECKPOINTING]
    assert sizes == [f"64x64 batch 2{more}" for more in ("", " partly checkpointed", " checkpointed")]


def test_a_recipe_counts_in_the_plan(settings: Settings, world: FakeWorld) -> None:
    path = settings.outputs_dir / "recipes" / "mine.json"
    path.parent.mkdir(parents=True)
    said = {"train": {"steps": 1000, "gradient_accumulation": 4}, "generate": {"steps": 50, "width": 128}}
    path.write_text(json.dumps({"id": "mine", "title": "Mine", "note": "My own.", **said}))
    known = Known(settings, world.parts(), "cpu", "float32")
    assert plan_train(TrainSpec("anna", "demo", batch_size=1, recipe="mine"), known).units == 4000
    drawn = plan_generate(GenerateSpec("anna", "demo", prompt="x", count=3, height=64, recipe="mine"), known)
    assert (drawn.units, drawn.size) == (150, "128x64 batch 1")
    with pytest.raises(SpecError, match="no recipe “yours”"):
        plan_train(replace(TRAIN, recipe="yours"), known)


def test_the_plan_of_a_run_that_goes_on_is_of_its_own_settings(settings: Settings, world: FakeWorld) -> None:
    run = create_run(Store(settings), replace(TRAIN, size_px=64, batch_size=3))
    known = Known(settings, world.parts(), "cpu", "float32")
    assert plan_train(TrainSpec("anna", "demo", run=run.name), known).size == "64x64 batch 3"


# --- measured before ----------------------------------------------------------------------------------
def test_what_was_measured_counts_and_seconds_go_with_the_work(plan: Callable[..., Forecast], peaks: Peaks) -> None:
    seen = Measured("train", 50.0, 1_500_000_000, 0, "64x64 batch 2", "cpu", "float32", units=200)
    peaks.record("demo", seen)
    (train,) = plan(TRAIN).stages
    assert (train.peak_bytes, train.measured, train.seconds) == (1_500_000_000, True, 50.0)
    assert plan(replace(TRAIN, steps=300)).seconds == pytest.approx(150.0)
    assert plan(replace(TRAIN, steps=3000)).seconds is None, "so short a run was mostly loading"
    assert plan(replace(TRAIN, batch_size=1)).stages[0].measured is False, "another size is another measurement"
    assert plan(replace(TRAIN, run="2026-01-01")).seconds is None, "how much of a run is left is not known here"


def test_seconds_of_drawing_go_with_pictures_and_steps(plan: Callable[..., Forecast], peaks: Peaks) -> None:
    peaks.record("demo", Measured("generate", 6.0, 2**30, 0, "64x64 batch 1", "cpu", "float32", units=60))
    assert plan(GENERATE).seconds == pytest.approx(6.0)
    assert plan(replace(GENERATE, count=1, steps=20)).seconds == pytest.approx(4.0)


# --- what fits ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("room", "words"),
    [
        (lambda made: made(replace(TRAIN, batch_size=1)), "learn from one photo at a time"),
        (lambda made: made(replace(TRAIN, gradient_checkpointing="full")), "choose full gradient checkpointing."),
        (lambda made: made(replace(TRAIN, batch_size=1, gradient_checkpointing="full")), "and batch size 1"),
        (lambda made: 1000, "Nothing smaller fits either: close other programs"),
    ],
)
def test_the_mildest_change_that_fits_is_named(
    plan: Callable[..., Forecast], room: Callable[[Any], int], words: str
) -> None:
    limit = room(lambda spec: plan(spec).peak_bytes)
    made = plan(TRAIN, limit)
    assert not made.fits and words in made.advice and made.limit_bytes == limit
    assert words in forecast_lines(made)[-1]


def test_a_disk_without_room_is_said(plan: Callable[..., Forecast], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_module, "free_bytes", lambda path: 10)
    made = plan(GENERATE)
    assert not made.fits and "10 bytes are free" in made.advice


def test_the_limit_of_a_card_is_obeyed(on_card: Callable[..., Forecast]) -> None:
    made = on_card(TRAIN, CONTEXT_BYTES)
    assert not made.fits and "--vram-limit" in made.advice
    assert made.notes == ("On cuda.", "A game holds 5 GB: close it.")
    assert forecast_lines(made)[-3:] == [*made.notes, f"This may not fit. {made.advice}"]
    enough = on_card(TRAIN, 2**35)
    assert enough.fits and enough.notes == ("On cuda.",), "who holds the rest matters only where it is missing"


def test_on_apples_gpus_the_plan_counts_main_memory_as_far_as_metal_gives_it(
    settings: Settings, world: FakeWorld, peaks: Peaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: device == "mps")
    monkeypatch.setattr("headshot_ui.settings.computes_in_bfloat16", lambda device: True)
    monkeypatch.setattr(forecast_module, "free_ram_bytes", lambda: 12 * 2**30)
    monkeypatch.setattr(forecast_module, "own_ram_bytes", lambda: 0)
    monkeypatch.setattr(forecast_module, "shared_vram_bytes", lambda settings: 10 * 2**30)
    monkeypatch.setattr(forecast_module, "plan_notes", lambda settings, device: ())
    mac = Settings.from_environment(root=settings.root, device="mps", environment={})
    half = forecast(TRAIN, mac, world.parts(), peaks)
    assert (half.memory_kind, half.limit_bytes) == ("memory", 10 * 2**30)
    full = Settings.from_environment(root=settings.root, device="mps", dtype="float32", environment={})
    assert half.peak_bytes < forecast(TRAIN, full, world.parts(), peaks).peak_bytes, "the plan knows of bfloat16"


# --- words --------------------------------------------------------------------------------------------
def test_two_to_five_plain_lines() -> None:
    train = StageForecast("train", ("denoiser",), 6 * 2**30, False, None)
    draw = StageForecast("generate", ("denoiser", "VAE"), 5 * 2**30, True, 200.0)
    made = Forecast((train, draw), "graphics memory", 8 * 2**30, 3 * 10**8, None, True, "")
    assert forecast_lines(made) == [
        "On the graphics card, one after the other: denoiser and VAE.",
        "Graphics memory: at most about 6.0 GB while learning (estimated); 8.0 GB may be used.",
        "Time: about 3 min 20 s without learning (not measured on this computer yet).",
        "Disk: about 286.1 MB.",
    ]
    alone = replace(made, stages=(draw,), memory_kind="memory", disk_bytes=0, seconds=200.0)
    assert forecast_lines(alone) == [
        "In memory: denoiser and VAE.",
        "Memory: at most about 5.0 GB (as measured before); 8.0 GB may be used.",
        "Time: about 3 min 20 s, judging by the last time.",
    ]
    assert len(forecast_lines(replace(made, fits=False, advice="Choose less."))) == 5


# --- the engine's ---------------------------------------------------------------------------------------
def test_the_engine_tells_plans_of_every_kind_at_once_and_from_any_thread(
    settings: Settings, world: FakeWorld, tmp_path: Path
) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")
    specs = [PrepareSpec("anna", (picture,), "demo"), TRAIN, GENERATE, RestoreSpec("anna", (picture,)),
             ExportSpec("anna", (picture,)),
             HeadshotsSpec(PrepareSpec("anna", (picture,), "demo"), TRAIN, GENERATE)]  # fmt: skip
    with Engine(settings, world.parts) as engine:
        for spec in specs:
            engine.forecast(spec)
            began = time.process_time()
            made = engine.forecast(spec)
            assert time.process_time() - began < 0.05
            assert made.fits and 2 <= len(forecast_lines(made)) <= 5
        assert engine.jobs() == ()
    stop_log()


def test_a_plan_after_a_job_has_what_the_job_took(settings: Settings, world: FakeWorld) -> None:
    spec = replace(GENERATE, lora=None)
    with Engine(settings, world.parts) as engine:
        assert engine.forecast(spec).seconds is None
        assert engine.submit(spec).wait(20).error is None
        (stage,) = engine.forecast(spec).stages
        assert stage.measured and stage.seconds is not None and stage.peak_bytes > 2**20
        assert engine.forecast(replace(spec, count=6)).seconds == pytest.approx(2 * stage.seconds)
    stop_log()


def test_a_plan_on_a_machine_without_a_gpu_loads_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys, shutil
shutil.which = lambda name: None
from pathlib import Path
exists = Path.exists
Path.exists = lambda self: False if str(self).startswith("/dev/") else exists(self)
from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, TrainSpec, RestoreSpec, ExportSpec
with Engine(Settings.from_environment(outputs_dir={str(tmp_path)!r}, environment={{}})) as engine:
    for spec in (TrainSpec("anna", "demo-sdxl"), GenerateSpec("anna", "demo-sdxl"), ExportSpec("anna", ("a.png",))):
        print(engine.forecast(spec).peak_bytes)
print(sorted(name for name in sys.modules if name in ("torch", "diffusers", "cv2")))
"""
    if sys.platform == "darwin":
        code = code.replace("environment={}", "device='cpu', environment={}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *plans, loaded = done.stdout.splitlines()
    assert len(plans) == 3 and loaded == "[]"
    assert all(2**30 < int(peak) < 3 * 2**30 for peak in plans), "near the 1.4 GB that was measured with the demo"
