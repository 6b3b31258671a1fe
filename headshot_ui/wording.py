"""Numbers and lists as people say them."""

from __future__ import annotations

from collections.abc import Sequence


def format_seconds(seconds: float) -> str:
    """A stretch of time for people: 9 s, 4 min 05 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def readable_bytes(count: int) -> str:
    """ "512 bytes", "3.4 MB", "12.0 GB" (powers of 1024)."""
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def how_to_get(entry_id: str) -> str:
    """How a model of the catalogue of downloads is got, within a sentence."""
    return f"get it under Models on the page or with “python3 app.py models get {entry_id}”"


def licence_comes_with(title: str, licence: str) -> str:
    """Of a LoRA: the base model it was trained on has a say in what may be done with it. "" where nothing is known."""
    return f"The licence of “{title}” comes with it: {licence.rstrip('.')}." if licence else ""


def place_in_line(place: int) -> str:
    """1: "next in line", 2: "2nd in line" and so on; "" for 0, which is not waiting."""
    if place <= 1:
        return "next in line" if place == 1 else ""
    teens = 10 <= place % 100 <= 20
    ending = "th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} in line"
