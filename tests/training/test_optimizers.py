"""8-bit AdamW: where it is used, that a run with it goes on bit-equal, and what happens where it cannot be had."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from headshot_ui import runs
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.runs import load_run
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training import optimizers
from headshot_ui.training.optimizers import choose_optimizer, fitting_state, make_optimizer, moment_bytes, why_no_8bit
from headshot_ui.training.runner import train
from tests.training.conftest import Listener
from tests.training.test_runner import lora_bits

ROOT = Path(__file__).parents[2]
#: Rank 128: half of the tiny base's matrices then have the 4,096 numbers from which moments are kept in 8 bit.
SPEC = TrainSpec("anna", "tiny-sdxl", steps=4, rank=128, checkpoint_every=2, sample_every=100, seed=3)
SPEC_8BIT = dataclasses.replace(SPEC, optimizer="adamw8bit")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@dataclasses.dataclass
class NoteTaker(Listener):
    """A listener that hears notes too."""

    notes: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, *told: object, note: str | None = None, **more: object) -> None:
        if note is not None:
            self.notes.append(note)
        super().__call__(*told, **more)  # type: ignore[arg-type]


def parameters(device: str = "cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((16, 640), (640, 16), (4, 64))  # the last is too small for 8 bit
    return [torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(device)) for shape in shapes]


def steps(optimizer: torch.optim.Optimizer, learned: list[torch.nn.Parameter], numbers: range) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(100 + number)
        for parameter in learned:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        optimizer.step()
        optimizer.zero_grad()


def kept(optimizer: torch.optim.Optimizer) -> Mapping[str, object]:
    """The state as a checkpoint has it."""
    packed = io.BytesIO()
    torch.save(optimizer.state_dict(), packed)
    packed.seek(0)
    state: Mapping[str, object] = torch.load(packed, map_location="cpu", weights_only=True)
    return state


# --- the optimizer ---------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_8bit_goes_on_bit_equal_and_learns_as_32_bit_does(device: str) -> None:
    # Not importlib.util's: the families have said that it is not to be found until it is wanted (shared_parts).
    if importlib.machinery.PathFinder.find_spec("bitsandbytes") is None:
        pytest.skip("needs the package bitsandbytes")
    assert choose_optimizer("adamw8bit", device) == ("adamw8bit", "")
    straight, halves, wide = (parameters(device) for _ in range(3))
    optimizer = make_optimizer("adamw8bit", straight, 1e-3)
    steps(optimizer, straight, range(3))
    state, saved = kept(optimizer), [parameter.detach().clone() for parameter in straight]
    steps(optimizer, straight, range(3, 6))
    resumed = make_optimizer("adamw8bit", halves, 1e-3)
    with torch.no_grad():
        for parameter, value in zip(halves, saved, strict=True):
            parameter.copy_(value)
    resumed.load_state_dict(fitting_state(resumed, state))
    steps(resumed, halves, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, halves, strict=True))
    steps(make_optimizer("adamw", wide, 1e-3), wide, range(6))
    for eight, full, begun in zip(straight, wide, parameters(device), strict=True):
        assert float((eight - full).detach().norm() / (full - begun).detach().norm()) < 0.05


def test_moments_in_8_bit_can_be_widened_for_32_bit() -> None:
    learned, reference = parameters(), parameters()
    narrow, wide = make_optimizer("adamw8bit", learned, 1e-3), make_optimizer("adamw", reference, 1e-3)
    steps(narrow, learned, range(4))
    steps(wide, reference, range(4))
    state = fitting_state(wide, kept(narrow))
    for index, exact in wide.state_dict()["state"].items():
        widened = state["state"][index]
        assert float(widened["step"]) == float(exact["step"]) == 4
        for name in ("exp_avg", "exp_avg_sq"):
            assert widened[name].shape == exact[name].shape and widened[name].dtype == torch.float32
            assert float((widened[name] - exact[name]).norm() / exact[name].norm()) < 0.03
    wide.load_state_dict(state)
    steps(wide, reference, range(4, 6))


def test_bytes_of_moments_are_those_of_the_state() -> None:
    learned = parameters()
    for name in ("adamw", "adamw8bit"):
        optimizer = make_optimizer(name, learned, 1e-3)
        steps(optimizer, learned, range(1))
        moments = [
            tensor.numel() * tensor.element_size()
            for entry in optimizer.state.values()
            for key, tensor in entry.items()
            if key in ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
        ]
        assert sum(moments) == sum(moment_bytes(parameter.numel(), name) for parameter in learned)


# --- runs ------------------------------------------------------------------------------------------
def test_a_run_in_8_bit_goes_on_bit_equal(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    whole = train(SPEC_8BIT, store, loaded, dataset, Listener())
    state = torch.load(whole.run_dir / "checkpoints/step-000004/optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert any(entry[optimizers._QUANTISED]["state1"].dtype == torch.uint8 for entry in state.values())
    with pytest.raises(Cancelled):
        train(SPEC_8BIT, store, loaded, dataset, Listener(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, loaded, dataset, Listener())
    assert (result.losses, lora_bits(result)) == (whole.losses, lora_bits(whole))
    assert lora_bits(train(SPEC, store, loaded, dataset, Listener())) != lora_bits(whole)


def test_where_8_bit_cannot_be_had_32_bit_serves_and_says_so_once(
    loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = train(SPEC, store, loaded, dataset, Listener())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "bitsandbytes.optim", None)
        heard = NoteTaker()
        result = train(SPEC_8BIT, store, loaded, dataset, heard)
    assert lora_bits(result) == lora_bits(reference)
    (note,) = heard.notes
    assert "bitsandbytes is not installed" in note and "AdamW in 32 bit" in note and "B more memory" in note
    assert load_run(result.run_dir).spec.optimizer == "adamw8bit", "what was asked for"


def test_a_run_begun_in_32_bit_ends_in_32_bit(
    loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = train(SPEC, store, loaded, dataset, Listener())
    with monkeypatch.context() as without:
        without.setattr(optimizers, "why_no_8bit", lambda device: "it is Sunday")
        with pytest.raises(Cancelled):
            train(SPEC_8BIT, store, loaded, dataset, NoteTaker(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    heard = NoteTaker()
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, loaded, dataset, heard)
    assert lora_bits(result) == lora_bits(reference)
    assert "begun without it" in heard.notes[0]


def test_a_run_begun_in_8_bit_goes_on_where_there_is_none(
    loaded: LoadedBase, store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(SPEC_8BIT, store, loaded, dataset, Listener())
    with pytest.raises(Cancelled):
        train(SPEC_8BIT, store, loaded, dataset, Listener(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    monkeypatch.setattr(optimizers, "why_no_8bit", lambda device: "it is Sunday")
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, loaded, dataset, NoteTaker())
    assert result.losses[:2] == whole.losses[:2]
    assert result.losses == pytest.approx(whole.losses, rel=0.02), "only the moments were rounded"


def test_a_library_that_breaks_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> torch.optim.Optimizer:
        raise RuntimeError("no kernel")

    assert "Apple" in why_no_8bit("mps")
    monkeypatch.setattr(optimizers, "make_optimizer", broken)
    assert "does not work with this graphics card" in why_no_8bit("cpu")
    assert choose_optimizer("adamw", "cpu") == ("adamw", "")


def test_bitsandbytes_is_loaded_for_its_optimizer_only(models_dir: Path, tmp_path: Path) -> None:
    """diffusers would import it with every model and peft with every LoRA, trained or drawn with."""
    code = f"""
import sys
from pathlib import Path
from headshot_ui import families
from headshot_ui.settings import Settings
settings = Settings.from_environment(models_dir={str(models_dir)!r}, device="cpu", dtype="float32")
loaded = families.load_base(families.find_base("tiny-sdxl", settings), settings)
loaded.add_trainable_lora(2, 2.0, 0)
path = Path({str(tmp_path)!r}) / "x.safetensors"
loaded.save_lora(path, loaded.trainable_lora_state(), {{"rank": "2", "alpha": "2.0"}})
loaded.use_loras([(path, 1.0)])
print([name for name in sys.modules if name.startswith("bitsandbytes.")])
from headshot_ui.training.optimizers import choose_optimizer
print(choose_optimizer("adamw8bit", "cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "('adamw8bit', '')"] and "bitsandbytes" not in done.stderr
