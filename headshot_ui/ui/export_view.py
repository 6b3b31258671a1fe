"""What the export box shows: how pictures will be cut, what runs, and the newest archive. No gradio."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import families
from headshot_ui.errors import HeadshotError, ModelError, StoreError
from headshot_ui.specs import ExportSpec
from headshot_ui.store import Store, told_plainly
from headshot_ui.ui.gallery import address, copied, derived
from headshot_ui.ui.picture_sets import counted

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Face, FaceDetector
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import Live

PREVIEW_PX = 240
FILE_TYPES = [("JPEG (for most uses)", "jpeg"), ("PNG (no loss)", "png"), ("WebP (small)", "webp")]
_detecting = threading.Lock()  # one at a time: two browsers must not load two detectors


@dataclass(frozen=True)
class Exported:
    """The newest export of a person."""

    lines: tuple[str, ...]
    archive: str = ""  # copy in the private folder; "" where there is none


# --- how a picture will be cut --------------------------------------------------------------------------------
def layout_choices() -> list[tuple[str, str]]:
    from headshot_ui.export import LAYOUTS

    return [(layout.title, layout.id) for layout in LAYOUTS]


def cut_values(settings: Settings, shown_dir: Path, picture: Path | None, layouts: Sequence[str]) -> dict[str, Any]:
    """Values of the small previews: one per chosen layout. Nothing for a picture that cannot be read."""
    if picture is None:
        return {"cuts": []}
    try:
        return {"cuts": _cuts(settings, shown_dir, picture, tuple(layouts))}
    except (HeadshotError, OSError):
        return {"cuts": []}


def _cuts(settings: Settings, shown_dir: Path, picture: Path, layouts: tuple[str, ...]) -> list[dict[str, str]]:
    """Raises PhotoError, StoreError or OSError."""
    from headshot_ui.export import LAYOUTS, preview
    from headshot_ui.export.framing import choose

    wanted = [layout for layout in LAYOUTS if layout.id in layouts]
    if not wanted:
        return []
    image = read_picture(picture)
    faces = faces_in(settings, picture, picture.stat().st_mtime_ns) if any(not each.whole for each in wanted) else ()
    face = faces[0] if faces else None
    cuts = []
    for layout in wanted:
        copy = derived(picture, shown_dir, f"cut-{layout.id}", partial(preview, image, face, layout, PREVIEW_PX))
        size = f"{image.width} × {image.height}" if layout.whole else f"{layout.width} × {layout.height}"
        note = choose(image.width, image.height, face, layout).note
        cuts.append({"picture": address(copy), "alt": f"Cut for {layout.title}", "title": layout.title,
                     "size": f"{size} pixels", "note": note})  # fmt: skip
    return cuts


def read_picture(picture: Path) -> Any:
    """Upright RGB. Raises StoreError or PhotoError."""
    from headshot_ui.dataset.decode import decode

    with told_plainly(picture, "read"):
        return decode(picture.read_bytes())


@lru_cache(maxsize=64)
def faces_in(settings: Settings, picture: Path, changed_ns: int) -> tuple[Face, ...] | None:
    """Faces, largest first; None without a detector. ``changed_ns`` belongs to the key. Raises PhotoError."""
    try:
        with _detecting:
            return tuple(_detector(settings).detect(read_picture(picture)))
    except ModelError:
        return None


@lru_cache(maxsize=1)
def _detector(settings: Settings) -> FaceDetector:
    """On the CPU, for the graphics card belongs to the worker. Raises ModelError."""
    from headshot_ui.dataset.detector import load_detector

    bases = families.all_bases(settings)
    return load_detector(replace(settings, wanted_device="cpu"), bases[0] if bases else None)


# --- the request -----------------------------------------------------------------------------------------------
def export_request(
    person: str, pictures: Sequence[Path], layouts: Sequence[str], file_type: str, disclose: bool
) -> ExportSpec:
    """() for pictures means the starred ones. Raises SpecError whose ``field`` names the choice at fault."""
    paths = tuple(str(path) for path in pictures)
    return ExportSpec(person, paths, tuple(layouts or ()), file_type or "", disclose=bool(disclose))


# --- what became of it -------------------------------------------------------------------------------------------
def export_mark(live: Live, person: str) -> Any:
    """Small and comparable; changes with the newest export of a person."""
    job = live.newest(person, "export") if person else None
    return None if job is None else (job.id, job.snapshot.version)


def newest_export(live: Live, store: Store, person: str, shown_dir: Path) -> Exported:
    """The newest export: running, failed or done; after a restart the newest archive on disk."""
    job = live.newest(person, "export") if person else None
    if job is None:
        archive = _newest_archive(store, person) if person else None
        if archive is None:
            return Exported(())
        return Exported((f"Last export: {archive.parent.name.replace('_', ', ')}.",), _copy(archive, person, shown_dir))
    now = job.snapshot
    if now.state == "done":
        made = now.result
        lines = [f"{counted(len(made.files), 'file')} in {made.folder}", *getattr(made, "skipped", ())]
        return Exported(tuple(lines), _copy(Path(made.archive), person, shown_dir))
    if now.state == "failed":
        return Exported((now.error or "",))
    if now.state == "cancelled":
        return Exported(("Export cancelled.",))
    done = f"{now.step} of {now.total}" if now.total else "waiting"
    return Exported((f"Exporting, {done} …",))


def _newest_archive(store: Store, person: str) -> Path | None:
    found = sorted(store.exports_dir(person).glob("*/*.zip"), key=lambda path: path.parent.name)
    return found[-1] if found else None


def _copy(archive: Path, person: str, shown_dir: Path) -> str:
    try:
        return str(copied(archive, shown_dir, f"{person}-{archive.name}"))
    except StoreError:
        return ""
