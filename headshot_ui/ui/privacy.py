"""What must be set before gradio is imported so that nothing leaves this computer. Standard library only."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

_FOLDER = re.compile(r"headshot_ui-(\d+)-")
#: Longer than any handler of the page needs a temporary file of its own.
UNFINISHED_AGE_S = 3600


def set_environment(host: str = "127.0.0.1") -> Path:
    """Switch off every report home, keep proxies away from the page at ``host``, and make the folder for uploads.

    Returns the folder: readable by this user only (Gradio's own default is one folder that every account
    and every Gradio program on the machine can read), removed when the program ends.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_SSR_MODE"] = "False"
    for name in ("NO_PROXY", "no_proxy"):  # with HTTP_PROXY set and no exception, gradio's start-up check fails
        have = [part for part in os.environ.get(name, "").split(",") if part]
        direct = dict.fromkeys(("localhost", "127.0.0.1", "::1", host))
        os.environ[name] = ",".join(have + [each for each in direct if each not in have])
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


def sweep_unfinished(folder: Path, older_than_s: float = UNFINISHED_AGE_S) -> None:
    """Remove files of uploads that were broken off; call it while none is under way.

    Gradio writes an upload to ``tmp…`` in ``folder`` and renames it when it is complete.
    """
    for path in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()
