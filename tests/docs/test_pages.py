"""Links lead somewhere, commands are understood, and what is said to be on the page is there."""

from __future__ import annotations

import argparse
import re
import shlex
from urllib.parse import unquote

import pytest

from headshot_ui.cli import build_parser
from tests.docs.pages import FOR_USERS, PAGES, ROOT, anchors, commands, controls, links, options

#: In italics and yet not on the page: things of other programs, and a picture's caption.
ELSEWHERE = {
    "Manage 3D settings",
    "CUDA - Sysmem Fallback Policy",
    "Prefer No Sysmem Fallback",
    "Runtime → Change runtime type → T4 GPU",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: page.name)
def test_commands_are_understood(page):
    parser = build_parser()
    for command in commands(page):
        words = shlex.split(command.replace("…", ""))
        if words[:1] == ["test"]:  # app.py's own
            continue
        try:
            parser.parse_args(words)
        except SystemExit as leaving:
            assert not leaving.code, command  # 0: it was --help


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: page.name)
def test_options_exist(page):
    assert options(page) <= _all_options(build_parser()) | {"--slow", "--write", "--count"}


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: page.name)
def test_what_is_said_to_be_on_the_page_is_there(page):
    shown = " ".join(path.read_text("utf-8") for path in (ROOT / "headshot_ui").rglob("*.py"))
    shown = re.sub(r"\s+", " ", shown)
    missing = {name for name in controls(page) - ELSEWHERE if name.rstrip(" …") not in shown and len(name) < 45}
    missing -= {name for name in missing if name.replace(" ", "_").lower() in shown}  # labels made from field names
    assert not missing


def test_the_sizes_of_downloads_are_those_of_the_catalogue():
    from headshot_ui.downloads.catalogue import load_catalogue

    sizes = {name: entry.size / 2**30 for name, entry in load_catalogue().items()}
    guide = (ROOT / "docs" / "USER_GUIDE.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[a-z].*?) \| ([\d.]+) (GB|MB)", guide, re.M)
    told = {name: float(size) / (1 if unit == "GB" else 1024)
            for names, size, unit in rows for name in re.findall(r"`(.+?)`", names)}  # fmt: skip
    assert told.keys() == sizes.keys()
    for name, size in told.items():
        assert size == pytest.approx(sizes[name], abs=0.05 if size > 0.05 else 0.001), name
    least = sizes["sdxl"] + sizes["sdxl-vae-fp16-fix"] + sizes["retinaface"] + sizes["arcface"]
    notebook = (ROOT / "docs" / "colab.ipynb").read_text("utf-8")
    assert f"{least:.0f} GB once per machine, {least + sizes['sdxl-refiner']:.0f} GB with the refiner" in notebook
    assert f"{sizes['sdxl-refiner']:.1f} GB more to download" in notebook
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"# {least - sizes['sdxl-vae-fp16-fix']:.0f} GB, checked" in readme


def test_the_recipes_are_told_as_they_are():
    from headshot_ui.recipes import load_recipes

    guide = (ROOT / "docs" / "USER_GUIDE.md").read_text("utf-8")
    for name, recipe in load_recipes().items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", guide, re.M)
        told = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", row)}
        wanted = {recipe.train.get(field) for field in ("steps", "rank", "size_px")}
        wanted |= {recipe.generate.get(field) for field in ("steps", "guidance_scale")}
        assert wanted - {None} <= told, name


def _all_options(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                found |= _all_options(one)
    return found
