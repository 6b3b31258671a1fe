"""Who may talk to the page: only this computer's own browser, on the page's own address.

Gradio checks neither the Host nor the Origin header. Without this guard any website that is open in the
same browser could upload files to the page, and a website whose name is made to point to 127.0.0.1
(DNS rebinding) could read the photos. Plain ASGI; imports nothing but the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_REMOTE_FILE = re.compile(r"/file=\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


class Guard:
    """ASGI middleware that answers 403 to whatever does not come from the page itself.

    ``hosts`` are the names under which the page may be reached. Refused are: any other Host (or none),
    an Origin that is not the page's own name and port, and Gradio's ``/file=http…``, which makes
    the server fetch a foreign address.
    """

    def __init__(self, app: AsgiApp, hosts: frozenset[str] = LOCAL_HOSTS) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] in ("http", "websocket")  # "lifespan" carries no headers
        if not asks or is_allowed(scope, self.hosts):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Forbidden"})


def is_allowed(scope: Scope, hosts: frozenset[str]) -> bool:
    """Whether one request (an ASGI scope with ``path``, ``headers`` and ``scheme``) may pass."""
    named = _header(scope, b"host")
    if len(named) != 1 or (host := _split("//" + named[0])) is None or host.hostname not in hosts:
        return False
    for origin in _header(scope, b"origin"):
        parts = _split(origin)
        if parts is None or parts.scheme not in ("http", "https") or parts.netloc.lower() != host.netloc.lower():
            return False
    return not _REMOTE_FILE.search(unquote(scope.get("path", "")))


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _split(url: str) -> Any:
    """``urlsplit``, or None where it cannot read the text (unbalanced brackets, a port that is no number)."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
