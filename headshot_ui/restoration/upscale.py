"""Enlarging whole pictures two or four times: by Real-ESRGAN (arXiv 2107.10833) where it is installed, else plainly.

The network looks at square windows that overlap, and of each only the middle is kept: its answer for a pixel
depends on pixels near it alone, so the seams cannot be seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headshot_ui.logs import is_out_of_memory
from headshot_ui.memory import give_back
from headshot_ui.restoration.device import DeviceNet
from headshot_ui.restoration.weights import find_file, read_spandrel
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    import numpy as np
    import torch

    from headshot_ui.settings import Settings

WINDOW = 512  # pixels of the picture that the network sees at once
MARGIN = 48  # of these, on each side, seen only for the sake of the others; a multiple of 4
LEAST_WINDOW = 160
RELEASE = "https://github.com/xinntao/Real-ESRGAN/releases"

#: Called with (windows finished, windows in all); may raise Cancelled.
Tick = Callable[[int, int], None]

_log = logging.getLogger(__name__)


class LoadedUpscaler(Protocol):
    """Something that enlarges pictures."""

    @property
    def factor(self) -> int: ...

    @property
    def method(self) -> str:
        """For people: "Real-ESRGAN" or "Lanczos"."""

    @property
    def learned(self) -> bool:
        """Whether a network adds detail of its own."""

    @property
    def note(self) -> str:
        """One sentence on what would do better; "" when nothing is missing."""

    def windows(self, height: int, width: int) -> int:
        """How many steps a picture of this size takes."""

    def enlarge(self, picture: np.ndarray, tick: Tick) -> np.ndarray:
        """RGB uint8 (H, W, 3) to (H · factor, W · factor, 3)."""

    def keep(self, parts: frozenset[str]) -> None:
        """Any part's name: on the device; frozenset(): off it."""

    def release(self) -> None:
        """Drop everything."""


@dataclass(frozen=True)
class Lanczos:
    """Plain enlarging, without a network."""

    factor: int
    note: str = ""
    method: str = "Lanczos"
    learned: bool = False

    def windows(self, height: int, width: int) -> int:
        """How many steps a picture of this size takes."""
        return 1

    def enlarge(self, picture: np.ndarray, tick: Tick) -> np.ndarray:
        """RGB uint8 (H, W, 3) to (H · factor, W · factor, 3)."""
        import numpy as np
        from PIL import Image

        height, width = picture.shape[:2]
        size = (width * self.factor, height * self.factor)
        large = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        tick(1, 1)
        return large

    def keep(self, parts: frozenset[str]) -> None:
        """There is nothing to move."""

    def release(self) -> None:
        """There is nothing to drop."""


