"""Everything made for a person, on disk: where it lies, and how it is written whole or not at all.

    outputs/people/<name>/{photos,dataset,runs,headshots,prompts,restored,exports}
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import SpecError, StoreError
from headshot_ui.specs import check_person
from headshot_ui.wording import readable_bytes as readable_bytes  # also for those who know it from here

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.settings import Settings

PNG_KEY = "headshot_ui"
#: A photograph of 1024 px takes 0.11 to 0.23 s and as many bytes, within 2 %, as with Pillow's usual 6, which takes
#: 0.26 to 0.32 s; with 1 it would take 0.07 to 0.12 s and 15 % more bytes.
PNG_EFFORT, PNG_LEAST_EFFORT = 4, 1
TEMPORARY = ".tmp"
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Store:
    """Names of a person's folders. Naming one makes nothing; the writers below make what they need."""

    settings: Settings
    headshots_elsewhere: Path | None = None  # for pictures nobody should meet among the person's headshots

    @property
    def people_dir(self) -> Path:
        return self.settings.outputs_dir / "people"

    def people(self) -> tuple[str, ...]:
        """Names of everybody with a folder, sorted."""
        if not self.people_dir.is_dir():
            return ()
        folders = (entry for entry in self.people_dir.iterdir() if entry.is_dir())
        return tuple(sorted(folder.name for folder in folders if _is_name(folder.name)))

    def person_dir(self, person: str) -> Path:
        """Raises SpecError for a name that is no folder name (so nothing outside ``people`` can be reached)."""
        check_person(person)
        return self.people_dir / person

    def photos_dir(self, person: str) -> Path:
        return self.person_dir(person) / "photos"

    def dataset_dir(self, person: str) -> Path:
        return self.person_dir(person) / "dataset"

    def runs_dir(self, person: str) -> Path:
        return self.person_dir(person) / "runs"

    def headshots_dir(self, person: str) -> Path:
        return self.headshots_elsewhere or self.person_dir(person) / "headshots"

    def prompts_dir(self, person: str) -> Path:
        return self.person_dir(person) / "prompts"

    def restored_dir(self, person: str) -> Path:
        return self.person_dir(person) / "restored"

    def exports_dir(self, person: str) -> Path:
        return self.person_dir(person) / "exports"

    def delete_person(self, person: str) -> tuple[Path, ...]:
        """Remove everything kept about a person for good; the files removed, sorted.

        Links are removed, what they point to is not. Raises StoreError when something could not be removed.
        """
        folder = self.person_dir(person)
        if folder.is_symlink():
            folder.unlink()
            return (folder,)
        if not folder.is_dir():
            raise StoreError(f"There is nobody called “{person}” in {self.people_dir}.")
        files = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
        links = [Path(where) / name for where, names, _ in os.walk(folder) for name in names if _is_link(where, name)]
        with told_plainly(folder, "removed"):
            shutil.rmtree(folder)
        return tuple(sorted(files + links))


def _is_name(name: str) -> bool:
    try:
        check_person(name)
    except SpecError:
        return False
    return True


def _is_link(where: str, name: str) -> bool:
    return os.path.islink(os.path.join(where, name))


# --- writing ------------------------------------------------------------------------------------
@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what was written there takes its place when the block ends well.

    Readers see the old file or the new one, never a part. After an error the temporary file is gone and the
    old file is as it was. Raises StoreError for a full disk, a missing permission and the like.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"
    try:
        with told_plainly(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, making its folder. Raises StoreError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: Path, data: Any) -> None:
    """Write ``data`` as UTF-8 JSON, whole or not at all. Raises StoreError."""
    write_bytes_atomic(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read what ``write_json_atomic`` wrote. Raises StoreError when it is missing or damaged."""
    try:
        with told_plainly(path, "read"):
            return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged: remove it and make it again.") from error


def save_png(path: Path, image: Image.Image, metadata: dict[str, Any], effort: int = PNG_EFFORT) -> None:
    """Write a PNG whole or not at all with ``metadata`` as JSON in the text entry "headshot_ui" and nothing else.

    ``effort`` from 1 to 9 is how hard it is made small. Place, camera and colour profile that came with the picture
    are left out. Raises StoreError.
    """
    from PIL.PngImagePlugin import PngInfo

    bare = image.copy()
    bare.info = {}
    text = PngInfo()
    text.add_itxt(PNG_KEY, json.dumps(metadata, ensure_ascii=False))
    with atomic_file(path) as temporary:
        bare.save(temporary, format="PNG", pnginfo=text, compress_level=effort)


def read_png_metadata(path: Path) -> dict[str, Any]:
    """What ``save_png`` put in; {} for a PNG of another program. Raises StoreError when it cannot be read."""
    from PIL import Image

    try:
        with told_plainly(path, "read"), Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(PNG_KEY)
        data = json.loads(text) if text else {}
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StoreError(f"{path} cannot be read as a picture of this program: choose another.") from error
    return data if isinstance(data, dict) else {}


def new_folder(parent: Path, stem: str) -> Path:
    """Make and return the first free one of ``parent/stem``, ``parent/stem-2``, … Raises StoreError."""
    with told_plainly(parent / stem, "made"):
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise StoreError(f"{parent} holds too many folders named “{stem}”: remove some.")


def check_free_space(path: Path, needed_bytes: int) -> None:
    """Raise StoreError when fewer than ``needed_bytes`` are free on the disk where ``path`` is or will be."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise StoreError(
            f"This needs {readable_bytes(needed_bytes)} on the disk of {path}, but only {readable_bytes(free)} "
            "is free: make room, or set HEADSHOT_UI_OUTPUTS to a folder on another disk."
        )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of ``path``, which need not exist yet."""
    existing = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    if existing is None:
        raise StoreError(f"The disk of {path} is not there: connect it or choose another folder.")
    return shutil.disk_usage(existing).free


def remove_leftovers(folder: Path, older_than_s: float = 24 * 3600) -> None:
    """Remove temporary files of this module that a crash left under ``folder``; younger ones may be in use."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        with suppress(OSError):
            if len(path.name) == 33 + len(TEMPORARY) and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def sha256_of(path: Path, tick: Callable[[int], None] = lambda count: None) -> str:
    """Hexadecimal SHA-256 of a file; ``tick`` hears of every block how many bytes it had. Raises StoreError."""
    digest = hashlib.sha256()
    with told_plainly(path, "read"), path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()


@contextmanager
def told_plainly(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError into a StoreError with one sentence, e.g. "… could not be written: the disk is full …"."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} could not be {what}: {_reason(error, path)}.") from error


def _reason(error: OSError, path: Path) -> str:
    if error.errno in _DISK_FULL or getattr(error, "winerror", None) == 112:
        return f"the disk is full ({readable_bytes(free_bytes(path))} free); make room and try again"
    if error.errno in _FORBIDDEN:
        return "this is not permitted; check who owns the folder, or whether another program has the file open"
    if error.errno == errno.ENOENT:
        return "it is not there"
    return f"{error.strerror or error}; check the disk and try again"


def _replace(source: Path, target: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """os.replace, patient with Windows, where a reader or a virus scanner blocks it for a moment."""
    for wait_s in (0.05, 0.2, 0.5):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not _is_windows():
                raise
            sleep(wait_s)
    os.replace(source, target)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut (Windows has no way to ask for it, and needs none)."""
    if _is_windows():
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_windows() -> bool:
    return os.name == "nt"
