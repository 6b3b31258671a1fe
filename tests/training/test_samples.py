"""When graphics memory runs out in a sample: it is drawn in a smaller way or left out, and the training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui.dataset.types import Dataset
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.runs import load_run
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training import drawing, runner
from headshot_ui.training.loop import Trainer
from headshot_ui.training.runner import train
from tests.training.conftest import Listener

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=4, rank=2, checkpoint_every=2, sample_every=2, seed=3,
                 caption_dropout=0.5, gradient_checkpointing="none")  # fmt: skip
SHORT = "CUDA out of memory. Tried to allocate 136.00 MiB."


def ended(store: Store, loaded: LoadedBase, dataset: Dataset, listener: Listener) -> dict[str, Any]:
    """What a training made: losses, LoRA and samples."""
    from safetensors.torch import load_file

    done = train(SPEC, store, loaded, dataset, listener)
    assert load_run(done.run_dir).state == "done"
    lora = {name: tensor.numpy().tobytes() for name, tensor in load_file(done.lora_path).items()}
    samples = {path.name: path.read_bytes() for path in sorted(done.run_dir.glob("samples/*"))}
    return {"losses": done.losses, "lora": lora, "samples": samples}


@pytest.fixture
def wanted(store: Store, loaded: LoadedBase, dataset: Dataset, tmp_path: Path) -> dict[str, Any]:
    elsewhere = Store(replace(store.settings, outputs_dir=tmp_path / "elsewhere"))
    made = ended(elsewhere, loaded, dataset, Listener())
    assert list(made["samples"]) == ["step-000002.png", "step-000004.png"]
    return made


def failing(loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch, name: str, *calls: int) -> list[dict[str, Any]]:
    """Memory runs out in these calls of a method, counted from 1; returns how each was called."""
    real, made = getattr(loaded, name), list[dict[str, Any]]()

    def short(*args: Any, **how: Any) -> Any:
        made.append(how)
        if len(made) in calls:
            raise torch.OutOfMemoryError(SHORT)
        return real(*args, **how)

    monkeypatch.setattr(loaded, name, short)
    return made


@pytest.mark.parametrize("where", ["denoise", "decode_latents"])
def test_a_sample_without_room_is_left_out(
    where: str,
    store: Store,
    loaded: LoadedBase,
    dataset: Dataset,
    wanted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing(loaded, monkeypatch, where, *((1,) if where == "denoise" else (1, 2, 3)))
    kept: list[set[str]] = []
    keep = type(loaded).keep
    monkeypatch.setattr(loaded, "keep", lambda parts: (kept.append(set(parts)), keep(loaded, parts))[1])
    listener = Listener()
    made = ended(store, loaded, dataset, listener)
    del wanted["samples"]["step-000002.png"]
    assert made == wanted, "the same to the last bit, and the next sample is there"
    said = "No sample was drawn at step 2: the graphics memory ran out. The training goes on without it."
    cleared = [{"vae"}, {"denoiser"}, *([{"vae"}, set(), {"vae"}, set(), {"vae"}] if where != "denoise" else [])]
    assert kept[1 : len(cleared) + 3] == [*cleared, set(), {"denoiser"}], "the card is cleared for the next step"
    assert listener.notes == [said] and said in caplog.text and "A sample found too little" in caplog.text


def test_decoding_gets_the_card_to_itself_and_then_works_in_tiles(
    store: Store, loaded: LoadedBase, dataset: Dataset, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(loaded, monkeypatch, "decode_latents", 1, 3, 4)
    listener = Listener()
    assert ended(store, loaded, dataset, listener)["samples"].keys() == wanted["samples"].keys()
    assert asked == [{}, {}, {}, {}, {"in_tiles": True}] and not listener.notes


def test_a_sample_that_was_to_stay_beside_the_training_makes_way_for_it(
    store: Store, loaded: LoadedBase, dataset: Dataset, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Any] = []
    real, let_go = drawing.draw, Trainer.let_go

    def draw(*args: Any) -> Any:
        order.append(args[-1])
        if len(order) == 1:
            raise torch.OutOfMemoryError(SHORT)
        return real(*args)

    def noted(trainer: Trainer) -> None:
        order.append("let go")
        let_go(trainer)

    monkeypatch.setattr(runner, "spare_vram_bytes", lambda settings: runner.ROOM_TO_STAY)
    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(Trainer, "let_go", noted)
    listener = Listener()
    assert ended(store, loaded, dataset, listener) == wanted and not listener.notes
    assert order == [True, "let go", "let go", False, True, "let go"], "beside it, alone, and again beside it"


def test_other_errors_end_it(
    store: Store, loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(request: Any) -> Iterator[Any]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loaded, "denoise", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        train(SPEC, store, loaded, dataset, Listener())
