"""How much may come in: per request, in files, and never so much that the disk is full.

Gradio itself limits one file; here is what it leaves open. All bytes are counted on their way in, whether or not
the request said beforehand how many they are, and uploads that run at the same time share what is free.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.formparsers import MultiPartException

from headshot_ui.store import free_bytes, readable_bytes
from headshot_ui.ui.privacy import sweep_unfinished

FILE_BYTES = 300 * 2**20  # a zip of an album; a single photo is far smaller
REQUEST_BYTES = 2 * 2**30
REQUEST_FILES = 500
OTHER_BYTES = 16 * 2**20  # what the page sends besides files is a few kB
DISK_RESERVE_BYTES = 2 * 2**30  # stays free, for what is made of the photos and for everything else on the computer
CHECK_EVERY_BYTES = 8 * 2**20
_BOUNDARY = re.compile(rb"""boundary=(?:"([^"]+)"|([^;,\s]+))""", re.IGNORECASE)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class BodyRefused(MultiPartException):
    """What came in is too much. Gradio removes its half-written files at exactly this kind of exception."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass
class Uploads:
    """What all requests of one page share. Only the server's own thread uses it."""

    upload_dir: Path
    other_disks: tuple[Path, ...] = ()  # keep the reserve too: uploads are copied there
    request_bytes: int = REQUEST_BYTES
    request_files: int = REQUEST_FILES
    other_bytes: int = OTHER_BYTES
    reserve_bytes: int = DISK_RESERVE_BYTES
    free_bytes: Callable[[Path], int] = free_bytes
    under_way: dict[int, int] = field(default_factory=dict)  # bytes each upload has still to write

    def incoming(self, scope: MutableMapping[str, Any], receive: Receive) -> Body:
        """The body of one request, to be read instead of ``receive`` and closed at the end.

        Whether it was refused, at once or on the way, stands in its ``refused``.
        """
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        return Body(self, is_upload, _header(scope, b"content-length"), _header(scope, b"content-type"), receive)

    def check_room(self) -> None:
        """Raises BodyRefused when the reserve would be touched by what is under way."""
        free = min(self.free_bytes(disk) for disk in (self.upload_dir, *self.other_disks))
        if free - sum(self.under_way.values()) < self.reserve_bytes:
            raise BodyRefused(
                507,
                "The disk of the computer that runs this page is too full for these files "
                f"({readable_bytes(free)} free, {readable_bytes(self.reserve_bytes)} stay free): "
                "make room there, then send them again.",
            )


class Body:
    """One request body on its way in."""

    def __init__(self, uploads: Uploads, is_upload: bool, length: bytes, kind: bytes, receive: Receive) -> None:
        self.refused: BodyRefused | None = None
        self._uploads = uploads
        self._is_upload = is_upload
        self._receive = receive
        self._most = uploads.request_bytes if is_upload else uploads.other_bytes
        self._came = self._checked = self._parts = 0
        self._ended = False
        found = _BOUNDARY.search(kind)
        self._marker = b"--" + (found[1] or found[2]) if found and is_upload else b""
        self._tail = b""
        self._begin(int(length) if length.isdigit() else 0)

    def _begin(self, said: int) -> None:
        try:
            self._check_size(said)
            if self._is_upload:
                if not self._uploads.under_way:  # what is unfinished now was left behind by a browser that went away
                    sweep_unfinished(self._uploads.upload_dir)
                self._uploads.under_way[id(self)] = said
                self._uploads.check_room()
        except BodyRefused as refused:
            self.refused = refused
            self.close()

    async def receive(self) -> Message:
        """As ASGI's ``receive``; raises BodyRefused when too much came in, or the browser went away half-way."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._is_upload and not self._ended:
            raise BodyRefused(400, "The upload was broken off.")
        if message["type"] != "http.request":
            return message
        data: bytes = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        try:
            self._count(data)
        except BodyRefused as refused:
            self.refused = refused
            self.close()
            raise
        return message

    def _count(self, data: bytes) -> None:
        self._came += len(data)
        self._check_size(self._came)
        if not self._is_upload:
            return
        self._check_files(data)
        under_way = self._uploads.under_way
        under_way[id(self)] = max(0, under_way.get(id(self), 0) - len(data))
        if self._came - self._checked >= CHECK_EVERY_BYTES:
            self._checked = self._came
            self._uploads.check_room()

    def _check_size(self, size: int) -> None:
        if size <= self._most:
            return
        most = readable_bytes(self._most)
        if self._is_upload:
            raise BodyRefused(413, f"These files have more than {most} together: send fewer at a time.")
        raise BodyRefused(413, f"The page never sends more than {most} but for files: reload it and try again.")

    def _check_files(self, data: bytes) -> None:
        if not self._marker:
            return
        window = self._tail + data
        self._parts += window.count(self._marker)
        self._tail = window[max(0, len(window) - len(self._marker) + 1) :]
        if self._parts > self._uploads.request_files + 1:  # the last marker only ends the body
            raise BodyRefused(413, f"More than {self._uploads.request_files} files came at once: send fewer at a time.")

    def close(self) -> None:
        """Give back the room that was set aside."""
        self._uploads.under_way.pop(id(self), None)


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), b"")
