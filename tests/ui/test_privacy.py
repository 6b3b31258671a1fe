"""What is set before gradio is imported."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from headshot_ui.ui import privacy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR", "GRADIO_SSR_MODE"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("NO_PROXY", "intranet,localhost")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(privacy.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_reports_are_off_and_the_local_page_goes_past_proxies(clean):
    privacy.set_environment()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["NO_PROXY"] == "intranet,localhost,127.0.0.1,::1"
    assert os.environ["no_proxy"] == "localhost,127.0.0.1,::1"


def test_uploads_go_to_a_folder_of_this_user_only(clean):
    folder = privacy.set_environment()
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.parent == clean
    if os.name != "nt":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_leftovers_of_killed_programs_are_swept_and_nothing_else(clean):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = clean / f"headshot_ui-{gone.pid}-abc"
    kept = [clean / f"headshot_ui-{os.getpid()}-abc", clean / "headshot_ui-notes-abc", clean / "other-1-a"]
    for folder in (dead, *kept):
        folder.mkdir()
        (folder / "photo.jpg").write_bytes(b"x")
    privacy.sweep_leftovers(clean)
    assert not dead.exists() and all(folder.is_dir() for folder in kept)


def test_the_folder_is_gone_when_the_program_ends(tmp_path):
    code = "from headshot_ui.ui.privacy import set_environment; f = set_environment(); (f / 'a').touch(); print(f)"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    folder = Path(ended.stdout.strip())
    assert folder.parent == tmp_path and not folder.exists()
