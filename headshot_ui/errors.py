"""Everything that can go wrong and that a person can do something about.

HeadshotError             one sentence: what happened and what to do
├── SpecError             a request is not valid; names the field
├── PhotoError            one photo cannot be used (unreadable, too large, no face …)
├── DatasetError          the photos of a person, taken together, cannot be used
├── ModelError            a base model, LoRA or network file is missing, damaged or of another kind
├── DownloadError         a model could not be fetched: no network, gone, refused, not what it should be …
├── StoreError            reading or writing under outputs/ failed (disk full, no permission, damaged manifest)
├── MemoryBudgetError     the job does not fit this machine; names the nearest one that does
├── DeviceError           the graphics card cannot be used, or stopped working
└── SetupError            the program is not completely installed

Cancelled                 not an error: the person pressed Cancel

Foreign exceptions are translated where they arise (``raise … from``); whatever
is still foreign at the top is logged with its traceback and shown as one sentence
that names the log file.
"""

from __future__ import annotations


class HeadshotError(Exception):
    """A problem told in one sentence: what happened and what to do."""


class SpecError(HeadshotError):
    """A request that cannot be carried out as written.

    ``field`` is the name of the dataclass field at fault, so that a page can show
    the message beside the right control.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class PhotoError(HeadshotError):
    """One photo cannot be used; the others may."""


class DatasetError(HeadshotError):
    """The photos of a person, taken together, cannot be used."""


class ModelError(HeadshotError):
    """A model file is missing, damaged, or made for something else."""


class DownloadError(HeadshotError):
    """A model could not be fetched; what came of it is kept."""


class StoreError(HeadshotError):
    """Reading or writing under the outputs folder failed."""


class MemoryBudgetError(HeadshotError):
    """The job does not fit the memory of this machine."""


class DeviceError(HeadshotError):
    """The graphics card cannot be used, or stopped working."""


class SetupError(HeadshotError):
    """The program is not completely installed."""


class Cancelled(Exception):
    """The person cancelled the job; what was finished before is kept."""
