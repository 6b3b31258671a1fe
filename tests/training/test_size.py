"""Photos learned at a smaller size than they were prepared: pixels, shapes and what the model is told of sizes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headshot_ui import runs
from headshot_ui.dataset.buckets import Bucket, buckets, shrunk
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase, TrainBatch
from headshot_ui.recipes import load_recipes
from headshot_ui.runs import load_run
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.cache import cache_at_sizes, cache_class_pictures, cache_photos, encode_texts, make_batch
from headshot_ui.training.order import PhotoOrder
from headshot_ui.training.plan import resolve, training_photos
from headshot_ui.training.runner import train
from tests.training.conftest import Listener, make_dataset
from tests.training.test_runner import SPEC, lora_bits

#: (height, width) of buckets of 128 pixels, and what becomes of them at 64.
SHAPES = {(128, 128): (64, 64), (160, 96): (64, 64), (96, 160): (64, 64)}


@pytest.fixture
def large(loaded: LoadedBase) -> Iterator[LoadedBase]:
    """The tiny base as if it were made for 128 pixels and for photographs; its network takes any size."""
    before = loaded.info
    loaded.info = dataclasses.replace(before, size_px=128, demo=False)
    yield loaded
    loaded.info = before


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return dataclasses.replace(make_dataset(tmp_path / "dataset", tuple(SHAPES)), size_px=128)


# --- shapes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("smaller", [512, 768, 896])
def test_every_bucket_of_sdxl_becomes_the_bucket_of_the_smaller_size(smaller: int) -> None:
    large, small = buckets(1024), buckets(smaller)
    assert [shrunk(bucket, 1024, smaller) for bucket in large] == list(small)
    assert shrunk(Bucket(1216, 832), 1024, 512) == Bucket(608, 416), "half of each side, exactly"


def test_a_crop_that_is_no_bucket_keeps_its_shape_too() -> None:
    assert shrunk(Bucket(1024, 512), 1024, 512) == Bucket(512, 256)
    assert shrunk(Bucket(1216, 832), 1024, 1024) == Bucket(1216, 832)


# --- what is encoded, and what is said of it ---------------------------------------------------------
def test_latents_are_of_the_smaller_picture_and_conditions_are_right(large: LoadedBase, tmp_path: Path) -> None:
    """As in the published recipe: the photo's own size, the corner of the crop after resizing, the size trained at."""
    folder = tmp_path / "dataset"
    dataset = make_dataset(folder, ((224, 160), (192, 192)))
    first, second, *rest = dataset.photos
    second = dataclasses.replace(second, crop_top_left=(12, 30))
    dataset = dataclasses.replace(dataset, size_px=192, photos=(first, second, *rest))
    texts = encode_texts(large, [photo.caption for photo in training_photos(dataset)], Listener())
    tall, square = cache_photos(large, dataset, texts, Listener(), 64)

    assert (square.size_px, square.prepared_px, square.original_size) == ((64, 64), (192, 192), (576, 576))
    assert square.crop_top_left == (4, 10), "in pixels after resizing to a third"
    with Image.open(folder / "1.png") as image:
        small = np.array(image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))
    pixels = torch.from_numpy(small).float().permute(2, 0, 1)[None]
    assert torch.equal(square.latents, large.encode_images(pixels / 127.5 - 1)[0].float())

    # 224 x 160 is the tall bucket at 192 pixels; at 64 both become squares: 64 wide it is 89.6 tall, 12.8 cut off
    assert (tall.size_px, tall.original_size, tall.crop_top_left) == ((64, 64), (672, 480), (13, 0))


