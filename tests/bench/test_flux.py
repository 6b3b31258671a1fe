"""FLUX.1 beside the published loop and pipeline: both ways do the same work, and the rows say it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from headshot_ui import pinned
from headshot_ui.bench import flux, machine
from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.flux import RandomFlux, bound
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed
from headshot_ui.bench.works import all_works, flux_generate, flux_train
from headshot_ui.bench.works.flux_train import CASES, Case, row_of
from headshot_ui.cli import main
from headshot_ui.errors import StoreError
from headshot_ui.generation.kept_prompts import KeptPrompts
from headshot_ui.logs import stop_log
from headshot_ui.settings import Settings
from headshot_ui.specs import NONE
from headshot_ui.training import rehearsal

ORDINARY = CompilingClock(asked=False)


def a_setting(folder: Path, size: str = "tiny", device: str = "cpu") -> BenchSetting:
    settings = Settings.from_environment(device="cpu", outputs_dir=folder / "outputs", environment={})
    settings.__dict__["device"] = device
    return BenchSetting(settings, size, 1, folder / "scratch", lambda _: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> RandomFlux:
    return RandomFlux.make(a_setting(tmp_path_factory.mktemp("bench")))


def test_they_are_found_beside_those_of_another_model() -> None:
    assert all_works("flux") == {"generate": flux_generate.WORK, "train": flux_train.WORK}
    assert flux_train.WORK not in all_works().values() and all_works("none") == {}


def test_a_model_that_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "sd15", "--outputs", str(tmp_path), "--device", "cpu"]) in (1, 2)
    stop_log()
    assert "choose from flux, sdxl" in capsys.readouterr().err


def test_no_clock_runs_while_memory_is_being_locked(models: RandomFlux, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded only when it is done: what was timed before would be the steps one by one."""
    said: list[str] = []

    @contextmanager
    def way(drawing: flux_generate.Drawing) -> Iterator[Callable[[int], None]]:
        yield lambda steps: said.append("drawn")

    def measured(run: Callable[[], object], *_: object, **__: object) -> Timed:
        said.append("timed")
        return Timed(1.0, 0.0, None)

    monkeypatch.setattr(pinned, "settle", lambda: said.append("settled"))
    monkeypatch.setitem(flux_generate._WAYS, "exact", way)
    monkeypatch.setattr(flux_generate, "measure", measured)
    flux_generate.Drawing(models, 1).timed("exact")
    assert said == ["drawn", "settled", "timed"]
    monkeypatch.setattr(rehearsal, "look_ahead", lambda trainer: said.append("on the card"))
    with models.ours() as loaded:
        flux_train.our_steps(loaded, models, Case(128, NONE))
    assert said[-2:] == ["on the card", "settled"]


