"""Name and password before anything of the page: its own login form, sessions, and patience with wrong tries.

Gradio has a login too, but it leaves parts of the page open to everybody, lets passwords be guessed without end, and
its cookie is sent along from other websites. Here nothing but this form is answered without a session.
"""

from __future__ import annotations

import hashlib
import html
import ipaddress
import secrets
import time
import unicodedata
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any
from urllib.parse import parse_qs

from headshot_ui.errors import SpecError

SHORTEST_PASSWORD = 8
SESSION_S = 7 * 24 * 3600  # as long as a share link can last
MOST_SESSIONS = 200
FORM_BYTES = 8 * 1024
#: Tries before waiting begins: of one client, and of all together (many computers can guess at once).
TRIES, TRIES_OF_ALL = 5, 20
LONGEST_WAIT_S = 60.0
FORGET_AFTER_S = 15 * 60.0
MOST_CLIENTS = 10_000
#: Gradio asks this itself when it starts; it tells nothing.
START_UP_PATH = "/gradio_api/startup-events"
_WEAK = frozenset({
    "password", "password1", "passwort", "passw0rd", "12345678", "123456789", "1234567890", "87654321", "qwertyui",
    "qwertyuiop", "qwerty123", "asdfghjk", "iloveyou", "sunshine", "princess", "football", "baseball", "trustno1",
    "headshot", "headshots", "letmein1", "changeme",
})  # fmt: skip

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Credentials:
    """Who may use the page. Raises SpecError, naming "user" or "password", for what protects nobody."""

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        check_user(self.user)
        if not self.password:
            raise SpecError("password", "The password is empty: choose one of at least 8 characters.")
        if len(self.password) < SHORTEST_PASSWORD:
            raise SpecError("password", f"The password is too short: take at least {SHORTEST_PASSWORD} characters.")
        plain = self.password.casefold()
        if plain in _WEAK or plain == self.user.casefold() or len(set(plain)) < 4:
            raise SpecError("password", "This password is among the first that are guessed: choose another.")

    def fit(self, user: str, password: str) -> bool:
        """Whether both are right. Takes as long whatever is wrong, so that the time tells nothing."""
        right_user = secrets.compare_digest(_digest(self.user), _digest(user.strip()))
        right_password = secrets.compare_digest(_digest(self.password), _digest(password))
        return right_user & right_password


def check_user(user: str) -> None:
    """Raises SpecError for a name that cannot be typed into the form, or that holds a password."""
    if not user or user != user.strip() or not user.isprintable() or len(user) > 100:
        raise SpecError("user", "The user name is empty or cannot be typed: choose another with --user NAME.")
    if ":" in user:
        raise SpecError("user", "A user name has no colon: give only the name; the password is asked for.")


def _digest(text: str) -> bytes:
    """Equal length for every text; one spelling for letters that keyboards compose differently."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")).digest()


# --- patience ---------------------------------------------------------------------------------------
@dataclass
class _Tries:
    wrong: int = 0
    last_s: float = 0.0


class Throttle:
    """After a few wrong tries: waits that double, up to a minute, for one client and, later, for all together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, _Tries] = {}
        self._all = _Tries()

    def wait_s(self, client: str) -> float:
        """Seconds until this client may try again; 0.0 when it may now."""
        tries = self._clients.get(client, _Tries())
        return max(self._left(tries, TRIES), self._left(self._all, TRIES_OF_ALL))

    def failed(self, client: str) -> None:
        """A wrong password came from this client."""
        now = self._clock()
        if len(self._clients) >= MOST_CLIENTS:
            recent = {name: tries for name, tries in self._clients.items() if now - tries.last_s < FORGET_AFTER_S}
            self._clients = recent if len(recent) < MOST_CLIENTS else {}  # then the count of all has long since begun
        for tries in (self._clients.setdefault(client, _Tries()), self._all):
            tries.wrong = 1 if now - tries.last_s > FORGET_AFTER_S else tries.wrong + 1
            tries.last_s = now

    def succeeded(self, client: str) -> None:
        """The right password came from this client."""
        self._clients.pop(client, None)

    def _left(self, tries: _Tries, free: int) -> float:
        since = self._clock() - tries.last_s
        if tries.wrong < free or since > FORGET_AFTER_S:
            return 0.0
        wait: float = min(LONGEST_WAIT_S, 2.0 ** min(tries.wrong - free, 10))
        return max(0.0, wait - since)


def client_of(scope: Scope) -> str:
    """What stands for one client: its address, or its network of 2**64 addresses where one person has all of them."""
    address = (scope.get("client") or ("",))[0]
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return str(address)[:100]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