def test_the_loss_sees_the_sizes_of_the_published_formula(large: LoadedBase, prepared: Dataset) -> None:
    """Written here once more, plainly: noise, the six size conditions, the target, the mean square."""
    texts = encode_texts(large, ["", *(photo.caption for photo in training_photos(prepared))], Listener())
    items = cache_photos(large, prepared, texts, Listener(), 64)
    parameters = large.add_trainable_lora(2, 2.0, 0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    batch = make_batch(items, [False] * 3, texts[""])
    loss = float(large.loss(large.loss_inputs(batch, torch.Generator().manual_seed(5), None)).detach())

    conditions = [(384, 384, 0, 0, 64, 64), (480, 288, 21, 0, 64, 64), (288, 480, 0, 21, 64, 64)]
    assert loss == pytest.approx(plain_loss(large, batch, conditions), abs=1e-5)
    told_otherwise = [(*sizes[:4], 128, 128) for sizes in conditions]
    assert abs(loss - plain_loss(large, batch, told_otherwise)) > 1e-5, "the target size makes a difference here"
    large.use_loras(())


def plain_loss(loaded: LoadedBase, batch: TrainBatch, conditions: list[tuple[int, ...]]) -> float:
    products = alphas_cumprod()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(batch.latents.shape, generator=generator)
    squares = []
    for i, t in enumerate(torch.randint(0, 1000, (len(batch.latents),), generator=generator).tolist()):
        signal, spread = math.sqrt(products[t]), math.sqrt(1 - products[t])
        with torch.no_grad():
            predicted = loaded.modules.unet(  # type: ignore[attr-defined]
                (signal * batch.latents[i] + spread * noise[i])[None],
                torch.tensor([t]),
                encoder_hidden_states=batch.embeds["prompt_embeds"][i : i + 1],
                added_cond_kwargs={
                    "text_embeds": batch.embeds["pooled_prompt_embeds"][i : i + 1],
                    "time_ids": torch.tensor([conditions[i]], dtype=torch.float32),
                },
            ).sample[0]
        target = signal * noise[i] - spread * batch.latents[i]
        squares.append(float(((predicted - target).double() ** 2).mean()))
    return sum(squares) / len(squares)


def alphas_cumprod() -> list[float]:
    """Scaled linear betas, then zero terminal SNR (arXiv 2305.08891, 3.1), as the tiny base has them."""
    first, final = math.sqrt(0.00085), math.sqrt(0.012)
    product, products = 1.0, []
    for t in range(1000):
        product *= 1 - (first + (final - first) * t / 999) ** 2
        products.append(product)
    roots = [math.sqrt(value) for value in products]
    scale = roots[0] / (roots[0] - roots[-1])
    return [((root - roots[-1]) * scale) ** 2 for root in roots]


def test_class_pictures_shrink_with_the_photos_and_say_from_what(large: LoadedBase, prepared: Dataset) -> None:
    texts = encode_texts(large, ["", *(photo.caption for photo in training_photos(prepared))], Listener())
    path, prompt = prepared.folder / "0.png", training_photos(prepared)[0].caption
    square, *_ = photos = cache_photos(large, prepared, texts, Listener(), 64)
    items = cache_class_pictures(large, (path,), (prompt,), texts, photos[:1])[square.shape]
    assert (items[0].size_px, items[0].original_size) == ((64, 64), (128, 128))
    whole = cache_photos(large, prepared, texts, Listener())
    (item,) = cache_class_pictures(large, (path,), (prompt,), texts, whole[:1])[whole[0].shape]
    assert (item.size_px, item.original_size) == ((128, 128), (128, 128))


# --- whole runs --------------------------------------------------------------------------------------
def test_a_run_at_a_smaller_size_goes_on_bit_equal_and_draws_samples_at_the_bases_own(
    large: LoadedBase, store: Store, prepared: Dataset
) -> None:
    spec = dataclasses.replace(SPEC, steps=4, size_px=64, gradient_accumulation=2, sample_every=4)
    heard = Listener()
    whole = train(spec, store, large, prepared, heard)
    assert load_run(whole.run_dir).spec.size_px == 64
    with Image.open(heard.previews[-1]) as sample:
        assert sample.size == (128, 128)
    with pytest.raises(Cancelled):
        train(spec, store, large, prepared, Listener(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, large, prepared, Listener())
    assert (result.losses, lora_bits(result)) == (whole.losses, lora_bits(whole))
    assert whole.losses != train(dataclasses.replace(spec, size_px=None), store, large, prepared, Listener()).losses


def test_each_photo_is_learned_at_each_resolution(large: LoadedBase, prepared: Dataset) -> None:
    texts = encode_texts(large, ["", *(photo.caption for photo in training_photos(prepared))], Listener())
    items = cache_at_sizes(large, prepared, texts, Listener(), (64, 128))
    small, whole = (cache_photos(large, prepared, texts, Listener(), size) for size in (64, None))
    assert len(items) == 2 * len(SHAPES)
    for item, alone in zip(items, (*small, *whole), strict=True):
        assert torch.equal(item.latents, alone.latents) and item.size_px == alone.size_px
    order = PhotoOrder([item.shape for item in items], torch.Generator().manual_seed(3))
    drawn = [order.next_batch(1)[0] for _ in range(2 * len(items))]
    for start in (0, len(items)):  # a round: every photo at every size once, in an order of its own
        assert sorted(drawn[start : start + len(items)]) == list(range(len(items)))
    assert drawn[: len(items)] != drawn[len(items) :]
    assert all(len({items[index].shape for index in order.next_batch(2)}) == 1 for _ in range(9))


def test_a_run_at_several_resolutions_goes_on_bit_equal(large: LoadedBase, store: Store, prepared: Dataset) -> None:
    spec = dataclasses.replace(SPEC, steps=6, resolutions=(64, 128), checkpoint_every=2)
    whole = train(spec, store, large, prepared, Listener())
    assert (load_run(whole.run_dir).spec.resolutions, load_run(whole.run_dir).spec.size_px) == ((64, 128), 128)
    with pytest.raises(Cancelled):
        train(spec, store, large, prepared, Listener(cancel_at=3))
    run = runs.list_runs(store, "anna")[0]
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, large, prepared, Listener())
    assert (result.losses, lora_bits(result)) == (whole.losses, lora_bits(whole))
    assert whole.losses != train(dataclasses.replace(spec, resolutions=None), store, large, prepared, Listener()).losses


def test_steps_are_counted_as_optimizer_steps(large: LoadedBase, store: Store, prepared: Dataset) -> None:
    heard, spec = Listener(), dataclasses.replace(SPEC, steps=3, gradient_accumulation=4)
    result = train(spec, store, large, prepared, heard)
    assert heard.steps("Training") == [0, 1, 2, 3] and (result.steps, len(result.losses)) == (3, 3)


def test_the_default_recipe_trains_the_very_same_bits(loaded: LoadedBase, store: Store, dataset: Dataset) -> None:
    said_nothing = train(dataclasses.replace(SPEC, steps=2), store, loaded, dataset, Listener())
    spec = dataclasses.replace(SPEC, steps=2, recipe="default", optimizer="adamw", size_px=64, caption_dropout=0.05)
    assert lora_bits(train(spec, store, loaded, dataset, Listener())) == lora_bits(said_nothing)
    assert load_run(said_nothing.run_dir).spec.recipe == "default"


def test_a_recipe_is_in_the_manifest_with_all_it_said(large: LoadedBase, store: Store, prepared: Dataset) -> None:
    path = store.settings.outputs_dir / "recipes" / "mine.json"
    path.parent.mkdir(parents=True)
    said = {"rank": 3, "size_px": 64, "gradient_accumulation": 2}
    path.write_text(json.dumps({"id": "mine", "title": "Mine", "note": "My own.", "train": said}))
    spec = TrainSpec("anna", "tiny-sdxl", steps=4, recipe="mine", checkpoint_every=2)
    whole = train(spec, store, large, prepared, Listener())
    saved = load_run(whole.run_dir).spec
    assert (saved.recipe, saved.rank, saved.size_px, saved.gradient_accumulation) == ("mine", 3, 64, 2)
    assert resolve(spec, large.info, load_recipes(store.settings)) == dataclasses.replace(saved, run=None)
    with pytest.raises(Cancelled):
        train(spec, store, large, prepared, Listener(cancel_at=2))
    run = runs.list_runs(store, "anna")[0]
    path.unlink()  # what was begun with a recipe goes on without it
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, large, prepared, Listener())
    assert lora_bits(result) == lora_bits(whole)


def test_a_run_from_before_there_were_recipes_goes_on_bit_equal(
    loaded: LoadedBase, store: Store, dataset: Dataset
) -> None:
    whole = train(SPEC, store, loaded, dataset, Listener())
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=3))
    run = runs.list_runs(store, "anna")[0]
    manifest = json.loads((run.folder / "run.json").read_text())
    for name in ("recipe", "optimizer", "size_px", "resolutions"):
        del manifest["spec"][name]
    (run.folder / "run.json").write_text(json.dumps(manifest))
    result = train(TrainSpec("anna", "tiny-sdxl", run=run.name), store, loaded, dataset, Listener())
    assert (result.losses, lora_bits(result)) == (whole.losses, lora_bits(whole))
    assert load_run(run.folder).spec.optimizer == "adamw"
