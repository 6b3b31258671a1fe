"""The public link of ``--share``: whether one can be made, and what Gradio leaves lying about when it makes one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RELAY = ("api.gradio.app", 443)
RELAY_TIMEOUT_S = 3.0
NO_NETWORK = (
    "No public link could be made: Gradio's link service cannot be reached from here. "
    "The page opens without one; check the network and start again for a link."
)
NO_LINK = (
    "No public link could be made: Gradio's link service did not give one (the log says more). "
    "The page is open without one; start again to try once more."
)

_log = logging.getLogger(__name__)


def relay_answers(connect: Callable[..., Any] | None = None) -> bool:
    """Whether Gradio's link service can be reached; answers within about three seconds.

    Asked before, because Gradio itself waits half a minute without a word. In a thread, for looking up a name can
    take far longer than any timeout.
    """
    connect = connect or socket.create_connection
    good: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(OSError), connect(RELAY, RELAY_TIMEOUT_S):
            good.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RELAY_TIMEOUT_S + 0.5)
    return bool(good)


@contextlib.contextmanager
def tidy_link(folder: Path) -> Iterator[None]:
    """While Gradio makes the link: its certificate goes to ``folder`` instead of the current folder, its words to the
    log, and a relay program that was downloaded only in part, which it would never notice, is removed before."""
    from gradio import networking, tunneling

    folder.mkdir(parents=True, exist_ok=True)
    _remove_damaged(Path(tunneling.BINARY_PATH), tunneling.CHECKSUMS.get(tunneling.BINARY_URL, ""))
    usual = networking.CERTIFICATE_PATH
    networking.CERTIFICATE_PATH = str(folder / "certificate.pem")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        networking.CERTIFICATE_PATH = usual
        if said.getvalue().strip():
            _log.info("Gradio on the public link: %s", said.getvalue().strip())


def close_links() -> None:
    """End the relay program without its farewell."""
    from gradio import tunneling

    with contextlib.redirect_stdout(io.StringIO()):
        for tunnel in tunneling.CURRENT_TUNNELS:
            tunnel.kill()


def link_host(share_url: str | None) -> str:
    """The host name of a public link; "" when there is none."""
    return (urlsplit(share_url).hostname or "") if share_url else ""


def _remove_damaged(program: Path, sha256: str) -> None:
    with contextlib.suppress(OSError):
        if sha256 and program.is_file() and hashlib.sha256(program.read_bytes()).hexdigest() != sha256:
            _log.warning("%s is damaged and is downloaded anew", program)
            program.unlink()
