"""The plan of FLUX.1-dev on cards of every size, by the published config and the headers of its weights."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui import forecast as forecast_module
from headshot_ui.amounts import Known, plan_generate
from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.flux_parts import choosing
from headshot_ui.families.flux_parts.choosing import Budget, choose_for, least_bytes
from headshot_ui.families.flux_parts.fitting import RECOMPUTED, Work, _ways
from headshot_ui.families.flux_parts.sizes import lora_parameters, shape_of
from headshot_ui.forecast import Forecast, forecast, forecast_lines, settled
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.parts import real_parts
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.residency import Residency
from headshot_ui.runs import change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import FULL, NONE, GenerateSpec, TrainSpec
from headshot_ui.store import Store
from headshot_ui.workshop import base_key
from tests.tiny_flux import make_tiny_flux

GIB = 2**30
CONFIG = {"guidance_embeds": True, "in_channels": 64}  # the rest is the class's default: FLUX.1-dev
TRAIN = TrainSpec("anna", "dev", steps=1000, rank=16, batch_size=1, size_px=512)
DRAW = GenerateSpec("anna", "dev", prompt="portrait of {subject}", count=1, steps=28, width=1024, height=1024)


def header_only(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """What a safetensors file says it holds, in bfloat16."""
    header, start = {}, 0
    for name, shape in tensors.items():
        end = start + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With a base of the size of FLUX.1-dev, of which there are no weights."""
    from diffusers import FluxTransformer2DModel

    root = tmp_path_factory.mktemp("published")
    folder = make_tiny_flux(root / "models" / "dev", base_id="dev")
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in FluxTransformer2DModel(**CONFIG).named_parameters()}
    header_only(folder / "transformer" / "model.safetensors", shapes)
    header_only(folder / "text_encoder" / "model.safetensors", {"w": (123_060_480,)})
    header_only(folder / "text_encoder_2" / "model.safetensors", {"w": (4_762_310_656,)})
    header_only(folder / "vae" / "model.safetensors", {"w": (83_819_683,)})
    (folder / "transformer" / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    words = folder / "tokenizer_2" / "tokenizer_config.json"
    words.write_text(json.dumps({**json.loads(words.read_text("utf-8")), "model_max_length": 512}), "utf-8")
    told = folder / "base.json"
    told.write_text(json.dumps({**json.loads(told.read_text("utf-8")), "size_px": 1024}), "utf-8")
    return Settings.from_environment(root=root, models_dir=root / "models", device="cuda", dtype="bfloat16",
                                     environment={})  # fmt: skip


Planner = Callable[..., Forecast]


@pytest.fixture
def peaks(machine: Settings, tmp_path: Path) -> Peaks:
    return Peaks(tmp_path)


@pytest.fixture
def card(machine: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """A machine with so much graphics memory and main memory."""

    def of(vram_gib: float, ram_gib: float = 32) -> Settings:
        monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
        for module in (choosing, forecast_module):
            monkeypatch.setattr(module, "vram_budget_bytes", lambda settings: int(vram_gib * GIB))
            monkeypatch.setattr(module, "free_ram_bytes", lambda: int(ram_gib * GIB))
            monkeypatch.setattr(module, "own_ram_bytes", lambda: 0)
        monkeypatch.setattr(forecast_module, "plan_notes", lambda settings, device: ())
        return replace(machine, vram_limit_bytes=int(vram_gib * GIB))

    return of


def train_on(settings: Settings, peaks: Peaks, spec: TrainSpec = TRAIN) -> tuple[TrainSpec, Forecast]:
    parts = real_parts()
    return settled(spec, settings, parts, peaks), forecast(spec, settings, parts, peaks)


@pytest.mark.parametrize(
    ("vram", "learning", "level", "drawing"),
    [
        (48, r"in 16 bit \(", NONE, r"in 16 bit, and its text encoders stay on the card beside it \("),
        (32, "in 16 bit, because what depends on the timestep only", NONE, r"in 16 bit \("),
        (24, "in 16 bit, because what depends on the timestep only", FULL, "in 16 bit, because"),
        (16, r"in 8 bit \(", FULL, r"in 8 bit \("),
        (12, r"in 8 bit \(", FULL, r"in 8 bit \("),
        (8, r"in 8 bit, with 3\d of its 57", FULL, r"in 8 bit, with [12]\d of its 57"),
    ],
)
def test_the_plan_says_how_it_fits(
    card: Callable[..., Settings], peaks: Peaks, vram: int, learning: str, level: str, drawing: str
) -> None:
    settings = card(vram)
    spec, made = train_on(settings, peaks)
    assert made.fits and made.peak_bytes <= vram * GIB
    assert spec.gradient_checkpointing == level
    assert re.search(f"FLUX.1 fits {learning}", "\n".join(forecast_lines(made)))
    drawn = forecast(DRAW, settings, real_parts(), peaks)
    assert drawn.fits and re.search(f"FLUX.1 fits {drawing}", "\n".join(forecast_lines(drawn)))
    work = DenoiserWork(FULL, 1024, 1024, 1, 257, rank=16)
    large = choose_for(families.find_base("dev", settings), work, Budget(vram * GIB, 32 * GIB))
    assert large.fit.vram_bytes <= vram * GIB and large.fit.ram_bytes <= 32 * GIB
    assert large.streams_text == (vram == 8)


def test_where_all_parts_clearly_fit_they_stay_and_are_counted(card: Callable[..., Settings], peaks: Peaks) -> None:
    info = families.find_base("dev", card(80))
    weights = 22.17 + 9.10 + 0.31  # GiB: transformer, text encoders, VAE in float32
    drawing = DenoiserWork(None, 1024, 1024, 1, 28)
    least = next(gib for gib in range(30, 60) if choose_for(info, drawing, Budget(gib * GIB, 32 * GIB)).together)
    there = choose_for(info, drawing, Budget(80 * GIB, 32 * GIB)).together
    assert there is not None and there.weights / GIB == pytest.approx(weights, abs=0.02)
    decoding = 2500 * 1024**2 / GIB  # more than drawing one picture takes
    assert there.vram_bytes / GIB == pytest.approx(weights + decoding + 0.84, abs=0.02)
    assert least - 1 < 1.1 * there.vram_bytes / GIB <= least
    for kept in (replace(drawing, learning=FULL), replace(drawing, batch=40)):
        assert choose_for(info, kept, Budget(80 * GIB, 32 * GIB)).together is None

    made = forecast(DRAW, card(80), real_parts(), peaks)
    assert made.peak_bytes >= there.vram_bytes > forecast(DRAW, card(32), real_parts(), peaks).peak_bytes
    (told,) = made.notes
    assert told.startswith("FLUX.1 fits in 16 bit, and its text encoders stay on the card beside it (about 3")
    settings = card(80)
    staged = plan_generate(DRAW, Known(settings, real_parts(), "cuda", "bfloat16"))
    assert {turn.name for turn in staged.turns} >= {"text encoders", "denoiser", "VAE", "face detector"}
    assert all(turn.weight_bytes >= there.weights for turn in staged.turns), "whichever computes"
    size = "1024x1024 batch 1, 16 bit"  # what was measured when parts took turns
    peaks.record("dev", Measured("generate", 5.0, 0, 25 * GIB, size, "cuda", "bfloat16", units=28))
    assert not forecast(DRAW, card(80), real_parts(), peaks).stages[0].measured


def test_checkpointing_is_preferred_to_8_bit(card: Callable[..., Settings], peaks: Peaks) -> None:
    """A card of 24 GB would hold 8 bit without checkpointing, and holds 16 bit with it."""
    spec, made = train_on(card(24), peaks)
    assert spec.gradient_checkpointing == FULL and "16 bit" in made.notes[0]
    with pytest.raises(MemoryBudgetError, match="learn with full gradient checkpointing"):
        forecast(replace(TRAIN, gradient_checkpointing=NONE), card(24), real_parts(), peaks)


@pytest.mark.parametrize(("vram", "ram", "kind"), [(1.5, 32, "graphics"), (24, 8, "free main"), (8, 8, "free main")])
def test_what_fits_in_no_way_is_said_before_anything_is_loaded(
    card: Callable[..., Settings], peaks: Peaks, vram: float, ram: int, kind: str
) -> None:
    for spec in (TRAIN, DRAW):
        with pytest.raises(MemoryBudgetError, match=rf"^FLUX.1 needs about .* GB of {kind} memory"):
            forecast(spec, card(vram, ram), real_parts(), peaks)


def test_little_main_memory_is_a_reason_for_8_bit(card: Callable[..., Settings], peaks: Peaks) -> None:
    """In 16 bit the transformer has no place to go while the VAE makes a sample."""
    assert "in 8 bit (" in train_on(card(24, 16), peaks)[1].notes[0]
    assert "in 16 bit" in train_on(card(24, 32), peaks)[1].notes[0]


def test_a_run_that_goes_on_keeps_to_its_precision(card: Callable[..., Settings]) -> None:
    info = families.find_base("dev", card(12))
    work = DenoiserWork(FULL, 512, 512, 1, 257, rank=16)
    assert choose_for(info, work, Budget(24 * GIB, 32 * GIB), "8 bit").fit.eight_bit
    assert not choose_for(info, work, Budget(24 * GIB, 32 * GIB), "").fit.eight_bit
    with pytest.raises(MemoryBudgetError, match=r"^This training was begun in 16 bit and goes on only so\. FLUX"):
        choose_for(info, work, Budget(12 * GIB, 32 * GIB), "")


def test_the_plan_of_a_run_that_goes_on_is_in_the_way_it_found(
    card: Callable[..., Settings], peaks: Peaks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(settings: Settings, spec: TrainSpec) -> str:
        found = forecast(spec, replace(settings, outputs_dir=tmp_path), real_parts(), peaks)
        return re.findall(r"in 8 bit, with \d+|in 8 bit", found.notes[0])[0]

    settings = card(12)
    spec = replace(TRAIN, gradient_checkpointing=FULL)
    run = create_run(Store(replace(settings, outputs_dir=tmp_path)), spec)
    going_on = replace(spec, run=run.name)
    change_run(run, facts={"precision": "8 bit"})
    assert planned(settings, going_on) == planned(settings, spec) == "in 8 bit"
    enough = {"title": "", "vram_bytes": 10 * GIB, "card_bytes": 12 * GIB}
    change_run(run, facts={"precision": "8 bit", "enough_memory": enough})
    monkeypatch.setattr("headshot_ui.training.fitting.card_bytes", lambda settings: settings.vram_limit_bytes)
    assert planned(settings, going_on).startswith("in 8 bit, with 1") and planned(settings, spec) == "in 8 bit"
    assert planned(card(16), going_on) == "in 8 bit", "the card is larger now"


def test_what_was_measured_in_another_way_is_not_expected(card: Callable[..., Settings], peaks: Peaks) -> None:
    settings = card(24)
    size = "512x512 batch 1 checkpointed, 16 bit without modulation layers"
    peaks.record("dev", Measured("train", 900.0, 0, 21 * GIB, size, "cuda", "bfloat16", units=1000))
    spec = replace(TRAIN, gradient_checkpointing=FULL)
    measured = forecast(spec, settings, real_parts(), peaks).stages[0]
    assert measured.measured and measured.peak_bytes == 21 * GIB + CONTEXT_BYTES
    assert not forecast(spec, card(12), real_parts(), peaks).stages[0].measured


def test_room_is_made_for_what_it_takes_at_least(
    card: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = card(8)
    monkeypatch.setattr("headshot_ui.residency.total_ram_bytes", lambda: 32 * GIB)
    monkeypatch.setattr("headshot_ui.residency.free_ram_bytes", lambda: 28 * GIB)
    monkeypatch.setattr("headshot_ui.residency.free_vram_bytes", lambda settings: 7 * GIB)
    key = base_key(families.find_base("dev", settings))
    main, graphics = Residency(settings).memory_for(key)
    assert main.fits and graphics.fits and graphics.needed > GIB and main.needed > 9 * GIB
    without = Residency(settings).memory_for(replace(key, least=()))
    assert not without[1].fits and without[1].needed > 22 * GIB
    assert least_bytes(families.find_base("dev", settings)).keys() == {"transformer", "text_encoder", "text_encoder_2"}


def test_other_bases_stay_as_their_files_say(settings: Settings, card: Callable[..., Settings]) -> None:
    """On the CPU FLUX.1 is whole."""
    info = families.find_base("tiny-flux", settings)
    work = DenoiserWork(None, 64, 64, 1, 2)
    assert families.fitting(info, work, settings) is None
    assert families.fitting(info, work, replace(card(8), wanted_dtype="float32")) is None, "made for bfloat16"
    assert families.least_bytes(replace(info, family="sdxl")) == {}


def test_the_page_says_what_the_formulas_say(card: Callable[..., Settings]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "FLUX.md").read_text("utf-8")
    found = [line for line in page.splitlines() if line.startswith("| ") and " GB |" in line]
    info = families.find_base("dev", card(8))

    def cell(learning: bool, side: int, vram: int) -> str:
        work = DenoiserWork(FULL if learning else None, side, side, 1, 257 if learning else 28, rank=16)
        fit = choose_for(info, work, Budget(vram * GIB, 32 * GIB)).fit
        return f"{fit.title}: {fit.vram_bytes / GIB:.1f}, {fit.ram_bytes / GIB:.1f}"

    wanted = [
        f"| {vram} GB | {cell(True, 512, vram)} | {cell(True, 1024, vram)} | {cell(False, 1024, vram)} |"
        for vram in (32, 24, 16, 12, 8)
    ]
    assert found == wanted, "\n".join(wanted)


def test_the_page_says_what_was_measured(card: Callable[..., Settings]) -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs" / "FLUX.md").read_text("utf-8")
    found = [line for line in page.splitlines() if line.startswith("| ") and " GiB |" in line]
    runs = json.loads((root / "benchmarks" / "results" / "flux-fitting-h200.json").read_text("utf-8"))
    bench = json.loads((root / "benchmarks" / "results" / "flux-train-h200.json").read_text("utf-8"))["rows"]
    points = [
        (run["side"], FULL, run["way"], f"{run['cap_gib']:.0f} GiB", run["learning"]["reserved_gib"])
        for run in runs
        if run["ok"]
    ]
    points += [
        (side, level, "16 bit", "all", row["ours_peak_bytes"] / GIB)
        for side, level, row in zip((512, 1024), (NONE, FULL), bench, strict=True)
    ]
    shape = shape_of(CONFIG)

    def line(side: int, level: str, way: str, cap: str, reserved: float) -> str:
        work = Work(True, side, side, 20, lora=lora_parameters(shape, 16), recomputed=RECOMPUTED[level])
        (fit,) = [one for one in _ways(shape, work, 0, 64 * GIB) if one.title == way]
        estimate = (fit.vram_bytes - CONTEXT_BYTES) / GIB
        how = "with checkpointing" if level == FULL else "without checkpointing"
        return f"| {side} px, {how} | {way} | {cap} | {reserved:.2f} GiB | {estimate:.2f} GiB |"

    wanted = [line(*point) for point in points]
    assert found == wanted, "\n".join(wanted)
