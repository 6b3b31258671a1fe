"""What can be downloaded: one JSON file per entry in ``catalogue/``, read into frozen dataclasses."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from headshot_ui.errors import SpecError

FOLDER = Path(__file__).parent / "catalogue"
Kind = Literal[
    "base", "refiner", "vae", "restorer", "detector", "recogniser", "parser", "upscaler", "captioner", "encoders"
]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class RemoteFile:
    """One file of an entry."""

    remote: str  # path in the hub's repository, or name of the release's file
    place: str  # where it goes, below the models folder, with "/"
    size: int  # bytes
    sha256: str | None  # as it was published; None where that could not be established
    size_is_exact: bool = True  # False: only for planning, the server says how large it is


@dataclass(frozen=True)
class Source:
    """Where files come from: a repository of the Hugging Face hub at one revision, or a release on GitHub."""

    hub: str = ""  # "owner/name"
    revision: str = ""
    release: str = ""  # "owner/name"
    tag: str = ""

    @property
    def page(self) -> str:
        """Where people can look at it."""
        if self.hub:
            return f"https://huggingface.co/{self.hub}"
        return f"https://github.com/{self.release}/releases/tag/{self.tag}"


@dataclass(frozen=True)
class Entry:
    """One model that can be downloaded."""

    id: str
    kind: Kind
    title: str
    licence: str
    licence_page: str
    note: str  # one plain sentence
    source: Source
    files: tuple[RemoteFile, ...]  # in the order in which they are put in place
    non_commercial: bool = False  # its licence has to be accepted once
    terms: str = ""  # what is shown before accepting; a restorer has its own
    #: Files that the program writes itself once all others are there, and takes away first: place → JSON. With one of
    #: them a folder is offered as a model, so that it is offered only while it is whole.
    written: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@lru_cache(maxsize=4)
def load_catalogue(folder: Path = FOLDER) -> Mapping[str, Entry]:
    """Every entry by its id, in the order of the files' names. Raises ValueError, naming the file, for a bad one."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entry = _entry(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from error
        if entry.id in entries:
            raise ValueError(f"{path}: there are two entries “{entry.id}”")
        entries[entry.id] = entry
    return entries


def find_entry(entry_id: str) -> Entry:
    """The entry of that id. Raises SpecError, listing what there is."""
    entries = load_catalogue()
    if entry_id not in entries:
        raise SpecError("entries", f"There is no model “{entry_id}” to download; choose from {', '.join(entries)}.")
    return entries[entry_id]


def _entry(data: dict[str, Any]) -> Entry:
    files = tuple(_file(each) for each in data.pop("files"))
    entry = Entry(source=_source(data.pop("source")), files=files, **data)
    if not _ID.fullmatch(entry.id) or entry.kind not in typing.get_args(Kind):
        raise ValueError(f"“{entry.id}” ({entry.kind}) is no usable entry")
    for one in fields(Entry):
        if one.type == "str" and one.default is MISSING and not getattr(entry, one.name):
            raise ValueError(f"“{one.name}” is empty")
    if entry.non_commercial and not entry.terms and entry.kind != "restorer":
        raise ValueError("its licence has to be accepted, but “terms” is empty")
    places = [*(file.place for file in files), *entry.written]
    if not files or len(set(places)) != len(places):
        raise ValueError("it has no files, or two for one place")
    for place in places:
        _check_place(place)
    return entry


def _file(data: dict[str, Any]) -> RemoteFile:
    file = RemoteFile(**data)
    if file.size <= 0 or (file.sha256 is not None and not _SHA256.fullmatch(file.sha256)):
        raise ValueError(f"size or sha256 of {file.remote} is not usable")
    return file


def _source(data: dict[str, Any]) -> Source:
    source = Source(**data)
    if bool(source.hub and source.revision) == bool(source.release and source.tag):
        raise ValueError("the source must be a hub repository with its revision, or a release with its tag")
    return source


def _check_place(place: str) -> None:
    """Below the models folder, in a folder of its own, and not among the demo's files."""
    parts = PurePosixPath(place).parts
    if place != "/".join(parts) or len(parts) < 2 or {"..", "/"} & set(parts) or parts[0] == "demo":
        raise ValueError(f"“{place}” is no place for a file")
