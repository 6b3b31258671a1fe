"""SDXL of the published shape with random weights in memory: as diffusers' pipeline, and as this program's base."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headshot_ui.families.protocol import BaseDefaults, BaseInfo
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.prove.random_models import BASE_PARTS, SIZES, random_part

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl

#: TFLOP of one pass of the UNet for one picture of 1024 px, and of decoding one (twice the multiply-adds).
UNET_TFLOP, DECODING_TFLOP = 6.76, 10.5
STEPS, GUIDANCE = 30, 5.0


@dataclass
class RandomSdxl:
    """The parts, each once: the pipeline and the base share them, and take turns on the card."""

    size: str
    parts: dict[str, Any]  # by the folder's name
    tokenizers: tuple[Any, Any]
    scheduler_config: dict[str, Any]
    device: str
    our_vae: Any  # in float32, in which this program keeps it
    folder: Path  # with the configs of the parts

    @classmethod
    def make(cls, size: str, device: str, dtype: str, configs: Path, seed: int = 0) -> RandomSdxl:
        """In main memory, made on ``device``; all but our VAE in ``dtype``. Configs go to the folder ``configs``."""
        import torch

        from headshot_ui.families.shared_parts.load import quiet
        from headshot_ui.families.shared_parts.words import read_tokenizer

        number_format = getattr(torch, dtype)
        parts = {}
        for number, part in enumerate(BASE_PARTS):
            module = random_part("base", part, size, device, seed + number)
            with quiet():
                parts[part] = module.requires_grad_(False).eval().to(number_format).cpu()
            _write_config(module, configs / part)
        folder = published("base")
        first, second = (
            read_tokenizer(folder / name, read_json_file(folder / encoder / "config.json")["vocab_size"])
            for name, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
        )
        config = read_json_file(folder / "scheduler" / "scheduler_config.json")
        return cls(size, parts, (first, second), config, device, copy.deepcopy(parts["vae"]).float(), configs)

    @property
    def side(self) -> int:
        """Of the square picture, in pixels."""
        return SIZES[self.size].size_px

    def pipeline(self) -> Any:
        """diffusers' own with its defaults. ``on_card`` moves it."""
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

        scheduler = EulerDiscreteScheduler.from_config(dict(self.scheduler_config))
        first, second = self.tokenizers
        pipe = StableDiffusionXLPipeline(**self.parts, tokenizer=first, tokenizer_2=second, scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def base(self) -> LoadedSdxl:
        """As this program has it after reading; it stays between jobs."""
        from headshot_ui.families.sdxl_parts.load import SdxlModules
        from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl

        encoders = self.parts["text_encoder"], self.parts["text_encoder_2"]
        modules = SdxlModules(self.parts["unet"], self.our_vae, encoders, self.tokenizers, self.scheduler_config, True)
        return LoadedSdxl(self._info(), modules, self.device)

    def _info(self) -> BaseInfo:
        defaults = BaseDefaults(sampling_steps=STEPS, guidance_scale=GUIDANCE)
        return BaseInfo("bench-sdxl", "sdxl", "Random SDXL", self.folder, "none", "", self.side, True, defaults)

    def on_card(self, wanted: bool) -> None:
        """The pipeline's parts to the device, or off it; ours move by themselves."""
        from headshot_ui.swapping import move

        for module in self.parts.values():
            move(module, self.device if wanted else "cpu")
        if not wanted:
            move(self.our_vae, "cpu")


def _write_config(module: Any, folder: Path) -> None:
    if hasattr(module, "save_config"):  # of diffusers
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)


def bound_tflop(pictures: int, steps: int, guided_steps: int) -> float:
    """What drawing and decoding take at least at 1024 px."""
    return pictures * ((steps + guided_steps) * UNET_TFLOP + DECODING_TFLOP)


def noise(seeds: Sequence[int], pipe: Any, side: int) -> torch.Tensor:
    """What this program begins pictures of these seeds with, in the pipeline's number format."""
    from headshot_ui.families.shared_parts.drawing import first_noise

    cells = side // pipe.vae_scale_factor
    return first_noise(seeds, (pipe.unet.config.in_channels, cells, cells)).to(pipe.unet.dtype)


def psnr(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The lowest of all pairs of pictures in decibels of 8-bit values; 99 for equal ones."""
    import numpy as np

    pairs = zip(first, second, strict=True)
    errors = [np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2) for one, other in pairs]
    worst = max(errors)
    return 99.0 if worst == 0 else float(10 * np.log10(255**2 / worst))


def save_all(pictures: Sequence[Any], folder: Path) -> None:
    """As anybody saves pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")


@contextmanager
def in_float32(models: RandomSdxl) -> Iterator[None]:
    """Copies in float32, on the device, in the place of the pipeline's parts, which must be off it."""
    from headshot_ui.families.shared_parts.load import quiet

    parts = models.parts
    try:
        with quiet():
            models.parts = {name: copy.deepcopy(part).float().to(models.device) for name, part in parts.items()}
        yield
    finally:
        models.parts = parts
