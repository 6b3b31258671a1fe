"""Everything the loop needs of photos and captions, computed once, so that encoders can leave the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from headshot_ui.dataset.types import Dataset
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
    crop_top_left: tuple[int, int] = (0, 0)

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
    loaded: LoadedBase, dataset: Dataset, texts: Mapping[str, Embeds], report: Reporter
) -> tuple[Item, ...]:
    """Latents (the posterior's mean) and embeddings of the training photos, unflipped: faces are not symmetric."""
    photos = training_photos(dataset)
    items = []
    for number, photo in enumerate(photos):
        report(PHOTO_STAGE, number, len(photos))
        picture = picture_tensor(dataset.folder / photo.crop)
        size = (picture.shape[2], picture.shape[3])
        latents = loaded.encode_images(picture)[0].float().cpu()
        items.append(Item(latents, texts[photo.caption], size, photo.original_size, photo.crop_top_left))
    report(PHOTO_STAGE, len(photos), len(photos))
    return tuple(items)


def cache_class_pictures(
    loaded: LoadedBase,
    paths: Sequence[Path],
    prompts: Sequence[str],
    texts: Mapping[str, Embeds],
    photos: Sequence[Item],
) -> dict[tuple[int, ...], tuple[Item, ...]]:
    """Class pictures as items for every shape the photos have, because one batch holds one shape."""
    sizes = {item.shape: item.size_px for item in photos}
    return {
        shape: tuple(
            Item(loaded.encode_images(picture_tensor(path, size))[0].float().cpu(), texts[prompt], size, size)
            for path, prompt in zip(paths, prompts, strict=True)
        )
        for shape, size in sizes.items()
    }


def picture_tensor(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A picture file as (1, 3, H, W) float32 in [-1, 1], filled to ``size`` (height, width) when given.

    Raises DatasetError when it cannot be read.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{path} cannot be read any more: prepare the photos again.") from error
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image).copy()).float().div_(127.5).sub_(1)
    return pixels.permute(2, 0, 1)[None]


def make_batch(items: Sequence[Item], dropped: Sequence[bool], empty: Embeds, device: torch.device) -> TrainBatch:
    """Items of one shape as a batch; where ``dropped`` is true the caption is replaced by the empty one."""
    embeds = [empty if drop else item.embeds for item, drop in zip(items, dropped, strict=True)]
    return TrainBatch(
        latents=torch.stack([item.latents for item in items]).to(device),
        embeds={name: torch.stack([entry[name] for entry in embeds]).to(device) for name in empty},
        original_sizes=[item.original_size for item in items],
        crops=[item.crop_top_left for item in items],
    )
