"""What stages took on this machine: memory and seconds per model, stage, picture size and number format."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headshot_ui.errors import StoreError
from headshot_ui.store import read_json, write_json_atomic

FILE_NAME = "peaks.json"  # in the outputs folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One stage as it was measured. Files of before had only the first four fields."""

    name: str  # of the stage
    seconds: float  # of the last time
    peak_ram_bytes: int  # the most ever, of the whole process
    peak_vram_bytes: int  # the most ever, by torch's count; 0 without a GPU
    size: str = ""  # what memory depends on, e.g. "1024x1024 batch 2"
    device: str = ""
    dtype: str = ""
    units: float = 0.0  # work done in those seconds, e.g. steps; 0: not known
    first_s: float = 0.0  # beside them, the most ever: reading the base and making it fit, if only in part

    @property
    def key(self) -> str:
        return " ".join(filter(None, (self.name, self.size, self.device, self.dtype)))


class Peaks:
    """``outputs/peaks.json``. Every thread may use it."""

    def __init__(self, outputs_dir: Path) -> None:
        self._file = outputs_dir / FILE_NAME
        self._lock = threading.Lock()

    def record(self, model: str, use: Measured) -> None:
        """Keep the largest peaks and ``first_s`` and the latest seconds per model and ``use.key``."""
        with self._lock:
            everything = self._read()
            stages = everything.setdefault(model, {})
            old = stages.get(use.key)
            if old is not None:
                use = replace(
                    use,
                    peak_ram_bytes=max(use.peak_ram_bytes, old.peak_ram_bytes),
                    peak_vram_bytes=max(use.peak_vram_bytes, old.peak_vram_bytes),
                    first_s=max(use.first_s, old.first_s),
                )
                if not use.units:
                    use = replace(use, seconds=old.seconds, units=old.units)
            stages[use.key] = use
            plain = {name: {key: asdict(one) for key, one in uses.items()} for name, uses in everything.items()}
            try:
                write_json_atomic(self._file, plain)
            except StoreError as error:  # a number for the next plan is not worth failing a finished stage
                _log.warning("%s", error)

    def find(self, model: str, stage: str, size: str, device: str, dtype: str) -> Measured | None:
        """What is known of such a stage; else what an older version noted of the stage on this kind of device."""
        uses = self._read().get(model, {})
        exact = uses.get(Measured(stage, 0.0, 0, 0, size, device, dtype).key)
        if exact is not None:
            return exact
        older = uses.get(stage)
        return older if older is not None and (older.peak_vram_bytes > 0) == (device == "cuda") else None

    def take_over(self, other: Peaks, skip: frozenset[str] = frozenset()) -> int:
        """Record all that ``other`` knows, but of the models ``skip``; how many stages that were."""
        found = {model: uses for model, uses in other._read().items() if model not in skip}
        for model, uses in found.items():
            for use in uses.values():
                self.record(model, use)
        return sum(map(len, found.values()))

    def of(self, model: str) -> dict[str, Measured]:
        """Everything known about a model, by ``Measured.key``."""
        return self._read().get(model, {})

    def _read(self) -> dict[str, dict[str, Measured]]:
        if not self._file.is_file():
            return {}
        try:
            data: dict[str, dict[str, dict[str, Any]]] = read_json(self._file)
            return {model: {key: Measured(**use) for key, use in uses.items()} for model, uses in data.items()}
        except (StoreError, TypeError, AttributeError) as error:
            _log.warning("Measured peaks are forgotten: %s", error)
            return {}
