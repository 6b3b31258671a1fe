"""Each check holds on a program that works, and fails where what it checks is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from headshot_ui.dataset.types import Dataset
from headshot_ui.engine import real_parts
from headshot_ui.errors import HeadshotError
from headshot_ui.families.sdxl_parts import loaded as sdxl_loaded
from headshot_ui.families.sdxl_parts import lora as sdxl_lora
from headshot_ui.families.sdxl_parts import lora_write
from headshot_ui.prove.checks import machine
from headshot_ui.prove.findings import Result
from headshot_ui.settings import Settings

Prove = Callable[..., dict[str, Result]]
LEARNED = ("photos", "repeats", "pictures", "training")
REAL = real_parts()


def verdicts(results: dict[str, Result]) -> dict[str, str]:
    return {name: result.verdict for name, result in results.items()}


def test_on_a_program_that_works_all_of_them_hold(prove: Prove) -> None:
    ids = ("files", "device", *LEARNED, "loss", "lora", "lora-off", "strength-0", "refiner-ensemble",
           "refiner-img2img", "restoration", "other-programs", "read-back", "memory")  # fmt: skip
    results = prove(*ids)
    others = {name: verdict for name, verdict in verdicts(results).items() if verdict != "holds"}
    assert others == {"photos": "not possible"}, "nothing looked for faces in the grey pictures"
    measured = {name: value for result in results.values() for name, value in result.measured.items()}
    assert measured["loss after training"] < measured["loss before training"]
    assert measured["seconds per training step"] > 0 and measured["seconds per picture"] > 0
    assert measured["largest difference of latents"] < 1e-3
    assert "bit for bit" in results["other-programs"].figure
    counted = re.findall(r"(as trained|in kohya's layout): (\d+) of (\d+) layers", results["read-back"].figure)
    assert len(counted) == 2 and len({count for _, *counts in counted for count in counts}) == 1
    assert all(result.seconds > 0 and result.peak_ram_bytes > 0 for result in results.values())


def test_what_this_computer_or_model_cannot_show_is_not_said_to_hold(prove: Prove) -> None:
    results = prove(*LEARNED, "swap", "likeness")
    assert verdicts(results)["swap"] == verdicts(results)["likeness"] == "not possible"
    assert "graphics card" in results["swap"].figure


def test_too_few_steps_are_not_held_against_the_loss(prove: Prove) -> None:
    results = prove(*LEARNED, "loss", "lora", steps=2)
    assert (results["loss"].verdict, results["lora"].verdict) == ("not possible", "holds")
    assert "--steps" in results["loss"].figure


# --- files --------------------------------------------------------------------------------------------
@pytest.fixture
def copied(settings: Settings, tmp_path: Path) -> tuple[Settings, Path]:
    """Models of one's own, and the denoiser's weights among them."""
    models = tmp_path / "copied"
    shutil.copytree(settings.models_dir, models)
    return replace(settings, models_dir=models), models / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"


def _with(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The first matrix of a file changed."""
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    save_file({**state, name: change(state[name].clone())}, path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "damaged"),
        (lambda path: _with(path, lambda tensor: tensor.index_fill_(0, torch.tensor([0]), torch.nan)), "none"),
        (lambda path: _with(path, torch.zeros_like), "zeros"),
    ],
)
def test_damaged_weights(
    prove: Prove, copied: tuple[Settings, Path], damage: Callable[[Path], None], told: str
) -> None:
    settings, weights = copied
    damage(weights)
    found = prove("files", settings=settings)["files"]
    assert found.verdict == "fails" and told in found.figure and "unet/" in found.figure


@pytest.mark.parametrize(("number", "verdict"), [(1.0, "holds"), (float("nan"), "fails"), (None, "fails")])
@pytest.mark.parametrize("place", ["retinaface/r.pth", "arcface/recognition_arcface_ir_se50.pth",
                                   "parser/parsing_parsenet.pth", "realesrgan/RealESRGAN_x2plus.pth"])  # fmt: skip
