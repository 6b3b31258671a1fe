"""A finished training is taken along as a file for other programs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from safetensors import safe_open

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.export import lora as lora_export
from headshot_ui.runs import Run, change_run
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from headshot_ui.ui import lora_box, lora_view, run_history
from tests.ui.tiny_lora import tiny_base, trained_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with anna's finished training, and its name."""
    root = tmp_path_factory.mktemp("along")
    settings = Settings.from_environment(models_dir=root / "models", outputs_dir=root / "outputs", device="cpu",
                                         dtype="float32")  # fmt: skip
    return root, trained_tiny(Store(settings), tiny_base(settings)).name


@pytest.fixture
def store(made: tuple[Path, str], tmp_path: Path) -> Store:
    shutil.copytree(made[0], tmp_path / "own")
    own = tmp_path / "own"
    return Store(Settings.from_environment(models_dir=own / "models", outputs_dir=own / "outputs", device="cpu"))


@pytest.fixture
def name(made: tuple[Path, str]) -> str:
    return made[1]


def test_what_is_offered_comes_from_the_family_and_the_training(store: Store, name: str) -> None:
    offer = lora_view.offer(store, "anna", name)
    layouts = families.lora_layouts(families.find_base("tiny-sdxl", store.settings))
    assert offer.choices == [(layout.title, layout.id) for layout in layouts]
    told = offer.help_values("kohya")
    assert told["subject"] == "tok woman" and told["base"] == "Tiny (random weights)" and told["demo"] is True
    assert told["licence"] == "The licence of “Tiny (random weights)” comes with it: Apache-2.0."
    assert "ComfyUI/models/loras" in told["where"][0] and "models/Lora" in told["where"][1]
    assert "load_lora_weights" in offer.help_values("diffusers")["where"][0]
    assert offer.help_values("nonsense") == told, "the first one"
    assert offer.head_values()["steps"] == "40 steps"


def test_the_words_of_an_old_training_may_not_be_known(store: Store, name: str) -> None:
    run = store.runs_dir("anna") / name
    change_run(run_history.list_runs(store, "anna")[0], facts={"class_word": "woman"})
    assert run.is_dir() and lora_view.offer(store, "anna", name).help_values(None)["subject"] == ""


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_the_file_handed_out_is_a_private_copy_of_the_one_that_is_kept(
    store: Store, name: str, layout: str, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    taken = lora_view.take(store, "anna", name, layout, shown)
    kept = Path(taken.told["folder"]) / taken.told["file"]
    assert kept.parent == store.exports_dir("anna") / "loras" and shown in taken.copy.parents
    assert taken.copy.name == kept.name and taken.copy.read_bytes() == kept.read_bytes()
    with safe_open(taken.copy, "np") as file:
        header, names = file.metadata(), list(file.keys())
    said = [header[name] for name in ("layout", "trigger", "class_word", "steps")]
    assert said == [layout, "tok", "woman", "40"]
    assert any(each.endswith(".alpha") for each in names) == (layout == "kohya")
    again = lora_view.take(store, "anna", name, layout, shown)
    assert (again.copy, len(list(kept.parent.iterdir()))) == (taken.copy, 1), "once is enough"


def test_without_its_base_model_nothing_is_offered_and_it_is_said_why(store: Store, name: str) -> None:
    shutil.rmtree(store.settings.models_dir / "tiny")
    with pytest.raises(ModelError, match=r"made on the base model “tiny-sdxl”.*put a complete copy of it into"):
        lora_view.offer(store, "anna", name)
    run = run_history.list_runs(store, "anna")[0]
    change_run(run, spec=dataclasses.replace(run.spec, base="sdxl"))
    with pytest.raises(ModelError, match="get it under Models on the page or with “python3 app.py models get sdxl”"):
        lora_view.take(store, "anna", name, "kohya", store.settings.outputs_dir)


def test_only_a_training_with_a_lora_that_does_not_learn_now_can_be_taken_along(store: Store, name: str) -> None:
    def button(run: Run) -> bool:
        (row,) = run_history.history(store, "anna", busy=True)["runs"]
        return bool(row["take"])

    run = run_history.list_runs(store, "anna")[0]
    assert button(run), "also while another one learns"
    assert not button(change_run(run, state="running"))
    assert not button(change_run(run, state="done", lora=""))


@pytest.fixture
def events(store: Store, tmp_path: Path) -> SimpleNamespace:
    """The box on a page of its own: its components, and its functions by the component that starts them."""
    with gr.Blocks() as page:
        box = lora_box.layout()
        person = gr.Textbox()
        lora_box.wire(box, SimpleNamespace(person=person, shown_dir=tmp_path / "shown"), store)  # type: ignore[arg-type]

    def of(component: Any, event: str) -> Any:
        found = [fn for fn in page.fns.values() if (component._id, event) in fn.targets and fn.fn is not None]
        return found[0]

    return SimpleNamespace(box=box, person=person, of=of)


def test_what_cannot_be_written_leaves_no_file_of_another_in_the_button(
    events: SimpleNamespace, store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = events.of(events.box.take, "click")
    assert take.outputs == [events.box.file, events.box.problem, events.box.told]
    file, problem, told = take.fn("anna", name, "kohya")
    assert Path(file).is_file() and problem == {"text": ""} and told["file"] == Path(file).name
    for person, run in (("bob", name), ("anna", ""), ("", name), ("anna", "../anna")):
        file, problem, told = take.fn(person, run, "kohya")
        assert file is None and problem["text"] and told == lora_view.NOT_TOLD

    def full(*_: Any) -> None:
        raise SpecError("to", "There is no room.")

    monkeypatch.setattr(lora_export, "check_free_space", full)
    assert take.fn("anna", name, "kohya")[:2] == [None, {"text": "There is no room."}]


def test_another_person_closes_the_box_and_empties_it(events: SimpleNamespace) -> None:
    change = events.of(events.person, "change")
    values = dict(zip(map(id, change.outputs), change.fn("bob", "anna"), strict=True))
    assert values[id(events.box.file)] is None and values[id(events.box.run)] == values[id(events.box.person)] == ""
    assert values[id(events.box.box)].visible is False


@pytest.mark.parametrize("opened_for", ["anna", ""])
def test_the_same_person_told_of_once_more_leaves_the_box_open(events: SimpleNamespace, opened_for: str) -> None:
    # The browser says that the person changed also when the list of people has got new choices.
    values = events.of(events.person, "change").fn("anna", opened_for)
    assert len(values) == len(events.box.outputs) and all(value == gr.skip() for value in values)


def test_values_fit_the_components(store: Store, name: str) -> None:
    with gr.Blocks():
        box = lora_box.layout()
    assert len(lora_box.offered(store, "anna", name)) == len(lora_box.closed()) == len(box.outputs)