# --- training -------------------------------------------------------------------------------------------
def test_both_ways_train_the_same_layers_on_the_same_photos(
    models: RandomFlux, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And either learns: the published loop's LoRA has moved after two steps as ours has."""
    case = Case(128, NONE)
    with models.transformer() as transformer:
        step = flux_train.reference_steps(transformer, models, case)
        assert all(torch.isfinite(torch.tensor(step())) for _ in range(2))
        theirs = {name.replace(".default.", "."): p for name, p in transformer.named_parameters() if p.requires_grad}
        assert {p.dtype for p in theirs.values()} == {torch.float32}
        assert all(bool(p.any()) for p in theirs.values()), "B is zero as long as nothing is learned"
    with models.ours() as loaded:
        run_step = flux_train.our_steps(loaded, models, case)
        for _ in range(2):
            run_step()
        ours = loaded.trainable_lora_state()
    assert {f"transformer.{name}": p.shape for name, p in theirs.items()} == {n: p.shape for n, p in ours.items()}
    assert all(bool(tensor.any()) for tensor in ours.values())


def test_the_published_loss_is_the_one_of_the_program(models: RandomFlux, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's loss at the same noise and timestep: what is timed is the recipe and no other work."""
    from headshot_ui.training.cache import make_batch

    case = Case(128, NONE)
    item = flux_train.photos_of(models, 128)[0]
    with models.ours() as loaded:
        loaded.keep(frozenset({"denoiser"}))
        inputs = dict(
            loaded.loss_inputs(make_batch([item], [False], item.embeds), torch.Generator().manual_seed(0), None)
        )
        inputs["guidance"] = torch.full((1,), flux.GUIDANCE)
        wanted = float(loaded.loss(inputs))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(item.latents[None].shape, generator=generator)
    drawn = torch.randn(1, generator=generator).sigmoid()
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: noise)
    monkeypatch.setattr("diffusers.training_utils.compute_density_for_timestep_sampling", lambda *_, **__: drawn)
    with models.transformer() as transformer:
        step = flux_train.reference_steps(transformer, models, case)
        assert step() == pytest.approx(wanted, abs=1e-5)


def test_a_training_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "matmul_flops", lambda *_: 750e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    full = a_setting(tmp_path, "full", "cuda")
    first, second = CASES
    row = row_of(first, Timed(0.5, 0.0, 3), Timed(0.1, 0.0, 2), full, ORDINARY)
    assert (row.ratio, row.met, row.bound_s) == (5.0, True, 0.06) and row.goal == "at most 0.10 s on an H200"
    row = row_of(second, Timed(0.76, 0.0, 3), Timed(0.51, 0.0, 2), full, ORDINARY)
    assert row.met is False and row.bound_s == pytest.approx(0.22) and "checkpointing" in row.work
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert row_of(first, Timed(0.5, 0.0, 3), Timed(0.01, 0.0, 2), full, ORDINARY).met is None
    tiny = row_of(flux_train.TINY_CASES[0], Timed(1.0, 0.0, None), Timed(1.0, 0.0, None), a_setting(tmp_path), ORDINARY)
    assert (tiny.met, tiny.bound_s, tiny.goal) == (None, None, "")


def test_the_turns_of_training(models: RandomFlux, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(RandomFlux, "make", lambda _, lock: models)

    def took(way: str, seconds: float, *_: object) -> Timed:
        turns.append(way)
        return Timed(seconds, 0.0, None)

    monkeypatch.setattr(flux_train, "theirs", partial(took, "theirs", 2.0))
    monkeypatch.setattr(flux_train, "ours", partial(took, "ours", 1.0))
    rows = list(flux_train.measure_training(models.setting))
    assert turns == ["theirs", "ours", "ours", "theirs"] * 2 and [row.ratio for row in rows] == [2.0, 2.0]
    assert [row.work for row in rows] == [case.title for case in flux_train.TINY_CASES]


# --- drawing --------------------------------------------------------------------------------------------
def test_drawing_when_tiny(models: RandomFlux, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise and words: the pipeline's picture and ours are one picture."""
    monkeypatch.setattr(RandomFlux, "make", lambda _: models)
    monkeypatch.setattr(flux_generate, "in_both_orders", lambda first, second, _: (first(), second()))
    known = []
    find = KeptPrompts.find
    monkeypatch.setattr(KeptPrompts, "find", lambda self, text: known.append(find(self, text)))
    exact, fast = flux_generate.measure_generate(models.setting)
    assert known and not any(known), "the pipeline reads its words each time, so we do too"
    assert exact.reference_s > 0 and exact.ours_s > 0 and exact.bound_s is None and "Drawing" in exact.note
    assert float(exact.note.split(" dB")[0].split()[-1]) >= 40, "another picture than that of diffusers' pipeline"
    assert fast.reference_s == exact.reference_s and "fast" in fast.work


def test_what_arithmetic_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "matmul_flops", lambda *_: 1e15)
    work = flux.STEPS * flux.PASS_TFLOP + flux.DECODING_TFLOP
    assert bound(work, a_setting(tmp_path, "full", "cuda")) == pytest.approx(2.094, abs=0.001)
    assert bound(work, a_setting(tmp_path, "tiny", "cuda")) is None
    assert bound(work, a_setting(tmp_path, "full", "cpu")) is None


def test_the_disk_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headshot_ui.store.free_bytes", lambda _: 10**9)
    with pytest.raises(StoreError, match="31.7 GB"):
        RandomFlux.make(a_setting(tmp_path, "full"))
    assert not (tmp_path / "scratch").exists()
