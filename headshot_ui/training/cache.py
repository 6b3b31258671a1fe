"""Everything the loop needs of photos and captions, computed once, so that encoders can leave the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from headshot_ui.dataset.buckets import Bucket, shrunk
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import DatasetError
from headshot_ui.families.protocol import LoadedBase, TrainBatch
from headshot_ui.jobs import Reporter
from headshot_ui.training.plan import training_photos

TEXT_STAGE = "Reading the captions"
PHOTO_STAGE = "Reading the photos"

Embeds = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Item:
    """One picture to learn from, on the CPU."""

    latents: torch.Tensor  # (C, h, w) float32
    embeds: Embeds  # without the first dimension
    size_px: tuple[int, int]  # (height, width) of the picture that was encoded
    original_size: tuple[int, int]  # (height, width) before resizing
    crop_top_left: tuple[int, int] = (0, 0)  # in pixels after resizing
    prepared_px: tuple[int, int] | None = None  # (height, width) of the prepared picture that was shrunk

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape)


def encode_texts(loaded: LoadedBase, texts: Sequence[str], report: Reporter) -> dict[str, Embeds]:
    """Each different text's embedding, without the first dimension."""
    unique = list(dict.fromkeys(texts))
    found: dict[str, Embeds] = {}
    for number, text in enumerate(unique):  # one by one: 500 captions at once would not fit beside a real encoder
        report(TEXT_STAGE, number, len(unique))
        found[text] = {name: tensor[0] for name, tensor in loaded.encode_prompts([text]).items()}
    return found


def cache_photos(
    loaded: LoadedBase, dataset: Dataset, texts: Mapping[str, Embeds], report: Reporter, shrunk_px: int | None = None
) -> tuple[Item, ...]:
    """Latents (the posterior's mean) and embeddings of the training photos, unflipped: faces are not symmetric.

    With ``shrunk_px`` photos prepared for a larger square are made smaller first; their shapes stay.
    """
    photos = training_photos(dataset)
    items = []
    with ThreadPoolExecutor(1, thread_name_prefix="photos") as pool:  # reads the next one while one is encoded
        coming = pool.submit(_read, dataset, photos[0], shrunk_px)
        for number, photo in enumerate(photos):
            report(PHOTO_STAGE, number, len(photos))
            picture, corner, prepared = coming.result()
            if number + 1 < len(photos):
                coming = pool.submit(_read, dataset, photos[number + 1], shrunk_px)
            size = (picture.shape[2], picture.shape[3])
            latents = loaded.encode_images(picture)[0].float().cpu()
            items.append(Item(latents, texts[photo.caption], size, photo.original_size, corner, prepared))
    report(PHOTO_STAGE, len(photos), len(photos))
    return tuple(items)


def cache_at_sizes(
    loaded: LoadedBase, dataset: Dataset, texts: Mapping[str, Embeds], report: Reporter, sizes_px: Sequence[int]
) -> tuple[Item, ...]:
    """``cache_photos`` at several sides of the square: each photo once at each, one size after the other.

    To the order of photos they are so many photos: each comes once per round, at one size, and a batch holds one shape.
    """
    own = loaded.info.size_px
    return tuple(
        item
        for size_px in sizes_px
        for item in cache_photos(loaded, dataset, texts, report, size_px if size_px < own else None)
    )


def _read(
    dataset: Dataset, photo: PreparedPhoto, shrunk_px: int | None
) -> tuple[torch.Tensor, tuple[int, int], tuple[int, int] | None]:
    """A photo as it is learned from, its crop condition, and the size it was shrunk from."""
    path = dataset.folder / photo.crop
    if shrunk_px is None or shrunk_px >= dataset.size_px:
        return picture_tensor(path), photo.crop_top_left, None
    prepared = _size(path)
    smaller = shrunk(Bucket(*prepared), dataset.size_px, shrunk_px)
    picture = picture_tensor(path, (smaller.height, smaller.width))
    return picture, _shrunk_corner(photo.crop_top_left, prepared, smaller), prepared


def _size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture file. Raises DatasetError when it cannot be read."""
    with _opened(path) as image:
        return image.height, image.width


def _shrunk_corner(corner: tuple[int, int], prepared: tuple[int, int], smaller: Bucket) -> tuple[int, int]:
    """The crop condition (top, left) of a shrunk picture: as far in as before, and what filling its shape cuts off."""
    height, width = prepared
    factor = max(smaller.height / height, smaller.width / width)
    top, left = (corner[0] * factor, corner[1] * factor)
    return round(top + (height * factor - smaller.height) / 2), round(left + (width * factor - smaller.width) / 2)


def cache_class_pictures(
    loaded: LoadedBase,
    paths: Sequence[Path],
    prompts: Sequence[str],
    texts: Mapping[str, Embeds],
    photos: Sequence[Item],
) -> dict[tuple[int, ...], tuple[Item, ...]]:
    """Class pictures as items for every shape the photos have, because one batch holds one shape.

    Where photos were shrunk these are too, from the size at which they were drawn.
    """
    like = {item.shape: item for item in photos}
    return {
        shape: tuple(
            Item(
                loaded.encode_images(picture_tensor(path, item.size_px))[0].float().cpu(),
                texts[prompt],
                item.size_px,
                item.prepared_px or item.size_px,
            )
            for path, prompt in zip(paths, prompts, strict=True)
        )
        for shape, item in like.items()
    }


def picture_tensor(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A picture file as (1, 3, H, W) float32 in [-1, 1], filled to ``size`` (height, width) when given.

    Raises DatasetError when it cannot be read.
    """
    with _opened(path) as file:
        image = file.convert("RGB")
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image).copy()).float().div_(127.5).sub_(1)
    return pixels.permute(2, 0, 1)[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            yield file
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{path} cannot be read any more: prepare the photos again.") from error


def make_batch(items: Sequence[Item], dropped: Sequence[bool], empty: Embeds) -> TrainBatch:
    """Items of one shape as a batch; where ``dropped`` is true the caption is replaced by the empty one."""
    embeds = [empty if drop else item.embeds for item, drop in zip(items, dropped, strict=True)]
    return TrainBatch(
        latents=torch.stack([item.latents for item in items]),
        embeds={name: torch.stack([entry[name] for entry in embeds]) for name in empty},
        original_sizes=[item.original_size for item in items],
        crops=[item.crop_top_left for item in items],
    )
