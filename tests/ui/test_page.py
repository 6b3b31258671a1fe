"""How the page is built and served; what it looks like in use is tested in a browser."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from headshot_ui.errors import SetupError
from headshot_ui.settings import Settings
from headshot_ui.ui import serve
from tests.ui.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]

BUILD = """
import sys
from pathlib import Path
from headshot_ui.settings import Settings
from headshot_ui.ui.privacy import set_environment
shown = set_environment()
from headshot_ui.ui.page import build_page
page = build_page(None, Settings.from_environment(), shown)
assert page.analytics_enabled is False
print([name for name in ("torch", "diffusers", "transformers", "facexlib", "cv2") if name in sys.modules])
"""


def test_building_the_page_loads_no_torch():
    ended = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    settings = Settings.from_environment(outputs_dir=folder / "outputs")
    secret = settings.outputs_dir / "people" / "anna" / "photos" / "a.jpg"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"photo")
    engine = FakeEngine(settings)
    page, where = serve.launch(engine, settings, "127.0.0.1", None)
    yield where
    page.close(verbose=False)
    engine.close()


def ask(address: str, path: str, method: str = "GET", **headers: str) -> int:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_page_answers_itself_and_nobody_else(address):
    assert ask(address, "/") == 200
    assert ask(address, "/", Host="evil.com") == 403
    assert ask(address, "/config", Origin="http://evil.com") == 403
    assert ask(address, "/gradio_api/upload", "POST", Origin="http://evil.com") == 403
    assert ask(address, "/gradio_api/file=http://example.com/x.png") == 403


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/monitoring/summary", "/monitoring"])
def test_nothing_that_describes_the_program_is_open(address, path):
    assert ask(address, path) in (403, 404)


def test_files_outside_the_private_folder_are_not_served(address, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    for path in (secret, ROOT / "pyproject.toml", Path("/etc/passwd")):
        assert ask(address, f"/gradio_api/file={path.as_posix()}") in (403, 404)


def test_uploads_lie_in_the_private_folder(address):
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert folder.name.startswith(f"headshot_ui-{os.getpid()}-")


def test_a_port_that_is_taken_is_told_plainly(address):
    port = urlsplit(address).port
    with pytest.raises(SetupError, match=f"Port {port} is used by another program"):
        serve.free_port("127.0.0.1", port)
    assert serve.free_port("127.0.0.1", None) != port


def test_a_port_lost_to_a_quicker_program_is_replaced_by_another(tmp_path, monkeypatch):
    settings = Settings.from_environment(outputs_dir=tmp_path / "outputs")
    with socket.socket() as quicker:
        quicker.bind(("127.0.0.1", 0))
        quicker.listen()
        real, answers = serve.free_port, [quicker.getsockname()[1]]
        monkeypatch.setattr(serve, "free_port", lambda *wanted: answers.pop() if answers else real(*wanted))
        page, where = serve.launch(FakeEngine(settings), settings, "127.0.0.1", None)
    assert answers == [] and ask(where, "/") == 200
    page.close(verbose=False)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio, 1 to 21."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "behind", "least"),
    [("ink", "paper", 7), ("ink", "card", 7), ("soft", "paper", 4.5), ("soft", "card", 4.5), ("soft", "field", 4.5),
     ("accent", "card", 4.5), ("accent", "paper", 4.5), ("on-accent", "accent", 4.5),
     ("on-accent", "accent-hover", 4.5),
     ("problem", "problem-fill", 4.5), ("problem", "card", 4.5), ("edge", "card", 3), ("edge", "field", 3)],
)  # fmt: skip
def test_colours_can_be_told_apart(text, behind, least, mode):
    from headshot_ui.ui.theme import PALETTE

    assert contrast(PALETTE[text][mode], PALETTE[behind][mode]) >= least
