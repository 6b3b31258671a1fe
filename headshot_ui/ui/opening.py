"""What is seen and what is spared while the page opens.

Gradio sends an empty document and draws everything by scripts, which takes a busy computer seconds: until then the
browser would show nothing at all. So a sentence is put into the document itself.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from headshot_ui.collecting import nothing_collected

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Send], Awaitable[None]]

PLACE = b"<gradio-app"  # where gradio's scripts will draw; once they have, the sentence is gone
SENTENCE = (
    b"<style>.hs-opening{margin:auto;padding:24px;font:1.1rem system-ui,sans-serif}"
    b".hs-opening:has(+gradio-app .gradio-container),.hs-ready .hs-opening{display:none}</style>"
    b'<p class="hs-opening" role="status">Opening the page \xe2\x80\xa6</p>'
)


class Opening:
    """ASGI middleware that puts ``SENTENCE`` into the page's document; everything else passes through untouched."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        document = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        await self.app(scope, receive, _with_sentence(send) if document else send)


def _with_sentence(send: Send) -> Send:
    start: Message | None = None  # held back until the length of the body is known
    parts: list[bytes] = []

    async def sent(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and _is_plain_html(message):
            start = message
        elif start is None or message["type"] != "http.response.body":
            await send(message)
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(parts).replace(PLACE, SENTENCE + PLACE, 1)
                headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                await send({"type": "http.response.body", "body": body})

    return sent


def _is_plain_html(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message.get("headers", [])}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers


@contextmanager
def nothing_thrown_away() -> Iterator[None]:
    """Keep Python from looking for garbage while the block imports and builds things that all stay.

    Importing gradio and building the page make hundreds of thousands of objects, and the collector goes through all
    of them again and again: a seventh of the time from start to page, for 3 MB. Afterwards it works as ever, but
    passes what is there by.
    """
    with nothing_collected():
        try:
            yield
        finally:
            gc.freeze()