def test_networks_for_faces_in_pth_files_are_looked_through(
    place: str, number: float | None, verdict: str, settings: Settings, tmp_path: Path
) -> None:
    models = replace(settings, models_dir=tmp_path)
    file = tmp_path / place
    file.parent.mkdir()
    torch.save({"params_ema": {"conv.weight": torch.full((2, 2), number or 0.0)}, "step": 3}, file)
    if number is None:
        file.write_bytes(file.read_bytes()[:100])
    shop = SimpleNamespace(settings=models, parts=SimpleNamespace(all_restorers=dict))
    assert machine._network_files(cast(Any, SimpleNamespace(shop=shop))) == [file]
    fault = machine._fault(file)
    assert bool(fault) is (verdict == "fails")
    told = "damaged" if number is None else "“params_ema.conv.weight” holds numbers that are none"
    assert not fault or fault == told


def test_weights_that_are_not_what_was_downloaded(prove: Prove, copied: tuple[Settings, Path]) -> None:
    settings, weights = copied
    record = settings.models_dir / ".downloads" / "tiny.json"
    record.parent.mkdir()
    place = weights.relative_to(settings.models_dir).as_posix()
    file = {"size": 1, "sha256": "0" * 64, "basis": "published", "ours": True, "mtime_ns": 0}
    record.write_text(json.dumps({"entry": "tiny", "files": {place: file}}), "utf-8")
    found = prove("files", settings=settings)["files"]
    assert found.verdict == "fails" and "downloaded" in found.figure