class RealEsrgan:
    """An RRDBNet in memory that enlarges ``own`` times; its answer is averaged where less is wanted."""

    method, learned, note = "Real-ESRGAN", True, ""

    def __init__(self, net: torch.nn.Module, device: str, own: int, factor: int) -> None:
        self.factor = factor
        self._held = DeviceNet(net, device)
        self._own = own
        self._window = WINDOW

    def windows(self, height: int, width: int) -> int:
        """How many steps a picture of this size takes."""
        return sum(1 for _ in windows_of(height, width, self._window))

    def enlarge(self, picture: np.ndarray, tick: Tick) -> np.ndarray:
        """RGB uint8 (H, W, 3) to (H · factor, W · factor, 3). Smaller windows are tried where memory runs out."""
        while True:
            try:
                return self._in_windows(picture, tick)
            except RuntimeError as error:  # torch.OutOfMemoryError is one, and Apple's GPUs know no other
                if not is_out_of_memory(error) or self._window // 2 < LEAST_WINDOW:
                    raise
                self._window //= 2
                _log.warning("Too little graphics memory for Real-ESRGAN; trying windows of %d pixels", self._window)
                give_back()

    def _in_windows(self, picture: np.ndarray, tick: Tick) -> np.ndarray:
        import numpy as np

        height, width = picture.shape[:2]
        large = np.empty((height * self.factor, width * self.factor, 3), np.uint8)
        windows = list(windows_of(height, width, self._window))
        for number, (seen, kept) in enumerate(windows, start=1):
            answer = self._answer(picture[seen])
            rows, columns = (slice(k.start * self.factor, k.stop * self.factor) for k in kept)
            top, left = ((k.start - s.start) * self.factor for k, s in zip(kept, seen, strict=True))
            part = answer[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
            large[rows, columns] = part
            tick(number, len(windows))
        return large

    def _answer(self, window: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to (h · factor, w · factor, 3)."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        # The last row and column again: the network cannot see less than 4 x 4.
        height, width = window.shape[:2]
        window = np.pad(window, ((0, max(4 - height, 0)), (0, max(4 - width, 0)), (0, 0)), mode="edge")
        x = torch.from_numpy(window.astype(np.float32).transpose(2, 0, 1)[None] / 255)
        y = self._held.run(lambda net, pixels: net(pixels), x).clamp(0, 1)
        if self._own > self.factor:
            y = F.avg_pool2d(y, self._own // self.factor)
        y = y[0, :, : height * self.factor, : width * self.factor]
        return (y * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def keep(self, parts: frozenset[str]) -> None:
        """Any part's name: on the device; frozenset(): off it."""
        self._held.keep(parts)

    def release(self) -> None:
        """Drop everything."""
        self._held.release()


def windows_of(height: int, width: int, window: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """(rows, columns) that the network sees and those of them that are kept, which fill the picture."""
    step = window - 2 * MARGIN
    for top in range(0, height, step):
        for left in range(0, width, step):
            kept = slice(top, min(top + step, height)), slice(left, min(left + step, width))
            # Begins at a multiple of 4, for Real-ESRGAN x2 puts 2 x 2 pixels into one.
            seen = slice(max(top - MARGIN, 0), min(top + step + MARGIN, height))
            yield (seen, slice(max(left - MARGIN, 0), min(left + step + MARGIN, width))), kept


def weights(factor: int, settings: Settings) -> Path | None:
    """The file of the network that enlarges by ``factor``, or more; None where none is installed."""
    folder = settings.models_dir / "realesrgan"
    found = find_file(folder, [f"RealESRGAN_x{own}plus" for own in (2, 4) if own >= factor])
    return found if found.is_file() else None


def missing(factor: int, settings: Settings) -> str:
    """What is done instead of Real-ESRGAN and what to do, in one sentence; "" when it can be used."""
    if weights(factor, settings) is not None:
        return ""
    place = settings.models_dir / "realesrgan" / f"RealESRGAN_x{factor}plus.pth"
    return (
        f"Enlarged plainly, without new detail: for more, {how_to_get(f'realesrgan-x{factor}')}; or take {place.name} "
        f"from {RELEASE} and put it at {place}."
    )


def load_upscaler(factor: int, settings: Settings) -> LoadedUpscaler:
    """Real-ESRGAN where its file is there, else Lanczos, saying so. Raises ModelError for a damaged or foreign file."""
    path = weights(factor, settings)
    if path is None:
        note = missing(factor, settings)
        _log.info(note)
        return Lanczos(factor, note)
    net, own = read_net(path)
    if own < factor or own % factor:
        from headshot_ui.errors import ModelError

        raise ModelError(f"{path} enlarges {own} times, not {factor} times: replace it by the right file.")
    return RealEsrgan(net, settings.device, own, factor)


def read_net(path: Path) -> tuple[torch.nn.Module, int]:
    """An RRDBNet and how many times it enlarges. Raises ModelError naming the file."""
    import torch
    from spandrel import MAIN_REGISTRY, ArchRegistry

    registry = ArchRegistry()
    registry.add(MAIN_REGISTRY["ESRGAN"])
    net = read_spandrel(path, registry, "Real-ESRGAN")
    with torch.inference_mode():
        return net, net(torch.zeros(1, 3, 8, 8)).shape[-1] // 8
