"""The doctor's findings are printed with what to do, and decide the exit code."""

from __future__ import annotations

import pytest

from headshot_ui import doctor
from headshot_ui.doctor import Check

GOOD = Check("Python", True, "3.12")
NOTE = Check("device", None, "no GPU", "Everything works, slowly.")
BAD = Check("demo recogniser", False, "recogniser.safetensors is not there", "Get a complete copy of the program.")


@pytest.mark.parametrize(("found", "code"), [([GOOD], 0), ([GOOD, NOTE], 0), ([GOOD, NOTE, BAD], 1)])
def test_only_what_is_missing_fails(command, monkeypatch, found, code):
    monkeypatch.setattr(doctor, "examine", lambda settings: found)
    done = command("doctor", "--json")
    assert (done.code, done.json["ok"]) == (code, code == 0)
    assert [check["name"] for check in done.json["checks"]] == [check.name for check in found]
    assert done.engines == []  # it only looks


def test_each_finding_is_a_line_followed_by_its_advice(command, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda settings: [GOOD, NOTE, BAD])
    assert command("doctor").out.splitlines() == [
        "ok       Python           3.12",
        "note     device           no GPU",
        "                          Everything works, slowly.",
        "MISSING  demo recogniser  recogniser.safetensors is not there",
        "                          Get a complete copy of the program.",
        "Something is missing: see the lines marked MISSING.",
    ]
