"""Training as a whole: what it makes, how it goes on after a stop, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from headshot_ui import runs
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled, DatasetError, HeadshotError, SpecError, StoreError
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.runs import load_run
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store, read_json, read_png_metadata
from headshot_ui.training import runner
from headshot_ui.training.cache import cache_photos, picture_tensor
from headshot_ui.training.loop import Trainer
from headshot_ui.training.runner import ROOM_TO_STAY, TrainResult, train
from tests.training.conftest import Listener, make_dataset

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=6, rank=2, checkpoint_every=2, sample_every=100, seed=3)


def lora_bits(result: TrainResult) -> dict[str, bytes]:
    """Every tensor of the finished LoRA; the order of the file's header is safetensors' own affair."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(result.lora_path).items()}


def draw(loaded: LoadedBase) -> torch.Tensor:
    wanted = DenoiseRequest(
        loaded.encode_prompts(["portrait of tok person"]), loaded.encode_prompts([""]), (1,), 2, 2.0, 64, 64
    )
    return list(loaded.denoise(wanted))[-1].latents


@pytest.fixture(scope="module")
def straight(loaded: LoadedBase, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Six steps without a stop."""
    from headshot_ui.settings import Settings

    folder = tmp_path_factory.mktemp("straight")
    settings = Settings.from_environment(models_dir=models_dir, outputs_dir=folder, device="cpu", dtype="float32")
    return train(SPEC, Store(settings), loaded, make_dataset(folder / "dataset"), Listener())


def test_a_run_makes_a_lora_that_works(straight: TrainResult, loaded: LoadedBase) -> None:
    run = load_run(straight.run_dir)
    assert (run.state, run.step, run.total, run.lora_path) == ("done", 6, 6, straight.lora_path)
    assert straight.steps == 6 and len(straight.losses) == 6 and straight.seconds > 0
    assert read_json(straight.run_dir / "losses.json") == list(straight.losses)
    with safe_open(straight.lora_path, "pt") as file:
        header = file.metadata()
    assert {
        "family": "sdxl",
        "base": "tiny-sdxl",
        "rank": "2",
        "alpha": "2.0",
        "trigger": "tok",
        "licence": "Apache-2.0",
    }.items() <= header.items()
    assert run.facts["base_licence"] == "Apache-2.0"
    bare = draw(loaded)
    loaded.use_loras([(straight.lora_path, 1.0)])
    assert not torch.allclose(draw(loaded), bare, atol=1e-4)
    loaded.use_loras(())


def test_the_saved_spec_is_complete(straight: TrainResult) -> None:
    spec = load_run(straight.run_dir).spec
    open_fields = [name for name, value in dataclasses.asdict(spec).items() if value is None]
    assert open_fields == ["min_snr_gamma"]  # the tiny base has no default for it: no weighting
    assert (spec.run, spec.batch_size, spec.learning_rate, spec.alpha) == (straight.run_dir.name, 2, 1e-3, 2.0)


def test_every_step_is_reported(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    heard = Listener()
    spec = dataclasses.replace(SPEC, steps=3)
    result = train(spec, store, loaded, dataset, heard)
    assert heard.steps("Training") == [0, 1, 2, 3]
    assert [metrics["loss"] for metrics in heard.metrics] == list(result.losses)
    assert heard.metrics[-1]["loss_smoothed"] == pytest.approx(sum(result.losses) / 3)
    assert heard.steps("Reading the photos")[-1] == 5


def test_samples_show_the_way_and_change_nothing(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    heard = Listener()
    result = train(dataclasses.replace(SPEC, sample_every=3), store, loaded, dataset, heard)
    assert heard.previews == [result.run_dir / "samples" / f"step-00000{step}.png" for step in (3, 6)]
    assert read_png_metadata(heard.previews[0])["prompt"] == "portrait of tok person"
    assert heard.previews[0].read_bytes() != heard.previews[1].read_bytes()
    assert lora_bits(result) == lora_bits(straight)


@pytest.mark.parametrize(("room", "moves"), [(0, True), (ROOM_TO_STAY, False)])
def test_a_sample_moves_the_model_only_where_there_is_no_room(
    room: int, moves: bool, loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = loaded.keep

    def keep(parts: frozenset[str]) -> None:
        events.append("+".join(sorted(parts)))
        real(parts)

    monkeypatch.setattr(loaded, "keep", keep)
    monkeypatch.setattr(runner, "spare_vram_bytes", lambda settings: room)
    monkeypatch.setattr(Trainer, "let_go", lambda trainer: events.append("let go"))
    train(dataclasses.replace(SPEC, steps=2, sample_every=1), store, loaded, dataset, Listener())
    sample = ["let go", "vae", "denoiser"] if moves else ["denoiser+vae", "denoiser"]
    assert events == ["text", "vae", "denoiser", *sample, *sample, "let go"]


def test_afterwards_the_base_is_as_before(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    before = draw(loaded)
    train(dataclasses.replace(SPEC, steps=2, gradient_checkpointing="full"), store, loaded, dataset, Listener())
    assert torch.equal(draw(loaded), before)
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=1))
    assert torch.equal(draw(loaded), before)
    assert not loaded.modules.unet.is_gradient_checkpointing


def test_photos_read_ahead_are_those_read_one_by_one(loaded: LoadedBase, dataset: Dataset) -> None:
    texts = {photo.caption: {"words": torch.zeros(1)} for photo in dataset.photos}
    items = cache_photos(loaded, dataset, texts, Listener())
    photos = [photo for photo in dataset.photos if photo.verdict == "train"]
    assert len(items) == len(photos) == 5
    for item, photo in zip(items, photos, strict=True):
        alone = loaded.encode_images(picture_tensor(dataset.folder / photo.crop))[0]
        assert torch.equal(item.latents, alone) and item.original_size == photo.original_size
    (dataset.folder / photos[3].crop).write_bytes(b"no picture")
    heard = Listener()
    with pytest.raises(DatasetError, match=photos[3].crop):
        cache_photos(loaded, dataset, texts, heard)
    assert heard.steps("Reading the photos") == [0, 1, 2, 3], "those before it were encoded"


# --- stopping and going on -------------------------------------------------------------------------
def test_a_cancelled_run_goes_on_and_ends_bit_equal(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=3))
    (run,) = runs.list_runs(store, "anna")
    assert (run.state, run.step) == ("cancelled", 3)  # step 3 is no multiple of checkpoint_every
    heard = Listener()
    torch.manual_seed(12345)  # nothing may depend on it
    result = train(TrainSpec(person="anna", base="tiny-sdxl", run=run.name), store, loaded, dataset, heard)
    assert heard.steps("Training") == [3, 4, 5, 6]
    assert result.run_dir == run.folder
    assert result.losses == straight.losses
    assert lora_bits(result) == lora_bits(straight)
    assert load_run(run.folder).state == "done"


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation": 2, "min_snr_gamma": 5.0, "caption_dropout": 0.5},
        {"prior_preservation": True, "class_pictures": 3, "gradient_checkpointing": "partial"},
    ],
)
def test_all_settings_go_on_bit_equal(
    changes: dict[str, object], loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    spec = dataclasses.replace(SPEC, steps=4, **changes)
    whole = train(spec, store, loaded, dataset, Listener())
    with pytest.raises(Cancelled):
        train(spec, store, loaded, dataset, Listener(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    result = train(dataclasses.replace(spec, run=run.name), store, loaded, dataset, Listener())
    assert (result.losses, lora_bits(result)) == (whole.losses, lora_bits(whole))


def test_a_run_goes_on_with_checkpointing_where_memory_has_become_short(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=3))
    (run,) = runs.list_runs(store, "anna")
    assert run.spec.gradient_checkpointing == "none"
    on: list[bool] = []

    class Watcher(Listener):
        def __call__(self, stage: str, *told: object, **more: object) -> None:
            if stage == "Training":
                on.append(loaded.modules.unet.is_gradient_checkpointing)
            super().__call__(stage, *told, **more)  # type: ignore[arg-type]

    spec = TrainSpec(person="anna", base="tiny-sdxl", run=run.name, gradient_checkpointing="full")
    result = train(spec, store, loaded, dataset, Watcher())
    assert on[1:] and all(on[1:]), "before its first step it may still be off"
    assert (result.losses, lora_bits(result)) == (straight.losses, lora_bits(straight))
    assert load_run(run.folder).spec.gradient_checkpointing == "full"
    assert not loaded.modules.unet.is_gradient_checkpointing


WORKER = """
import sys
from pathlib import Path
import torch
from headshot_ui import families
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from headshot_ui.training.runner import train
from tests.training.conftest import make_dataset
from tests.training.test_runner import SPEC

torch.set_num_threads({threads})
settings = Settings.from_environment(models_dir={models!r}, outputs_dir={outputs!r}, device="cpu", dtype="float32")
loaded = families.load_base(families.find_base("tiny-sdxl", settings), settings)


def report(stage, step, total, preview=None, metrics=None):
    if stage == "Training" and step == 5:
        print("five", flush=True)
        sys.stdin.read()  # wait here to be killed


train(SPEC, Store(settings), loaded, make_dataset(Path({photos!r})), report)
"""


def test_a_killed_run_goes_on_and_ends_bit_equal(
    straight: TrainResult, loaded: LoadedBase, store: Store, models_dir: Path, tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path / "dataset")
    code = WORKER.format(
        threads=torch.get_num_threads(),
        models=str(models_dir),
        outputs=str(store.settings.outputs_dir),
        photos=str(dataset.folder),
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert worker.stdout and worker.stdin
    try:
        assert worker.stdout.readline() == "five\n"
        (run,) = runs.list_runs(store, "anna")
        assert run.alive
        with pytest.raises(StoreError, match="another window"):
            train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener())
    finally:
        worker.kill()
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
    (run,) = runs.recover_runs(store)
    assert (run.state, run.step) == ("interrupted", 4)  # no more than checkpoint_every steps are lost
    (run.folder / "checkpoints" / "step-000006.tmp").mkdir()  # as if killed while writing
    result = train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener())
    assert (result.losses, lora_bits(result)) == (straight.losses, lora_bits(straight))
    assert not list(run.folder.rglob("*.tmp"))


def test_a_finished_run_can_be_made_longer(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    short = train(dataclasses.replace(SPEC, steps=4), store, loaded, dataset, Listener())
    longer = TrainSpec(person="anna", base="tiny-sdxl", run=short.run_dir.name, steps=6)
    result = train(longer, store, loaded, dataset, Listener())
    assert (result.losses, lora_bits(result)) == (straight.losses, lora_bits(straight))


def flip_a_byte(folder: Path) -> None:
    path = folder / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "lora.safetensors").unlink()


def half_a_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_file, half_a_state])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=5))
    (run,) = runs.list_runs(store, "anna")
    damage(run.folder / "checkpoints" / "step-000005")
    heard = Listener()
    result = train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, heard)
    assert any("step 4" in stage and "step-000005 is damaged" in stage for stage, _, _ in heard.heard)
    assert heard.steps("Training") == [4, 5, 6]
    assert (result.losses, lora_bits(result)) == (straight.losses, lora_bits(straight))


def test_without_a_whole_checkpoint_it_begins_again(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=1))
    (run,) = runs.list_runs(store, "anna")
    lose_a_file(run.folder / "checkpoints" / "step-000001")
    result = train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener())
    assert lora_bits(result) == lora_bits(straight)


# --- prior preservation --------------------------------------------------------------------------
def test_class_pictures_are_drawn_once_without_the_trigger(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    spec = dataclasses.replace(SPEC, steps=1, prior_preservation=True, class_pictures=5)
    heard = Listener()
    first = train(spec, store, loaded, dataset, heard)
    pictures = sorted((store.person_dir("anna") / "class_pictures").rglob("*.png"))
    assert len(pictures) == 5
    assert not any("tok" in read_png_metadata(path)["prompt"] for path in pictures)
    assert "portrait of person, soft light" in read_png_metadata(pictures[0])["prompt"]
    assert "Drawing pictures of other people" in {stage for stage, _, _ in heard.heard}
    before = [path.stat().st_mtime_ns for path in pictures]
    pictures[4].unlink()  # as if the drawing had been cut off
    again = train(spec, store, loaded, dataset, Listener())
    after = [path.stat().st_mtime_ns for path in pictures]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, True, True, False]
    assert again.losses == first.losses
    assert again.losses != train(dataclasses.replace(SPEC, steps=1), store, loaded, dataset, Listener()).losses


def test_photos_of_several_shapes_learn_together(loaded: LoadedBase, store: Store, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "shapes", ((64, 64), (80, 64), (64, 80), (80, 64)))
    spec = dataclasses.replace(SPEC, steps=5, prior_preservation=True, class_pictures=2)
    assert len(train(spec, store, loaded, dataset, Listener()).losses) == 5


# --- what can go wrong -----------------------------------------------------------------------------
def test_no_usable_photo_is_told_and_leaves_no_run(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    empty = dataclasses.replace(dataset, photos=dataset.photos[-1:])
    with pytest.raises(DatasetError, match="no usable photo"):
        train(SPEC, store, loaded, empty, Listener())
    assert runs.list_runs(store, "anna") == ()


def test_an_unreadable_trigger_word_is_told(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="“sks”.*“tok”"):
        train(SPEC, store, loaded, dataclasses.replace(dataset, trigger="sks"), Listener())
    assert runs.list_runs(store, "anna") == ()


def test_a_missing_or_unreadable_crop_is_named(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    (dataset.folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"1\.png"):
        train(SPEC, store, loaded, dataset, Listener())
    assert runs.list_runs(store, "anna")[0].state == "failed"
    (dataset.folder / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"IMG_1\.jpg"):
        train(SPEC, store, loaded, dataset, Listener())


def test_changed_photos_do_not_go_into_an_old_run(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=1))
    (run,) = runs.list_runs(store, "anna")
    photos = (dataclasses.replace(dataset.photos[0], caption="portrait of tok person, smile"), *dataset.photos[1:])
    with pytest.raises(DatasetError, match="changed"):
        train(
            dataclasses.replace(SPEC, run=run.name),
            store,
            loaded,
            dataclasses.replace(dataset, photos=photos),
            Listener(),
        )
    assert load_run(run.folder).state == "cancelled"


def test_another_base_cannot_go_on(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=1))
    (run,) = runs.list_runs(store, "anna")
    manifest = json.loads((run.folder / "run.json").read_text())
    manifest["spec"]["base"] = "grand-sdxl"
    (run.folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(SpecError, match="grand-sdxl"):
        train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener())


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loaded.loss, []

    def broken(*args: object) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(loaded, "loss", broken)
    with pytest.raises(HeadshotError, match="step 4.*lower learning rate"):
        train(SPEC, store, loaded, dataset, Listener())
    (run,) = runs.list_runs(store, "anna")
    assert (run.state, run.step) == ("failed", 2)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000002"]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(
    loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import headshot_ui.training.checkpoint as checkpoint

    real = checkpoint.write_bytes_atomic

    def full(path: Path, data: bytes) -> None:
        if path.parent.name.startswith("step-000004"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:10])
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes_atomic", full)
    with pytest.raises(StoreError, match="disk is full"):
        train(SPEC, store, loaded, dataset, Listener())
    monkeypatch.undo()
    (run,) = runs.list_runs(store, "anna")
    assert (run.state, run.step) == ("failed", 2)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000002"], "no part takes up room"
    assert len(train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener()).losses) == 6


def test_old_checkpoints_are_cleared_away(
    straight: TrainResult, loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    result = train(dataclasses.replace(SPEC, checkpoint_every=1), store, loaded, dataset, Listener())
    kept = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000005", "step-000006"]
