"""A hub and a release host of our own: two real HTTP servers, one for names, one (the “CDN”) for bytes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # bytes; from here on a file is "LFS": on the CDN, named by its sha256


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class World:
    """What the servers hold, how they misbehave, and what they were asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # path on the first server → content
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # path → (status, X-Error-Code) instead of it
    message: str = ""  # X-Error-Message beside such a status
    tokens: dict[str, str] = field(default_factory=dict)  # token → name of its account, for /api/whoami-v2
    cut: dict[str, list[int]] = field(default_factory=dict)  # path → bytes after which each next answer breaks off
    sent_instead: dict[str, bytes] = field(default_factory=dict)  # the CDN gives this, whatever was promised
    ranges: bool = True
    heads: bool = True  # False: HEAD gives 405
    commit: str | None = COMMIT  # None: no hub at all
    gate: threading.Event = field(default_factory=threading.Event)  # cleared: answers stop after 1 MB until it is set
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, Range)
    shown_tokens: list[tuple[str, str]] = field(default_factory=list)  # ("names" or "cdn", Authorization)
    sent_bytes: int = 0
    address: str = ""
    cdn: str = ""

    def gets(self, name: str) -> list[str]:
        """The Range of every GET of a file's bytes, in order."""
        return [asked for method, path, asked in self.asked if method == "GET" and path.endswith(name)]


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, whole: bool) -> None:
        raise NotImplementedError

    def say(self, status: int, headers: dict[str, str], body: bytes = b"", whole: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if whole and body:
            self.wfile.write(body)


class _Names(_Quiet):
    """huggingface.co/OWNER/NAME/resolve/REVISION/FILE and github.com/OWNER/NAME/releases/download/TAG/FILE."""

    def answer(self, whole: bool) -> None:
        world, path = self.world, self.path
        world.asked.append((self.command, path, self.headers.get("Range", "")))
        world.shown_tokens.append(("names", self.headers.get("Authorization", "")))
        if path in world.status:
            code, word = world.status[path]
            told = {"X-Error-Code": word, "X-Error-Message": world.message}
            self.say(code, {name: text for name, text in told.items() if text}, whole=whole)
        elif path == "/api/whoami-v2":
            self._who()
        elif path not in world.files:
            self.say(404, {"X-Error-Code": "EntryNotFound"} if "/resolve/" in path else {}, whole=whole)
        elif "/resolve/" in path:
            self._as_hub(path, world.files[path], whole)
        else:
            self.say(302, {"Location": f"{world.cdn}{path}"}, whole=whole)

    def _who(self) -> None:
        account = self.world.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None:
            self.say(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        token = {"accessToken": {"displayName": "laptop", "role": "read"}}
        self.say(200, {"Content-Type": "application/json"}, json.dumps({"name": account, "auth": token}).encode())

    def _as_hub(self, path: str, content: bytes, whole: bool) -> None:
        commit = {"X-Repo-Commit": self.world.commit} if self.world.commit else {}
        if len(content) < LARGE:
            self.say(
                200, {**commit, "ETag": f'"{git_sha1(content)}"', "Content-Length": str(len(content))}, content, whole
            )
            return
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        self.say(302, {**commit, **linked, "Location": f"{self.world.cdn}{path}"}, whole=whole)


class _Bytes(_Quiet):
    """The CDN."""

    def answer(self, whole: bool) -> None:
        world, path = self.world, self.path
        asked = self.headers.get("Range", "")
        world.asked.append((self.command, f"cdn{path}", asked))
        world.shown_tokens.append(("cdn", self.headers.get("Authorization", "")))
        if not whole and not world.heads:
            self.say(405, {}, whole=False)
            return
        content = world.sent_instead.get(path, world.files[path])
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and world.ranges else 0
        headers = {"ETag": f'"{sha256(world.files[path])[:16]}"', "Content-Length": str(len(content) - begin)}
        self.say(206 if begin else 200, headers, whole=False)
        if whole:
            self._send(path, content[begin:])

    def _send(self, path: str, content: bytes) -> None:
        cuts = self.world.cut.get(path, [])
        stop = cuts.pop(0) if cuts else len(content)
        for at in range(0, min(stop, len(content)), 2**18):
            if at >= 2**20:
                self.world.gate.wait(20)
            piece = content[at : min(at + 2**18, stop)]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.world.sent_bytes += len(piece)
        if stop < len(content):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)


@contextmanager
def running() -> Iterator[World]:
    """Both servers, on free ports of this computer."""
    world = World()
    world.gate.set()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type(f"Own{kind.__name__}", (kind,), {"world": world}))
        for kind in (_Names, _Bytes)
    ]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    world.address, world.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield world
    finally:
        world.gate.set()
        for server in servers:
            server.shutdown()
            server.server_close()
