"""What is written down about restored pictures: inside each PNG, and beside them in ``restored.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headshot_ui import __version__
from headshot_ui.dataset.intake import Refusal
from headshot_ui.errors import StoreError
from headshot_ui.likeness import Likeness
from headshot_ui.restoration.pictures import Opened
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import read_json, write_json_atomic

RECORD = "restored.json"
BEFORE = "before"  # folder with the pictures as they were, for comparing
AI_MARK = "AI-edited: {} by a neural network."
NOT_CHOSEN = "It was not chosen."


@dataclass(frozen=True)
class RestoredFace:
    """One face that was found in a picture."""

    number: int  # 1 is the largest
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright picture before enlarging
    skipped: str = ""  # why it was left alone; "" when it was repaired


@dataclass(frozen=True)
class RestoredPicture:
    """One finished picture."""

    source: Path  # as it was given; inside an archive: the archive's path and the name within
    path: Path
    faces: tuple[RestoredFace, ...]  # largest first
    skipped: str = ""  # why no face was repaired; the picture is there all the same
    likeness_before: Likeness | None = None  # None: nobody judged, or no face was repaired
    likeness_after: Likeness | None = None
    warning: str = ""  # that it is less like the person than before, and what to do
    notes: tuple[str, ...] = ()  # other things to know, a sentence each
    before: Path | None = None  # upright JPEG of the picture as it was, of moderate size
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    enlarged_by: str = ""  # "Real-ESRGAN", "Lanczos" or ""

    @property
    def repaired(self) -> int:
        """How many faces were repaired."""
        return sum(not face.skipped for face in self.faces)


@dataclass(frozen=True)
class RestoreResult:
    """Everything one request made."""

    folder: Path
    pictures: tuple[RestoredPicture, ...]  # in the order of the request
    seconds: float
    refused: tuple[Refusal, ...] = ()  # files that could not be opened, and why
    restorer: str = ""  # id; "" when no face had to be repaired
    state: str = "done"  # "done", "cancelled" or "failed"


def picture_metadata(
    spec: RestoreSpec, name: str, opened: Opened, faces: Sequence[RestoredFace], restorer: str, enlarged_by: str
) -> dict[str, Any]:
    """What goes into the PNG. Of the request only this picture's name, for a path may tell what nobody should know."""
    return {
        "ai_generated": _mark(opened, any(not face.skipped for face in faces), enlarged_by),
        "program": f"headshot_ui {__version__}",
        "request": {**spec.to_json(), "pictures": [name], "restorer": restorer or spec.restorer},
        "restored": {
            "source_sha256": opened.digest,
            "faces": [asdict(face) for face in faces],
            "enlarged_by": enlarged_by,
        },
        "source": dict(opened.own),
    }


def _mark(opened: Opened, repaired: bool, enlarged_by: str) -> str:
    """What was made by a network, here or before; "" for nothing."""
    done = [words for words, true in (
        ("faces redrawn", repaired), ("enlarged", enlarged_by not in ("", "Lanczos")),
    ) if true]  # fmt: skip
    before = str(opened.own.get("ai_generated") or "")
    return " ".join(part for part in (before, AI_MARK.format(" and ".join(done)) if done else "") if part)


@dataclass
class Record:
    """``restored.json`` of a request while it runs, so that whatever happens the finished pictures are in it."""

    folder: Path
    spec: RestoreSpec
    restorer: str = ""
    pictures: list[RestoredPicture] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def write(self, state: str, seconds: float) -> None:
        """``state`` is "running", "done", "cancelled" or "failed". Raises StoreError."""
        write_json_atomic(
            self.folder / RECORD,
            {
                "program": f"headshot_ui {__version__}",
                "state": state,
                "request": self.spec.to_json(),
                "restorer": self.restorer,
                "seconds": round(seconds, 3),
                "pictures": [_plain(picture) for picture in self.pictures],
                "refused": [asdict(refusal) for refusal in self.refused],
            },
        )


def _plain(picture: RestoredPicture) -> dict[str, Any]:
    names = {
        "source": str(picture.source),
        "path": picture.path.name,
        "before": picture.before and f"{BEFORE}/{picture.before.name}",
    }
    return {**asdict(picture), **names}


def read_record(folder: Path) -> RestoreResult:
    """What a request made; pictures whose file is gone are left out. Raises StoreError."""
    data = read_json(folder / RECORD)
    try:
        pictures = tuple(_picture(entry, folder) for entry in data["pictures"])
        refused = tuple(Refusal(**entry) for entry in data["refused"])
        result = RestoreResult(folder, pictures, data["seconds"], refused, data["restorer"], data["state"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder / RECORD} is damaged; the pictures beside it are not.") from error
    kept = tuple(picture for picture in result.pictures if picture.path.is_file())
    return RestoreResult(folder, kept, result.seconds, refused, result.restorer, result.state)


def _picture(entry: dict[str, Any], folder: Path) -> RestoredPicture:
    def likeness(name: str) -> Likeness | None:
        return None if entry[name] is None else Likeness(**entry[name])

    before = entry["before"] and folder / BEFORE / Path(entry["before"]).name
    return RestoredPicture(
        **{
            **entry,
            "source": Path(entry["source"]),
            "path": folder / Path(entry["path"]).name,
            "before": before if before and before.is_file() else None,
            "faces": tuple(RestoredFace(f["number"], tuple(f["box"]), f["skipped"]) for f in entry["faces"]),
            "likeness_before": likeness("likeness_before"),
            "likeness_after": likeness("likeness_after"),
            "notes": tuple(entry["notes"]),
            "size": tuple(entry["size"]),
        }
    )
