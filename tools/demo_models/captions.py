"""Words for a drawing: what the base models learn to read.

The order and the phrases are those of the program's presets. Any part may be missing, and the trigger word stands in
as a filler that means nothing, so that it is free to become a person's name later.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tools.demo_models.world import (
    BACKDROPS,
    BEARDS,
    COLOURS,
    EXPRESSIONS,
    FRAMINGS,
    GARMENTS,
    GLASSES,
    HAIR_COLOURS,
    HAIR_LENGTHS,
    IDENTITY_DIMS,
    LIGHTS,
    POSES,
    kind,
)

TRIGGER = "tok"


def _kind(row: Tensor, name: str) -> int:
    return int(kind(row.reshape(1, -1), name))


def attributes(person: Tensor, scene: Tensor) -> dict[str, str]:
    """Every attribute of one drawing in words; person (IDENTITY_DIMS,), scene (SCENE_DIMS,)."""
    return {
        "attire": f"a {COLOURS[_kind(scene, 'attire_colour')]} {GARMENTS[_kind(scene, 'garment')]}",
        "backdrop": BACKDROPS[_kind(scene, "backdrop")],
        "light": LIGHTS[_kind(scene, "light")],
        "framing": FRAMINGS[_kind(scene, "framing")],
        "expression": EXPRESSIONS[_kind(scene, "expression")],
        "pose": POSES[_kind(scene, "yaw")],
        "hair_length": HAIR_LENGTHS[_kind(person, "hair_length")],
        "hair_colour": HAIR_COLOURS[_kind(person, "hair_colour")],
        "beard": BEARDS[_kind(person, "beard")],
        "glasses": GLASSES[_kind(person, "glasses")],
    }


def _looks(words: dict[str, str], rng: random.Random) -> list[str]:
    """Phrases for hair, beard and glasses; each is said only sometimes."""
    said = []
    if rng.random() < 0.75:
        bald = words["hair_length"] == "bald"
        said.append("bald" if bald else f"with {words['hair_length']} {words['hair_colour']} hair")
    if words["beard"] == "beard" and rng.random() < 0.75:
        said.append("with a beard")
    if words["glasses"] != "none" and rng.random() < 0.75:
        said.append("with glasses")
    return said


def caption(person: Tensor, scene: Tensor, rng: random.Random) -> str:
    """One caption; the same drawing gets another with another state of ``rng``."""
    words = attributes(person, scene)
    draw = rng.random()
    subject = f"{TRIGGER} person" if draw < 0.55 else ("a person" if draw < 0.8 else "person")
    parts = [f"portrait of {subject}"]
    if rng.random() < 0.35:
        parts += _looks(words, rng)
    if rng.random() < 0.94:
        parts.append(f"wearing {words['attire']}")
    if rng.random() < 0.94:
        parts.append(f"in front of {words['backdrop']}")
    for name, share in (("light", 0.85), ("framing", 0.85), ("expression", 0.85), ("pose", 0.30)):
        if rng.random() < share:
            parts.append(words[name])
    if rng.random() < 0.12:
        head, *rest = parts
        rng.shuffle(rest)
        parts = [head, *rest]
    return ", ".join(parts)


def words() -> list[str]:
    """Every word a caption can hold, sorted, without punctuation."""
    phrases = [*COLOURS, *GARMENTS, *BACKDROPS, *LIGHTS, *FRAMINGS, *EXPRESSIONS, *POSES, *HAIR_COLOURS, *HAIR_LENGTHS]
    phrases += [TRIGGER, "portrait of a person wearing in front of with hair beard glasses"]
    found = set()
    for phrase in phrases:
        found.update(phrase.replace("-", " - ").split())
    return sorted(found)


def _self_check() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    known = set(words()) | {","}
    for _ in range(500):
        text = caption(torch.rand(IDENTITY_DIMS), torch.rand(25), rng)
        missing = {w for w in text.replace(",", " ,").replace("-", " - ").split() if w not in known}
        assert not missing, missing


if __name__ == "__main__":
    _self_check()
