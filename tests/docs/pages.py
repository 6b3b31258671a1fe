"""The project's Markdown pages: their links, commands and the names they give to things on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "tools" / "demo_models" / "README.md",
)
#: For users: here every command is one to be typed.
FOR_USERS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("USER_GUIDE", "TROUBLESHOOTING", "PHOTOS", "CARDS")),
)

_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_COMMAND = re.compile(r"(?:python3|py) app\.py[^`#\n”]*(?:\n[^`#\n”]+)?(?=`)|^ {4}python3 app\.py[^#\n]*", re.M)


def links(page: Path) -> Iterator[str]:
    """Every target that is not an address of the network."""
    for found in _LINK.finditer(_FENCE.sub("", page.read_text("utf-8"))):
        target = found[1] or found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """Every command line, without “python3 app.py”."""
    for found in _COMMAND.finditer(page.read_text("utf-8")):
        yield " ".join(found[0].split()[2:])


def options(page: Path) -> set[str]:
    """Every option that is named alone."""
    return set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text("utf-8")))


def controls(page: Path) -> set[str]:
    """What stands in italics and begins with a capital: names on the page."""
    text = re.sub(r"\*\*.+?\*\*", "", page.read_text("utf-8"), flags=re.S)
    return {" ".join(name.split()) for name in re.findall(r"(?<![*\w])\*([A-Z][^*]{1,60}?)\*(?![*\w])", text)}
