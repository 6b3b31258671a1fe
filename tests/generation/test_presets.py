"""Shipped presets use only words the demo knows and none about the person; damaged files are named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.errors import StoreError
from headshot_ui.generation.presets import SLOTS, load_presets, thumbnail_path
from headshot_ui.generation.prompts import render, render_negative
from headshot_ui.settings import Settings

COLOURS = "navy charcoal black grey white blue burgundy red green beige brown teal purple mustard"
GARMENTS = "suit blazer shirt sweater turtleneck hoodie"
DEMO_WORDS = {
    "attire": {f"a {colour} {garment}" for colour in COLOURS.split() for garment in GARMENTS.split()},
    "backdrop": {f"a {kind} studio backdrop" for kind in ("grey", "white", "dark", "blue", "green", "warm")}
    | {"a bright office", "a city window", "a bookshelf", "a green park", "a brick wall"},
    "light": {"soft light", "light from the left", "light from the right", "warm light"},
    "framing": {"close-up", "head and shoulders", "upper body"},
    "expression": {"a neutral expression", "a gentle smile", "a broad smile"},
}
#: About the person and not the picture: age, origin, sex, beauty, build, and what makes a face that of somebody.
PERSONAL = """
    age aged ageing young younger youthful old older elderly mature middle-aged teen teenage child adult senior
    race racial ethnic ethnicity african american asian chinese indian japanese korean european caucasian hispanic
    latino latina arab white-skinned black-skinned fair-skinned dark-skinned pale tanned complexion
    man woman male female boy girl gentleman lady businessman businesswoman masculine feminine his her him she he
    beautiful beauty handsome pretty attractive gorgeous cute sexy perfect flawless stunning elegant glamorous
    slim thin fat muscular skinny slender chubby ugly fit
    wrinkle wrinkles wrinkled freckles mole moles acne blemish blemishes scar scars bald beard bearded glasses
    hair nose eyebrows lips teeth jawline makeup retouched smooth airbrushed model celebrity