# --- sessions and form ------------------------------------------------------------------------------
class LoginGate:
    """Answers everything that comes without a session: the form, or a refusal."""

    def __init__(self, credentials: Credentials, clock: Callable[[], float] = time.monotonic) -> None:
        self.credentials = credentials
        self.throttle = Throttle(clock)
        self._clock = clock
        self._sessions: dict[str, float] = {}  # token → when it ends
        # Cookies belong to a host whatever the port: two pages on one computer must not log each other out.
        self._cookie = f"headshots-{secrets.token_hex(4)}"

    def knows(self, scope: Scope) -> bool:
        """Whether a request carries the cookie of a session."""
        return self._token(scope) is not None

    async def admit(self, scope: Scope, receive: Receive, send: Send, secure: bool) -> bool:
        """True to let an HTTP request on; else it has been answered. ``secure``: the browser speaks https."""
        path, method = scope["path"].rstrip("/"), scope["method"]
        if path == "/login" and method == "POST":
            await self._log_in(scope, receive, send, secure)
        elif path == "/logout" and method == "GET":
            self._sessions.pop(self._token(scope) or "", None)
            await _redirect(send, "/login", [self._set_cookie("", secure) + b"; Max-Age=0"])
        elif self.knows(scope):
            if path != "/login":
                return True
            await _redirect(send, "/")
        elif path == START_UP_PATH and method == "GET":
            return True
        elif path == "/login" and method in ("GET", "HEAD"):
            await _answer(send, 200, form())
        elif path == "/robots.txt":
            await _answer(send, 200, "User-agent: *\nDisallow: /\n", b"text/plain")
        elif method == "GET" and b"text/html" in _header(scope, b"accept"):
            await _redirect(send, "/login")
        else:
            await _answer(send, 401, "Log in first: reload the page.", b"text/plain")
        return False

    async def _log_in(self, scope: Scope, receive: Receive, send: Send, secure: bool) -> None:
        client = client_of(scope)
        body = await _read(receive)  # before anything is counted: others may try while this one is still sending
        wait_s = self.throttle.wait_s(client)
        if wait_s > 0:
            seconds = ceil(wait_s)
            problem = f"Too many wrong tries: wait {seconds} second{'s' * (seconds != 1)}, then try again."
            await _answer(send, 429, form(problem), extra=[(b"retry-after", str(seconds).encode())])
            return
        if not self.credentials.fit(*_fields(body)):
            self.throttle.failed(client)
            await _answer(send, 401, form("The user name or the password is not right."))
            return
        self.throttle.succeeded(client)
        await _redirect(send, "/", [self._set_cookie(self._new_session(), secure)])

    def _new_session(self) -> str:
        now = self._clock()
        live = [(token, ends) for token, ends in self._sessions.items() if ends > now]
        token = secrets.token_urlsafe(32)
        self._sessions = dict([*live[-MOST_SESSIONS + 1 :], (token, now + SESSION_S)])
        return token

    def _token(self, scope: Scope) -> str | None:
        for part in _header(scope, b"cookie").decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._cookie and self._sessions.get(value, -1.0) > self._clock():
                return value
        return None

    def _set_cookie(self, value: str, secure: bool) -> bytes:
        # Lax: not sent along when another website loads or posts something here. Secure only where there is https,
        # because browsers refuse such a cookie over plain http.
        return f"{self._cookie}={value}; Path=/; HttpOnly; SameSite=Lax{'; Secure' * secure}".encode()


async def _read(receive: Receive) -> bytes:
    """The body of the form; b"" when it is larger than any form."""
    body, more = b"", True
    while more and len(body) <= FORM_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return body if len(body) <= FORM_BYTES else b""


def _fields(body: bytes) -> tuple[str, str]:
    """User name and password of the form; "" for what it lacks."""
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
    except ValueError:  # more fields than the form has
        return "", ""
    return fields.get("user", [""])[0], fields.get("password", [""])[0]


async def _redirect(send: Send, where: str, cookies: list[bytes] | None = None) -> None:
    headers = [(b"location", where.encode()), *((b"set-cookie", cookie) for cookie in cookies or [])]
    await _answer(send, 303, "", extra=headers)


async def _answer(
    send: Send, status: int, text: str, kind: bytes = b"text/html", extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = text.encode()
    headers = [(b"content-type", kind + b"; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *(extra or [])]})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> bytes:
    return b"; ".join(bytes(value) for key, value in scope["headers"] if key.lower() == name)


def form(problem: str = "") -> str:
    """The login page: one file without scripts, in the page's own colours, light and dark."""
    from headshot_ui.ui.theme import PALETTE

    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in PALETTE.items()) for side in (0, 1))
    said = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    return _FORM.replace("LIGHT", light).replace("DARK", dark).replace("PROBLEM", said)


_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headshots: log in</title><link rel="icon" href="data:,">
<style>
:root{color-scheme:light dark;LIGHT}@media (prefers-color-scheme:dark){:root{DARK}}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}
form{box-sizing:border-box;width:min(360px,100vw - 24px);padding:28px;background:var(--card);
border:1px solid var(--line);border-radius:18px}
h1{margin:0 0 6px;font-size:1.6rem;letter-spacing:-.02em}p{margin:0 0 18px;color:var(--soft)}
label{display:block;margin:0 0 14px;font-weight:600}
input{box-sizing:border-box;width:100%;margin-top:6px;padding:10px 12px;font:inherit;color:inherit;
background:var(--field);border:1px solid var(--edge);border-radius:10px}
button{width:100%;padding:12px;border:0;border-radius:10px;font:inherit;font-weight:600;cursor:pointer;
background:var(--accent);color:var(--on-accent)}button:hover{background:var(--accent-hover)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.problem{padding:10px 14px;border-radius:10px;background:var(--problem-fill);color:var(--problem);font-weight:550}
</style></head><body><main><form method="post" action="/login">
<h1>Headshots</h1><p>This page is protected.</p>PROBLEM
<label>User name<input name="user" autocomplete="username" autocapitalize="none" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form></main></body></html>
"""
