"""What is written down about pictures: inside each PNG, and beside them in ``headshots.json``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headshot_ui import __version__, families
from headshot_ui.errors import ModelError, StoreError
from headshot_ui.generation.loras import ChosenLora, choose_lora
from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.generation.refiner_choice import OFF, RefinerMark, weights_sha256
from headshot_ui.generation.vae_mark import VaeMark, check_vae
from headshot_ui.likeness import Likeness
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, read_json, read_png_metadata, write_json_atomic

RANKING = "headshots.json"
AI_MARK = "AI-generated: drawn by a diffusion model, not taken by a camera."
_PROMPT_FIELDS = {"presets", "prompt", "negative_prompt", "count", "seed", "width", "height", "keep_best"}


@dataclass(frozen=True)
class Picture:
    """One finished picture."""

    path: Path
    preset: str  # id; "" for a free prompt
    title: str  # of the preset, for people
    prompt: str
    seed: int
    likeness: Likeness | None = None  # None: nobody judged
    rank: int | None = None  # 1 is the most alike; None: nobody judged
    kept: bool = True  # False: not among the best that were asked for; the file stays
    refined: bool = False
    why_not_refined: str = ""  # a sentence, where refining was asked for and the unrefined picture was kept


def picture_metadata(
    spec: GenerateSpec,
    picture: PlannedPicture,
    lora: ChosenLora | None,
    refiner: RefinerMark | None = None,
    why_not_refined: str = "",
    unfinished: bool = False,
    vae: VaeMark | None = None,
    precision: str = "",
    compiled: bool = False,
) -> dict[str, Any]:
    """What goes into the PNG. ``spec`` is the resolved request, so nothing depends on later defaults.

    ``why_not_refined`` is a sentence when the request asked for ``refiner`` but this picture is without it;
    ``unfinished`` is True when the base had left the end of it to the refiner; ``vae`` is one that is not its own;
    ``precision`` is "8 bit", say, where the base was rounded to fit the card;
    ``compiled`` that it was drawn with compiled blocks, which round otherwise.
    """
    asked = None if refiner is None else {**asdict(refiner), "why_not_refined": why_not_refined}
    if asked is not None and unfinished:
        asked["unfinished"] = True
    return {
        "ai_generated": AI_MARK,
        "program": f"headshot_ui {__version__}",
        "request": spec.to_json(),
        "picture": asdict(picture),
        "lora": None if lora is None else {"name": lora.name, "sha256": lora.sha256, "scale": spec.lora_scale},
        "refiner": asked,
        "vae": None if vae is None else asdict(vae),
        **({"precision": precision} if precision else {}),
        **({"compiled": True} if compiled else {}),
    }


def regenerate(path: Path, store: Store | None = None) -> GenerateSpec:
    """The request that draws the picture ``path`` again, alone and whatever became of its preset since.

    Bit for bit on the CPU of the same machine; on GPUs rounding depends on the pictures drawn beside it.
    A picture that a stop left unfinished is drawn to its end. With ``store`` the LoRA, the refiner and the VAE are
    looked up too. Raises StoreError when the PNG holds no request, ModelError when one of those is no longer the one
    that drew it.
    """
    data = read_png_metadata(path)
    try:
        request = {name: value for name, value in data["request"].items() if name not in _PROMPT_FIELDS}
        picture, lora, refiner = PlannedPicture(**data["picture"]), data["lora"], data.get("refiner")
        finished = refiner is None or not refiner.get("unfinished")
        if refiner is None or (refiner["why_not_refined"] and finished):  # whatever became of its neighbours
            request |= {"refine": OFF, "refiner": None}
            refiner = None
        spec = GenerateSpec.from_json(
            {
                **request,
                "prompt": picture.prompt,
                "negative_prompt": picture.negative_prompt,
                "count": 1,
                "seed": picture.seed,
                "width": picture.width,
                "height": picture.height,
            }
        )
        sha256 = lora["sha256"] if lora is not None else None
        refiner_sha256 = refiner["sha256"] if refiner is not None else None
        vae = VaeMark(**data["vae"]) if data.get("vae") is not None else None
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} does not say how it was made; choose a picture made by this program.") from error
    if store is not None and sha256 is not None:
        chosen = choose_lora(spec, store)
        if chosen is None or chosen.sha256 != sha256:
            raise ModelError(f"The LoRA “{spec.lora}” is not the one that drew {path.name}; draw a new picture.")
    if store is not None and refiner_sha256 is not None:
        _check_refiner(spec, refiner_sha256, path, store)
    if store is not None and "vae" in data:  # pictures from before that do not say
        check_vae(vae, spec, path, store)
    return spec


def _check_refiner(spec: GenerateSpec, sha256: str, path: Path, store: Store) -> None:
    base = families.find_base(spec.base, store.settings)
    info = families.find_refiner(spec.refiner, base, store.settings)
    if weights_sha256(families.refiner_facts(info, base)) != sha256:
        raise ModelError(f"The refiner “{spec.refiner}” is not the one that drew {path.name}; draw a new picture.")


def ordered(pictures: Sequence[Picture], order: Sequence[int], keep_best: int | None) -> tuple[Picture, ...]:
    """Pictures in ``order``, best first, with their rank; only usable ones of the first ``keep_best`` are kept.

    When none was judged, they stay as they are.
    """
    if all(picture.likeness is None for picture in pictures):
        return tuple(pictures)
    result = []
    for rank, index in enumerate(order, start=1):
        picture = pictures[index]
        usable = picture.likeness is not None and not picture.likeness.reason
        kept = keep_best is None or (usable and rank <= keep_best)
        result.append(replace(picture, rank=rank, kept=kept))
    return tuple(result)


def write_ranking(
    folder: Path,
    spec: GenerateSpec,
    pictures: Sequence[Picture],
    lora: ChosenLora | None,
    seconds: float,
    state: str,
    refiner: RefinerMark | None = None,
    vae: VaeMark | None = None,
) -> None:
    """Write ``folder/headshots.json``; ``state`` is "done", "cancelled" or "failed". Raises StoreError."""
    entries = [{**asdict(picture), "path": picture.path.name} for picture in pictures]
    write_json_atomic(
        folder / RANKING,
        {
            "ai_generated": AI_MARK,
            "program": f"headshot_ui {__version__}",
            "state": state,
            "request": spec.to_json(),
            "lora": None if lora is None else {"name": lora.name, "sha256": lora.sha256},
            "refiner": None if refiner is None else asdict(refiner),
            "vae": None if vae is None else asdict(vae),
            "seconds": round(seconds, 3),
            "pictures": entries,
        },
    )


def read_ranking(folder: Path) -> tuple[Picture, ...]:
    """The pictures of a finished request, best first; those whose file is gone are left out. Raises StoreError."""
    return still_there(folder, pictures_of(folder, read_json(folder / RANKING)))


def pictures_of(folder: Path, data: Any) -> tuple[Picture, ...]:
    """All pictures that a ranking, as read, names, whatever became of their files. Raises StoreError."""
    try:
        return tuple(
            Picture(
                **{
                    **entry,
                    "path": folder / os.path.basename(entry["path"]),
                    "likeness": None if entry["likeness"] is None else Likeness(**entry["likeness"]),
                }
            )
            for entry in data["pictures"]
        )
    except (KeyError, TypeError) as error:
        raise StoreError(f"{folder / RANKING} is damaged; the pictures beside it are not.") from error


def still_there(folder: Path, pictures: tuple[Picture, ...]) -> tuple[Picture, ...]:
    """Those whose file lies in ``folder``: one look at the folder instead of one at each of thousands of files."""
    try:
        names = set(os.listdir(folder))
    except OSError:
        return ()
    there = tuple(picture for picture in pictures if picture.path.name in names)
    return pictures if len(there) == len(pictures) else there
