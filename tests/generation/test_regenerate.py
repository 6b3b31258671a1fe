"""On a tiny random SDXL: any picture can be drawn again from its PNG, bit for bit, and LoRAs leave nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError, StoreError
from headshot_ui.families.protocol import LoadedBase, LoadedRefiner
from headshot_ui.generation import speeds
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import Picture, regenerate
from headshot_ui.generation.runner import check_request, generate
from headshot_ui.likeness import Likeness
from headshot_ui.runs import change_run, create_run
from headshot_ui.specs import GenerateSpec, TrainSpec
from headshot_ui.store import Store, read_png_metadata, save_png
from tests.generation.fakes import Reports, make_store
from tests.tiny_models import make_tiny_refiner, make_tiny_sdxl

SPEC = GenerateSpec("robin", "tiny-sdxl", presets=("navy-suit", "teal-shirt-brick"), count=2, seed=40, lora="latest")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, LoadedBase]:
    root = tmp_path_factory.mktemp("generate")
    make_tiny_sdxl(root / "models" / "tiny")
    make_tiny_refiner(root / "models" / "refiner")
    store = make_store(root)
    loaded = families.load_base(families.find_base("tiny-sdxl", store.settings), store.settings)
    return store, loaded


def train(store: Store, loaded: LoadedBase, seed: int) -> Path:
    """A run whose LoRA is random but strong."""
    import torch

    run = create_run(store, TrainSpec("robin", "tiny-sdxl"))
    loaded.add_trainable_lora(rank=4, alpha=4.0, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=noise) for name, t in loaded.trainable_lora_state().items()}
    path = run.folder / "lora.safetensors"
    loaded.save_lora(path, state, {"trigger": "tok"})
    loaded.use_loras(())
    change_run(run, state="done", lora=path.name)
    return path


def pixels(picture: Picture) -> np.ndarray:
    with Image.open(picture.path) as image:
        return np.asarray(image).copy()


def test_a_picture_is_drawn_again_from_its_png_bit_for_bit(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    train(store, loaded, seed=1)
    first = generate(SPEC, store, loaded, Reports())
    train(store, loaded, seed=2)  # "latest" now means another file
    for picture in first.pictures:
        spec = regenerate(picture.path, store)
        again = generate(spec, store, loaded, Reports()).pictures
        assert len(again) == 1
        assert again[0].prompt == picture.prompt
        assert (pixels(again[0]) == pixels(picture)).all()
    other = generate(SPEC, store, loaded, Reports())
    assert (pixels(other.pictures[0]) != pixels(first.pictures[0])).any(), "the LoRA makes a difference"


def test_a_fast_picture_says_so_and_is_drawn_again_whatever_fast_means_by_then(
    workshop: tuple[Store, LoadedBase], monkeypatch: pytest.MonkeyPatch
):
    store, loaded = workshop
    wanted = replace(SPEC, presets=("navy-suit",), count=1, steps=5, lora=None)
    exact = generate(wanted, store, loaded, Reports()).pictures[0]
    fast = generate(replace(wanted, speed="fast"), store, loaded, Reports()).pictures[0]
    assert (pixels(exact) != pixels(fast)).any()
    request = read_png_metadata(fast.path)["request"]
    assert (request["speed"], request["guided_share"]) == ("fast", 0.6)
    monkeypatch.setitem(speeds.GUIDED_SHARE, "fast", 0.2)
    again = generate(regenerate(fast.path, store), store, loaded, Reports()).pictures[0]
    assert (pixels(again) == pixels(fast)).all()


def test_a_picture_of_a_replaced_lora_is_refused(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    path = train(store, loaded, seed=3)
    picture = generate(replace(SPEC, presets=("navy-suit",), count=1), store, loaded, Reports()).pictures[0]
    path.write_bytes(train(store, loaded, seed=4).read_bytes())
    assert regenerate(picture.path).lora == path.parent.name
    with pytest.raises(ModelError, match="not the one"):
        regenerate(picture.path, store)


def test_seed_strength_and_prompt_make_a_difference_and_the_base_stays_as_it_was(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    train(store, loaded, seed=1)
    bare = replace(SPEC, presets=("navy-suit",), count=1, lora=None)

    def draw(spec: GenerateSpec) -> np.ndarray:
        return pixels(generate(spec, store, loaded, Reports()).pictures[0])

    before = draw(bare)
    assert (draw(replace(bare, seed=41)) != before).any()
    assert (draw(replace(bare, presets=("teal-shirt-brick",))) != before).any()
    full, half = draw(replace(bare, lora="latest")), draw(replace(bare, lora="latest", lora_scale=0.5))
    assert (full != before).any()
    assert (half != full).any()
    assert (draw(replace(bare, lora="latest", lora_scale=0.0)) == before).all()
    assert (draw(bare) == before).all()


def test_every_shipped_preset_can_be_drawn_and_unknown_words_are_named(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    result = generate(replace(SPEC, presets=(), count=1, steps=1, lora=None), store, loaded, Reports())
    assert {picture.preset for picture in result.pictures} == set(load_presets())
    assert all(picture.prompt.startswith("portrait of tok person, wearing a ") for picture in result.pictures)
    with pytest.raises(SpecError, match="“spacesuit”"):
        generate(replace(SPEC, presets=(), prompt="{subject} in a spacesuit", lora=None), store, loaded, Reports())


# --- refined pictures -----------------------------------------------------------------------------------
REFINED = replace(SPEC, presets=("navy-suit",), lora=None, steps=5)


def draw_refined(spec: GenerateSpec, workshop: tuple[Store, LoadedBase], judge: object = None) -> tuple[Picture, ...]:
    store, loaded = workshop

    @contextmanager
    def open_refiner() -> Iterator[LoadedRefiner]:
        yield families.load_refiner(families.find_refiner(None, loaded.info, store.settings), store.settings)

    return generate(spec, store, loaded, Reports(), judge, open_refiner).pictures  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["ensemble", "img2img"])
def test_a_refined_picture_is_drawn_again_bit_for_bit(way: str, workshop: tuple[Store, LoadedBase]):
    settings = {"refiner_switch": 0.6, "refiner_strength": 0.5}
    first = draw_refined(replace(REFINED, refine=way, **settings), workshop)
    plain = draw_refined(REFINED, workshop)
    for picture, unrefined in zip(first, plain, strict=True):
        spec = regenerate(picture.path, workshop[0])
        assert (spec.refine, spec.refiner, spec.refiner_switch) == (way, "tiny-refiner", 0.6)
        assert (pixels(draw_refined(spec, workshop)[0]) == pixels(picture)).all()
        assert (pixels(unrefined) != pixels(picture)).any()


def test_a_picture_that_was_kept_unrefined_is_drawn_again_unrefined(workshop: tuple[Store, LoadedBase]):
    class AgainstChange:
        """Likes the first look of a picture it sees less than every second one."""

        def __init__(self) -> None:
            self.seen = 0

        def score(self, _: Image.Image) -> Likeness:
            self.seen += 1
            return Likeness(0.5, 50.0 if self.seen % 2 else 90.0, True)

    plain = draw_refined(REFINED, workshop)
    kept = draw_refined(replace(REFINED, refine="img2img", refiner_strength=0.5), workshop, AgainstChange())
    for picture, unrefined in zip(sorted(kept, key=lambda p: p.seed), plain, strict=True):
        assert (pixels(picture) == pixels(unrefined)).all() and picture.why_not_refined
        spec = regenerate(picture.path, workshop[0])
        assert (pixels(draw_refined(spec, workshop)[0]) == pixels(picture)).all()


def test_a_picture_from_before_refiners_is_not_refined(workshop: tuple[Store, LoadedBase], tmp_path: Path):
    picture = draw_refined(replace(REFINED, count=1), workshop)[0]
    data = read_png_metadata(picture.path)
    del data["refiner"]
    for name in ("refine", "refiner", "refiner_switch", "refiner_strength"):
        del data["request"][name]
    with Image.open(picture.path) as image:
        save_png(tmp_path / "old.png", image, data)
    assert regenerate(tmp_path / "old.png").refine == "off", "whatever the base's default has become"


def test_a_changed_or_missing_refiner_is_told(workshop: tuple[Store, LoadedBase], tmp_path: Path):
    store, loaded = workshop
    picture = draw_refined(replace(REFINED, count=1, refine="img2img", refiner_strength=0.5), workshop)[0]
    folder = store.settings.models_dir / "refiner"
    shutil.move(folder, tmp_path / "away")
    try:
        with pytest.raises(ModelError, match="no refiner “tiny-refiner”"):
            regenerate(picture.path, store)
        make_tiny_refiner(folder, seed=77)
        with pytest.raises(ModelError, match="The refiner “tiny-refiner” is not the one that drew"):
            regenerate(picture.path, store)
        assert regenerate(picture.path).refiner == "tiny-refiner"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(tmp_path / "away", folder)
    assert regenerate(picture.path, store).refiner == "tiny-refiner"


# --- before a model is loaded ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"presets": ("tuxedo",)}, SpecError, "no preset “tuxedo”"),
        ({"prompt": "{subject} in a spacesuit"}, SpecError, "“spacesuit”"),
        ({"negative_prompt": "blurry"}, SpecError, "“blurry”"),
        ({"lora": "no-such-run"}, StoreError, "no-such-run"),
        ({"lora": "{tmp}/cut.safetensors"}, ModelError, "cut.safetensors is damaged"),
        ({"lora": "{tmp}/flux.safetensors"}, ModelError, "family “flux”, not for “sdxl”"),
        ({"refine": "img2img", "refiner_strength": 0.1}, SpecError, "choose at least 0.2,"),
        ({"refine": "ensemble", "refiner": "grand"}, ModelError, "no refiner “grand”"),
        ({"base": "other"}, SpecError, "“tiny-sdxl” is loaded"),
        ({"count": 512, "width": 2048, "height": 2048}, StoreError, "free"),
    ],
)
def test_a_bad_request_is_told_before_a_model_is_loaded(
    changes: dict, error: type, words: str, workshop: tuple[Store, LoadedBase], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    store, loaded = workshop
    monkeypatch.setattr("headshot_ui.store.free_bytes", lambda _: 2**30)
    monkeypatch.setattr("torch.nn.Module.__init__", lambda *_: pytest.fail("a model was loaded"))
    save_file({"unet.a.lora_A.weight": np.zeros((1, 1), np.float32)}, tmp_path / "flux.safetensors", {"family": "flux"})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "flux.safetensors").read_bytes()[:-2])
    check_request(REFINED, store, loaded.info)
    check_request(replace(REFINED, refine="ensemble"), store, loaded.info)
    if "lora" in changes:
        changes = {"lora": changes["lora"].format(tmp=tmp_path)}
    with pytest.raises(error, match=words):
        check_request(replace(REFINED, **changes), store, loaded.info)
