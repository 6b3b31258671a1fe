"""What must be set before gradio is imported so that nothing leaves this computer. Standard library only."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

_FOLDER = re.compile(r"headshot_ui-(\d+)-")


def set_environment() -> Path:
    """Switch off every report home, keep proxies away from the local page, and make the folder for uploads.

    Returns the folder: readable by this user only (Gradio's own default is one folder that every account
    and every Gradio program on the machine can read), removed when the program ends.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_SSR_MODE"] = "False"
    for name in ("NO_PROXY", "no_proxy"):  # with HTTP_PROXY set and no exception, gradio's start-up check fails
        have = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(have + [host for host in ("localhost", "127.0.0.1", "::1") if host not in have])
    sweep_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"headshot_ui-{os.getpid()}-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sweep_leftovers(parent: Path) -> None:
    """Remove upload folders of earlier runs that were killed before they could do it themselves."""
    import psutil

    for folder in parent.glob("headshot_ui-*-*"):
        made_by = _FOLDER.match(folder.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
