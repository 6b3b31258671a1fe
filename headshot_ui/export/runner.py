"""Every picture of a request in every layout it asks for, and a zip archive of all of them.

What cannot be exported is said and stops nothing else; a cancel or a full disk keeps what is finished.
"""

from __future__ import annotations

import logging
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.dataset.decode import check_file_size, decode
from headshot_ui.dataset.originals import safe_stem
from headshot_ui.errors import Cancelled, PhotoError, SpecError, StoreError
from headshot_ui.export.files import PROGRAM, SUFFIXES, save_picture, source_type
from headshot_ui.export.layouts import Layout, find_layout
from headshot_ui.export.render import cut
from headshot_ui.stars import starred
from headshot_ui.store import atomic_file, check_free_space, new_folder, write_json_atomic

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.dataset.types import Face, FaceDetector
    from headshot_ui.jobs import Reporter
    from headshot_ui.specs import ExportSpec
    from headshot_ui.store import Store

STAGE = "Exporting"
RECORD = "exported.json"
ARCHIVE = "headshots.zip"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest there is: when a picture was exported is nobody's business

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """One file that was written."""

    source: Path
    layout: str  # id
    path: Path
    width: int  # pixels
    height: int
    note: str = ""  # what is not as wished, for people; "" when all is


@dataclass(frozen=True)
class ExportResult:
    """Everything one request wrote."""

    folder: Path
    files: tuple[ExportedFile, ...]  # by picture, and within it by layout, as in the request
    archive: Path  # zip of all files
    seconds: float
    skipped: tuple[str, ...] = ()  # one sentence per picture that could not be exported


@dataclass
class _Work:
    """One request while it runs."""

    spec: ExportSpec
    pictures: tuple[Path, ...]
    layouts: tuple[Layout, ...]
    detector: FaceDetector
    report: Reporter
    folder: Path
    files: list[ExportedFile] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def export_pictures(spec: ExportSpec, store: Store, detector: FaceDetector, report: Reporter) -> ExportResult:
    """Write every picture of ``spec`` in every layout to a new folder in ``store.exports_dir``, with a zip archive.

    The largest face of a picture decides the crop. Raises SpecError when there is nothing to export, PhotoError when
    no picture at all could be used, StoreError when writing fails, and Cancelled out of ``report``; in the last two
    cases finished files stay, with their archive and record.
    """
    started = time.monotonic()
    pictures = _pictures(spec, store)
    layouts = tuple(dict.fromkeys(find_layout(layout_id) for layout_id in spec.layouts))
    check_free_space(store.exports_dir(spec.person), _most_bytes(pictures, layouts))
    folder = new_folder(store.exports_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    work = _Work(spec, pictures, layouts, detector, report, folder)
    state, problem = "done", None
    try:
        _export_all(work)
    except Exception as error:  # whatever it is, what was written before it is kept
        state, problem = ("cancelled" if isinstance(error, Cancelled) else "failed"), error
    if not work.files:
        with suppress(OSError):
            folder.rmdir()
        raise problem or PhotoError(" ".join(work.skipped))
    try:
        archive = _write_archive(work)
        seconds = time.monotonic() - started
        write_json_atomic(folder / RECORD, _record(work, state, seconds))
    except StoreError as error:
        if problem is None:
            raise
        _log.error("Finishing a broken-off export failed", exc_info=error)
    if problem is not None:
        raise problem
    return ExportResult(folder, tuple(work.files), archive, seconds, tuple(work.skipped))


def _pictures(spec: ExportSpec, store: Store) -> tuple[Path, ...]:
    if spec.pictures:
        return tuple(dict.fromkeys(Path(picture).expanduser() for picture in spec.pictures))
    pictures = starred(store, spec.person)
    if not pictures:
        raise SpecError(
            "pictures", f"No picture of “{spec.person}” has a star: give some a star, or name the pictures to export."
        )
    return pictures


def _most_bytes(pictures: Sequence[Path], layouts: Sequence[Layout]) -> int:
    """Room for the files and once more for the archive; whole pictures are guessed from their files."""
    cropped = sum(3 * layout.width * layout.height for layout in layouts) * len(pictures)
    whole = 0
    if any(layout.whole for layout in layouts):
        for path in pictures:
            with suppress(OSError):
                whole += 3 * path.stat().st_size
    return 2 * (cropped + whole)


# --- the work ---------------------------------------------------------------------------------------
def _export_all(work: _Work) -> None:
    total = len(work.pictures) * len(work.layouts)
    work.report(STAGE, 0, total)
    needs_face = any(not layout.whole for layout in work.layouts)
    for number, path in enumerate(work.pictures):
        done = number * len(work.layouts)
        try:
            image = _read(path)
        except PhotoError as error:
            _log.warning("%s was not exported: %s", path, error)
            work.skipped.append(f"“{path.name}” was left out: {error}")
            work.report(STAGE, done + len(work.layouts), total)
            continue
        faces = work.detector.detect(image) if needs_face else []
        for file in _export_one(work, path, image, faces[0] if faces else None):
            work.files.append(file)
            done += 1
            work.report(STAGE, done, total, preview=file.path)


def _read(path: Path) -> Image.Image:
    """Upright RGB. Raises PhotoError with one sentence."""
    try:
        if path.is_dir():
            raise PhotoError("It is a folder: name the pictures in it.")
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes())
    except FileNotFoundError as error:
        raise PhotoError("It is not there any more.") from error
    except OSError as error:
        raise PhotoError(
            f"It cannot be read ({error.strerror or error}): check the file and its permissions."
        ) from error


def _export_one(work: _Work, path: Path, image: Image.Image, face: Face | None) -> Iterator[ExportedFile]:
    spec = work.spec
    mark = source_type(path) if spec.disclose else None
    for layout in work.layouts:
        finished = cut(image, face, layout)
        target = work.folder / _free_name(work.names, safe_stem(path.name), layout.id, SUFFIXES[spec.file_type])
        save_picture(target, finished.image, spec.file_type, spec.quality, layout.dpi, mark)
        yield ExportedFile(path, layout.id, target, *finished.image.size, finished.note)


def _free_name(taken: set[str], stem: str, layout_id: str, suffix: str) -> str:
    """``<stem>-<layout><suffix>``, numbered where two pictures have the same name; also on systems that ignore case."""
    number = 1
    while True:
        name = f"{stem}-{layout_id}{suffix}" if number == 1 else f"{stem}-{number}-{layout_id}{suffix}"
        if name.casefold() not in taken:
            taken.add(name.casefold())
            return name
        number += 1


# --- what is written beside the pictures ------------------------------------------------------------
def _write_archive(work: _Work) -> Path:
    """A zip of all files in their order; the same files give the same bytes."""
    target = work.folder / ARCHIVE
    with atomic_file(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in work.files:
            entry = zipfile.ZipInfo(file.path.name, _ZIP_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.path.read_bytes())
    return target


def _record(work: _Work, state: str, seconds: float) -> dict[str, Any]:
    files = [{**asdict(file), "source": str(file.source), "path": file.path.name} for file in work.files]
    return {
        "program": PROGRAM,
        "state": state,
        "request": work.spec.to_json(),
        "files": files,
        "skipped": list(work.skipped),
        "archive": ARCHIVE,
        "seconds": round(seconds, 3),
    }
