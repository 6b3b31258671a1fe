"""Opening the page from the command line: what opens the door, who is told what, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from headshot_ui.lock import PAGE, hold

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSHOT_UI_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--share"], "needs --user NAME"),
        (["--host", "0.0.0.0"], "needs --user NAME"),
        (["--allow-host", "photos.example"], "needs --user NAME"),
        (["--host", "photos.example", "--user", "anna"], "is not an address"),
        (["--allow-host", "http://photos.example/", "--user", "anna"], "without http://"),
        (["--share", "--user", "anna:secret"], "no colon"),
        (["--user", ""], "user name is empty"),
        (["--share", "--user", "anna"], "variable HEADSHOT_UI_PASSWORD"),
        (["--share", "--user", "anna", "--password", "correct horse"], "shell's history"),
        (["--share", "--user", "anna", "--password=correct horse"], "shell's history"),
        (["--password"], "shell's history"),
    ],
)
def test_what_protects_nobody_is_refused_before_anything_opens(command, argv, words):
    done = command(*argv)
    assert done.code == 2 and words in done.err and done.engines == []
    assert "correct horse" not in done.err + done.out


@pytest.mark.parametrize(("password", "words"), [("", "empty"), ("1234567", "at least 8"), ("password", "guessed")])
def test_a_weak_password_is_refused_in_words(command, monkeypatch, password, words):
    monkeypatch.setenv("HEADSHOT_UI_PASSWORD", password)
    done = command("--share", "--user", "anna")
    assert done.code == 2 and words in done.err and done.engines == []
    assert "all photos and pictures of all people" in done.out  # said before it is asked for


def test_a_card_that_is_not_used_is_told_when_the_page_opens(command, monkeypatch):
    monkeypatch.setattr("headshot_ui.commands.page.unused_card", lambda settings: "The driver is too old: renew it.")
    monkeypatch.setattr("headshot_ui.ui.serve.serve", lambda *_, **__: None)
    done = command()
    assert done.code == 0
    assert done.out.splitlines()[1].startswith("The driver is too old: renew it. Until then the processor")


def test_a_command_is_told_that_the_page_is_open(command, tmp_path):
    with hold(tmp_path / "outputs", PAGE) as note:
        note("http://127.0.0.1:7860/")
        done = command("train", "--person", "anna")
        assert done.code == 1 and done.engines == [] and "already open at http://127.0.0.1:7860/" in done.err
        second = command("--no-browser")
        assert second.code == 1 and "already open" in second.err and second.engines == []
        for light in (["doctor", "--help"], ["--version"]):
            assert command(*light).code == 0
    assert command("train", "--person", "anna").code == 0


SCRIPT = textwrap.dedent("""
    import socket, sys, threading
    from headshot_ui.cli import main
    from headshot_ui.ui import page
    from tests.ui.fake_engine import FakeEngine
    from tests.ui.tiny_page import build_tiny

    page.build_page = build_tiny
    really = socket.create_connection
    def connect(address, *rest, **more):
        if address[0] == "api.gradio.app":
            threading.Event().wait(60)  # a network that swallows everything
        return really(address, *rest, **more)
    socket.create_connection = connect
    sys.exit(main(sys.argv[1:], FakeEngine))
""")


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The program started with --share in a network that swallows everything."""
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "here").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), "--share", "--user", "anna", "--no-browser", "--outputs",
         str(tmp_path / "outputs"), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HEADSHOT_UI_PASSWORD": "correct horse"}, cwd=tmp_path / "here",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to whole console groups, not to one process")
def test_without_network_the_page_opens_here_and_says_so(offline, tmp_path, command):
    assert offline.stdout is not None
    said: dict[str, float] = {}
    for line in offline.stdout:
        said[line.strip()] = time.monotonic()
        if line.startswith("Press Ctrl-C"):
            break
    lines = list(said)
    assert "public link" in lines[0] and "all photos" in lines[0]
    asked = next(line for line in lines if line.startswith("Asking for a public link"))
    none = next(line for line in lines if line.startswith("No public link could be made"))
    assert said[none] - said[asked] < 4
    address = next(match[1] for line in lines if (match := re.match(r"The page is open at (\S+)", line)))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address + "login", timeout=10) as form:
        assert b"Log in" in form.read()
    assert f"already open at {address}" in command("train", "--person", "anna").err
    offline.send_signal(signal.SIGINT)
    rest, _ = offline.communicate(timeout=20)
    assert rest.strip() == "The page is closed." and offline.returncode == 0
    assert list((tmp_path / "here").iterdir()) == []
    assert command("train", "--person", "anna").code == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_being_told_to_end_is_as_tidy_as_ctrl_c():
    from headshot_ui.ui.serve import _ctrl_c_on_termination

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _ctrl_c_on_termination():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before