"""


def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(root=tmp_path, device="cpu", environment={})


def user_preset(tmp_path: Path, text: str) -> Settings:
    folder = tmp_path / "outputs" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text(text, encoding="utf-8")
    return settings(tmp_path)


def as_data(**changes: object) -> dict[str, object]:
    slots = {
        "attire": "a red coat",
        "backdrop": "a bridge",
        "light": "evening light",
        "framing": "close-up",
        "expression": "a smile",
    }
    return {"id": "mine", "title": "Mine", "category": "Own", "slots": slots, **changes}


def test_shipped_presets_are_several_and_named():
    presets = load_presets()
    assert 8 <= len(presets) <= 20
    assert all(preset.id == key and preset.title and preset.category for key, preset in presets.items())
    assert len({preset.title for preset in presets.values()}) == len(presets)


def test_shipped_slots_use_only_words_of_the_demo_world():
    for preset in load_presets().values():
        for slot in SLOTS:
            assert getattr(preset, slot) in DEMO_WORDS[slot], f"{preset.id}: {slot}"


def test_shipped_presets_say_nothing_about_the_person():
    for preset in load_presets().values():
        texts = [getattr(preset, slot) for slot in SLOTS]
        texts += [f"{words.detail} {words.negative}" for words in preset.families.values()]
        said = set(re.findall(r"[a-z-]+", " ".join([preset.title, *texts]).lower()))
        assert not said & set(PERSONAL.split()), preset.id


def test_shipped_presets_differ_in_what_is_seen():
    looks = [tuple(getattr(preset, slot) for slot in SLOTS) for preset in load_presets().values()]
    assert len(set(looks)) == len(looks)
    assert len({look[0] for look in looks}) >= 8, "attire varies, so that a memorised garment shows"


def test_closed_vocabulary_gets_exactly_the_template():
    preset = load_presets()["navy-suit"]
    assert render(preset, "tok", "person", closed_vocabulary=True, family="sdxl") == (
        "portrait of tok person, wearing a navy suit, in front of a grey studio backdrop, soft light, "
        "head and shoulders, a gentle smile"
    )
    assert render_negative(preset, closed_vocabulary=True, family="sdxl") == ""


def test_open_vocabulary_gets_the_detail_of_its_family_and_no_other():
    preset = load_presets()["navy-suit"]
    plain = render(preset, "tok", "person", closed_vocabulary=True)
    detailed = render(preset, "tok", "person", closed_vocabulary=False, family="sdxl")
    assert detailed == f"{plain}, {preset.families['sdxl'].detail}" != f"{plain}, "
    assert render(preset, "tok", "person", closed_vocabulary=False, family="another") == plain
    assert render_negative(preset, closed_vocabulary=False, family="sdxl") == preset.families["sdxl"].negative != ""


def test_own_presets_are_added_and_replace_shipped_ones(tmp_path: Path):
    added = load_presets(user_preset(tmp_path, json.dumps(as_data(aspect="4:5"))))
    assert added["mine"].attire == "a red coat"
    assert added["mine"].width_over_height == pytest.approx(0.8)
    assert list(added)[:-1] == list(load_presets())
    replaced = load_presets(user_preset(tmp_path / "b", json.dumps(as_data(id="navy-suit"))))
    assert replaced["navy-suit"].title == "Mine"
    assert len(replaced) == len(load_presets())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not valid JSON"),
        ("[]", "braces"),
        (json.dumps(as_data(slots={"attire": "a suit"})), "backdrop"),
        (json.dumps(as_data(title=3)), "title"),
        (json.dumps(as_data(colour="red")), "colour"),
        (json.dumps(as_data(id="../up")), "../up"),
        (json.dumps(as_data(aspect="wide")), "aspect"),
        (json.dumps(as_data(slots={**as_data()["slots"], "attire": "{gender} suit"})), "attire"),
        (json.dumps(as_data(families={"sdxl": {"steps": 3}})), "steps"),
        (json.dumps(as_data(families=["sdxl"])), "families"),
    ],
)
def test_a_damaged_preset_is_named_with_what_is_wrong(tmp_path: Path, text: str, what: str):
    with pytest.raises(StoreError) as caught:
        load_presets(user_preset(tmp_path, text))
    assert "mine.json" in str(caught.value)
    assert what in str(caught.value)


def test_a_preset_that_is_no_text_is_named(tmp_path: Path):
    where = user_preset(tmp_path, "")
    (tmp_path / "outputs" / "presets" / "mine.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="mine.json"):
        load_presets(where)


def test_presets_cannot_be_changed():
    preset = load_presets()["navy-suit"]
    with pytest.raises(AttributeError):
        preset.attire = "a hoodie"  # type: ignore[misc]
    assert replace(preset, attire="a hoodie").attire == "a hoodie"


def test_every_shipped_look_has_a_small_picture_of_its_own() -> None:
    presets = load_presets()
    paths = [thumbnail_path(preset) for preset in presets.values()]
    assert None not in paths and len(set(paths)) == len(presets)
    shown = []
    for path in paths:
        assert path.stat().st_size <= 12 * 1024
        with Image.open(path) as picture:
            assert picture.size == (256, 256) and picture.mode == "RGB"
            assert not picture.getexif()
            shown.append(np.asarray(picture.resize((16, 16)), dtype=float))
    for index, picture in enumerate(shown):  # none is empty, and no two look the same
        assert picture.std() > 15
        assert all(np.abs(picture - other).mean() > 12 for other in shown[:index])


def test_a_look_of_ones_own_may_have_a_picture_or_none(tmp_path: Path) -> None:
    shipped = load_presets()["navy-suit"]
    given, folder = settings(tmp_path), settings(tmp_path).outputs_dir / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.png").write_bytes(b"picture")
    assert thumbnail_path(replace(shipped, thumbnail="mine.png"), given) == folder / "mine.png"
    assert thumbnail_path(replace(shipped, thumbnail="mine.png")) is None
    assert thumbnail_path(replace(shipped, thumbnail=""), given) is None
    assert thumbnail_path(shipped, given) == thumbnail_path(shipped)
    (folder / "navy-suit.jpg").write_bytes(b"picture")
    assert thumbnail_path(shipped, given) == folder / "navy-suit.jpg"


@pytest.mark.parametrize("name", ["../presets/mine.png", "/etc/passwd", "..\\mine.png", "mine.json", "."])
def test_a_picture_elsewhere_is_not_looked_for(tmp_path: Path, name: str) -> None:
    folder = settings(tmp_path).outputs_dir / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    for each in ("mine.png", "mine.json"):
        (folder / each).write_bytes(b"picture")
    assert thumbnail_path(replace(load_presets()["navy-suit"], thumbnail=name), settings(tmp_path)) is None