# --- drawing and learning -----------------------------------------------------------------------------
def _denoising(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """``load_base`` of a base whose latents are changed on their way out."""

    def load(info: Any, settings: Settings) -> Any:
        base = REAL.load_base(info, settings)
        denoise = base.denoise

        def changed(request: Any) -> Iterator[Any]:
            for step in denoise(request):
                yield replace(step, latents=change(step.latents))

        base.denoise = changed  # type: ignore[method-assign]
        return base

    return load


def test_numbers_that_are_none(prove: Prove) -> None:
    found = prove("repeats", load_base=_denoising(lambda latents: latents * torch.nan))["repeats"]
    assert found.verdict == "fails" and "none" in found.figure


def test_a_device_that_does_not_repeat_itself(prove: Prove) -> None:
    found = prove("repeats", load_base=_denoising(lambda latents: latents + 1e-6 * torch.randn_like(latents)))
    assert found["repeats"].verdict == "fails" and "differ" in found["repeats"].figure


def _painting(colour: tuple[int, int, int], only_with_lora: bool = False) -> Callable[..., Any]:
    """``generate`` whose pictures are painted over."""

    def generate(spec: Any, *args: Any) -> Any:
        made = REAL.generate(spec, *args)
        for picture in made.pictures if spec.lora or not only_with_lora else ():
            with Image.open(picture.path) as image:
                size = image.size
            Image.new("RGB", size, colour).save(picture.path)
        return made

    return generate


@pytest.mark.parametrize(("colour", "told"), [((0, 0, 0), "black"), ((90, 120, 200), "one colour")])
def test_pictures_that_are_none(prove: Prove, colour: tuple[int, int, int], told: str) -> None:
    found = prove("photos", "pictures", generate=_painting(colour))["pictures"]
    assert found.verdict == "fails" and told in found.figure


def test_pictures_that_are_black_only_with_the_lora(prove: Prove) -> None:
    found = prove(*LEARNED, "lora", generate=_painting((0, 0, 0), only_with_lora=True))
    assert found["pictures"].verdict == "holds" and found["lora"].verdict == "fails"


def _without_effect(*args: Any) -> Any:
    """``train`` whose file does nothing."""
    made = REAL.train(*args)
    state = load_file(made.lora_path)
    save_file({name: tensor * (".lora_A." in name) for name, tensor in state.items()}, made.lora_path)
    return made


def test_a_lora_that_changes_nothing(prove: Prove) -> None:
    results = prove(*LEARNED, "loss", "lora", "read-back", train=_without_effect)
    failed = [name for name, result in results.items() if result.verdict == "fails"]
    assert failed == ["loss", "lora", "read-back"]


def test_residue_of_a_lora_that_was_taken_off(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = sdxl_lora.remove_all

    def dirty(modules: Any) -> None:
        had = bool(getattr(modules.unet, "peft_config", None))
        clean(modules)
        if had:  # as little as unfusing in float32 leaves
            modules.unet.conv_in.weight.data += 1e-6

    monkeypatch.setattr(sdxl_lora, "remove_all", dirty)
    results = prove(*LEARNED, "lora", "lora-off")
    assert results["lora"].verdict == "holds" and results["lora-off"].verdict == "fails"


def test_a_strength_that_is_ignored(prove: Prove) -> None:
    def generate(spec: Any, *args: Any) -> Any:
        return REAL.generate(replace(spec, lora_scale=1.0), *args)

    assert prove(*LEARNED, "strength-0", generate=generate)["strength-0"].verdict == "fails"


def test_an_export_that_forgets_alpha(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = sdxl_loaded.save_lora

    def forgetful(path: Path, state: Any, metadata: Any) -> None:
        saved(path, state, {name: value for name, value in metadata.items() if name != "alpha"})

    monkeypatch.setattr(sdxl_loaded, "save_lora", forgetful)
    found = prove(*LEARNED, "read-back")["read-back"]
    assert found.verdict == "fails" and "Other programs" in found.advice


def test_a_file_for_other_programs_that_is_another_lora(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    written = lora_write.kohya_tensors

    def weaker(layers: Any, *args: Any) -> Any:
        return written({name: replace(layer, alpha=torch.tensor(1.0)) for name, layer in layers.items()}, *args)

    monkeypatch.setattr(lora_write, "kohya_tensors", weaker)
    results = prove(*LEARNED, "other-programs", "read-back")
    assert results["other-programs"].verdict == results["read-back"].verdict == "fails"
    assert "Other programs" in results["other-programs"].advice


def test_an_export_that_forgets_a_layer(prove: Prove) -> None:
    def train(*args: Any) -> Any:
        made = REAL.train(*args)
        state = load_file(made.lora_path)
        gone = next(iter(state)).rpartition(".lora_")[0]
        save_file({name: tensor for name, tensor in state.items() if not name.startswith(gone)}, made.lora_path)
        return made

    assert prove(*LEARNED, "read-back", train=train)["read-back"].verdict == "fails"


# --- finishing, memory --------------------------------------------------------------------------------
def test_a_refiner_that_does_nothing(prove: Prove) -> None:
    def generate(spec: Any, *args: Any) -> Any:
        return REAL.generate(replace(spec, refine="off"), *args[:-1], None)

    results = prove(*LEARNED, "lora", "refiner-ensemble", "refiner-img2img", generate=generate)
    assert results["refiner-ensemble"].verdict == results["refiner-img2img"].verdict == "fails"


def _restored(change: Callable[[Image.Image, Any], None]) -> Callable[..., Any]:
    def restore(spec: Any, *args: Any) -> Any:
        made = REAL.restore(spec, *args)
        for picture in made.pictures:
            with Image.open(picture.path) as image:
                changed = image.convert("RGB")
            change(changed, Path(spec.pictures[0]))
            changed.save(picture.path)
        return made

    return restore


def test_a_restorer_that_changes_what_is_not_the_face(prove: Prove) -> None:
    found = prove("restoration", restore=_restored(lambda image, _: image.putpixel((0, 0), (255, 0, 255))))
    assert found["restoration"].verdict == "fails"


def test_a_restorer_that_changes_nothing(prove: Prove) -> None:
    def undo(image: Image.Image, source: Path) -> None:
        with Image.open(source) as before:
            image.paste(before.convert("RGB"))

    assert prove("restoration", restore=_restored(undo))["restoration"].verdict == "fails"


def test_memory_that_is_not_given_back(prove: Prove) -> None:
    leaked = []

    def train(*args: Any) -> Any:
        leaked.append(torch.zeros(2**27, dtype=torch.uint8))
        return REAL.train(*args)

    assert prove("device", *LEARNED, "memory", train=train)["memory"].verdict == "fails"


# --- whatever happens ---------------------------------------------------------------------------------
def test_photos_nobody_can_use(prove: Prove) -> None:
    def prepare(spec: Any, store: Any, *_: Any) -> Dataset:
        raise HeadshotError("None of the photos shows a face: choose others.")

    results = prove(*LEARNED, "lora", "memory", "device", prepare=prepare)
    assert results["photos"].verdict == "fails" and "choose others" in results["photos"].advice
    assert {verdicts(results)[name] for name in ("pictures", "training", "lora")} == {"not possible"}
    assert results["memory"].verdict == results["repeats"].verdict == "holds", "the others were tried all the same"


def test_an_error_nobody_foresaw_is_a_finding(prove: Prove) -> None:
    def generate(*_: Any) -> Any:
        raise KeyError("surprise")

    found = prove("photos", "pictures", generate=generate)["pictures"]
    assert found.verdict == "fails" and "KeyError" in found.figure
