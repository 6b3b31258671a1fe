"""Who may talk to the page, and with what: every request goes through here before Gradio sees it.

Gradio checks neither the Host nor the Origin header. Without this guard any website that is open in the
same browser could upload files to the page, and a website whose name is made to point to 127.0.0.1
(DNS rebinding) could read the photos. Plain ASGI: answers of any length and without end pass through as they are made.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from headshot_ui.ui.door import LOCAL_HOSTS
from headshot_ui.ui.login import LoginGate
from headshot_ui.ui.uploads import BodyRefused, Uploads

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_REMOTE_FILE = re.compile(r"/file=\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
#: What Gradio offers besides the page: statistics, descriptions of itself, the session's secret, other ways to call
#: functions, and helpers for other kinds of programs. The page uses none of it.
_UNUSED = re.compile(
    r"/(monitoring|openapi\.json|docs|redoc|gradio_api/(monitoring|openapi\.json|token|user|dev|deep_link|runs"
    r"|run-history|proxy=|vibe-|undo-vibe|profiling|process_recording|stream|call|api|custom_component))"
)
#: Gradio's own scripts and styles, the same for everybody.
_PUBLIC_FILES = ("/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    # Nothing to other websites. (With "no-referrer" browsers would also leave the Origin out of the login form.)
    b"referrer-policy": b"same-origin",
    b"content-security-policy": b"frame-ancestors 'self'",
    b"cross-origin-resource-policy": b"same-origin",
}


@dataclass
class Door:
    """What the guard goes by; ``public_hosts`` may grow while the page is open."""

    hosts: frozenset[str] = LOCAL_HOSTS  # names and addresses the page is reached under
    public_hosts: frozenset[str] = frozenset()  # names that come through a relay or proxy, which may change the Host
    https_hosts: frozenset[str] = frozenset()  # reached with https only, whatever arrives here
    gate: LoginGate | None = None  # None: everybody on this computer
    uploads: Uploads | None = None


class Guard:
    """ASGI middleware that answers 403 to whatever does not come from the page itself, and keeps the door.

    Refused are: any Host (or none) that is not among the door's, an Origin that is not the page's own, and Gradio's
    ``/file=http…``, which makes the server fetch a foreign address. With a gate, everything but the login form is
    answered only to those who have logged in. Bodies are limited by ``uploads``.
    """

    def __init__(self, app: AsgiApp, door: Door | None = None) -> None:
        self.app = app
        self.door = door or Door()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, gate = scope["type"], self.door.gate
        if kind not in ("http", "websocket"):  # "lifespan" carries no headers
            await self.app(scope, receive, send)
            return
        allowed = is_allowed(scope, self.door)
        if kind == "websocket":
            if allowed and (gate is None or gate.knows(scope)):
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        answer = _hardened(send, no_store=gate is not None and not scope["path"].startswith(_PUBLIC_FILES))
        if not allowed:
            await _plain(answer, 403, _REFUSED)
        elif gate is None or await gate.admit(scope, receive, answer, self._secure(scope)):
            if _UNUSED.match(scope["path"]):
                await _plain(answer, 404, "Not found")
            else:
                await self._limited(scope, receive, answer)

    def _secure(self, scope: Scope) -> bool:
        host = _split("//" + "".join(_header(scope, b"host")))
        named = host.hostname if host is not None else ""
        return scope.get("scheme") == "https" or named in self.door.https_hosts

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request on, and answer for the app when its body turns out to be too much."""
        if self.door.uploads is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = self.door.uploads.incoming(scope, receive)
        answered = False

        async def unless_refused(message: Message) -> None:
            nonlocal answered
            if body.refused is None:
                answered = True
                await send(message)

        try:
            if body.refused is None:
                await self.app(scope, body.receive, unless_refused)
        except BodyRefused:
            pass
        finally:
            body.close()
        if body.refused is not None and not answered:
            # The server itself takes the rest and throws it away, as browsers look at an answer only at the end.
            await _plain(send, body.refused.status, body.refused.sentence)


_REFUSED = (
    "This page does not answer to other websites, nor under this name. If the name is yours, "
    "start the program with --allow-host and what stands before the port in the address."
)


def is_allowed(scope: Scope, door: Door) -> bool:
    """Whether one request (an ASGI scope with ``path``, ``headers`` and ``scheme``) may pass."""
    named = _header(scope, b"host")
    if len(named) != 1 or (host := _split("//" + named[0])) is None:
        return False
    if host.hostname not in door.hosts | door.public_hosts:
        return False
    for origin in _header(scope, b"origin"):
        parts = _split(origin)
        if parts is None or parts.scheme not in ("http", "https"):
            return False
        relayed = parts.scheme == "https" and parts.netloc.lower() in door.public_hosts
        if parts.netloc.lower() != host.netloc.lower() and not relayed:
            return False
    return not _REMOTE_FILE.search(unquote(scope.get("path", "")))


def _hardened(send: Send, no_store: bool) -> Send:
    """``send`` with the headers that every answer carries."""
    fixed = _HEADERS | ({b"cache-control": b"no-store"} if no_store else {})

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(key, value) for key, value in message.get("headers", []) if key.lower() not in fixed]
            message = {**message, "headers": [*own, *fixed.items()]}
        await send(message)

    return sent


async def _plain(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
