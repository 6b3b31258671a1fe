"""``prove`` on random weights of full size, on a machine without OpenCV and facexlib: nothing looks for faces.

    python benchmarks/prove.py --size full --outputs FOLDER                    # 12 GB are written there, and removed
    python benchmarks/prove.py --size full --outputs FOLDER --accept-licence codeformer
    python benchmarks/prove.py --size tiny --outputs FOLDER --device cpu

Everything but finding faces is the program's own: the drawn demo people are cropped to squares as they are, and the
middle of a picture stands for its face. Options this does not know go to ``prove`` itself. Prints what ``prove
--json`` prints, as the last line; the report lies in the outputs folder. The exit code is 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image, ImageOps  # noqa: E402

from headshot_ui.cli import main as run_command  # noqa: E402
from headshot_ui.dataset.saved import save_dataset  # noqa: E402
from headshot_ui.dataset.types import Dataset, PreparedPhoto  # noqa: E402
from headshot_ui.engine import Engine, real_parts  # noqa: E402
from headshot_ui.errors import ModelError  # noqa: E402
from headshot_ui.parts import Parts  # noqa: E402
from headshot_ui.restoration.records import RestoredFace, RestoredPicture, RestoreResult  # noqa: E402
from headshot_ui.settings import Settings  # noqa: E402
from headshot_ui.specs import PrepareSpec, RestoreSpec  # noqa: E402
from headshot_ui.store import Store, new_folder, save_png  # noqa: E402

MIDDLE = "The middle of the picture stands for its face."


def parts_without_faces() -> Parts:
    """The program's parts, without whatever finds faces."""
    return replace(
        real_parts(),
        load_detector=lambda *_: None,
        load_any_detector=lambda *_: None,
        load_recogniser=lambda *_: None,
        load_judge=no_judge,
        prepare=prepare_squares,
        restore=restore_middles,
    )


def no_judge(*_: Any) -> Any:
    raise ModelError("Nothing looks for faces here.")


def prepare_squares(spec: PrepareSpec, store: Store, info: Any, *_: Any) -> Dataset:
    """Every photo as a square of the base's size."""
    folder, side = store.dataset_dir(spec.person), info.size_px
    photos = []
    for number, path in enumerate(path for given in spec.photos for path in sorted(Path(given).glob("*.jpg"))):
        with Image.open(path) as image:
            save_png(folder / f"{number}.png", ImageOps.fit(image.convert("RGB"), (side, side)), {})
        caption = f"portrait of {info.defaults.trigger} person"
        photos.append(PreparedPhoto(path.name, "train", "", (), f"{number}.png", caption, None, (side, side)))
    dataset = Dataset(spec.person, folder, side, info.defaults.trigger, "person", tuple(photos))
    save_dataset(dataset)
    return dataset


def restore_middles(spec: RestoreSpec, store: Store, tools: Any, report: Any, judge: Any = None) -> RestoreResult:
    """What ``restoration.restore`` does with one face per picture, which lies in the middle of it."""
    import numpy as np

    from headshot_ui.restoration.runner import repair_face

    began, folder, pictures = time.monotonic(), new_folder(store.restored_dir(spec.person), "middles"), []
    with tools.open_restorer() as restorer:
        restorer.keep(frozenset({"network"}))
        for path in map(Path, spec.pictures):
            with Image.open(path) as image:
                picture = image.convert("RGB")
            side = min(picture.size) // 2
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = (left, top, left + side, top + side)
            face = picture.crop(box).resize((restorer.info.size_px,) * 2)
            after = repair_face(restorer, np.asarray(face), spec.fidelity_weight)
            picture.paste(Image.fromarray(after).resize((side, side)), (left, top))
            save_png(folder / f"{path.stem}.png", picture, {})
            faces = (RestoredFace(1, tuple(map(float, box))),)  # type: ignore[arg-type]
            pictures.append(RestoredPicture(path, folder / f"{path.stem}.png", faces, notes=(MIDDLE,)))
        restorer.keep(frozenset())
    return RestoreResult(folder, tuple(pictures), time.monotonic() - began)


def make_engine(settings: Settings) -> Engine:
    return Engine(settings, parts_without_faces)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    args, others = parser.parse_known_args(argv)
    return run_command(["prove", "--random-weights", args.size, "--json", *others], make_engine)


if __name__ == "__main__":
    sys.exit(main())
