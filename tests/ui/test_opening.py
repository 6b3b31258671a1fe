"""What is seen and what is spared while the page opens."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from headshot_ui.ui.opening import SENTENCE, Opening, nothing_thrown_away

HTML = [(b"Content-Type", b"text/html; charset=utf-8"), (b"Content-Length", b"40"), (b"x-own", b"1")]
PAGE = [b"<body>", b"<gradio-app></gradio-app><gradio-app/>"]


def answered(path: str, headers: list[tuple[bytes, bytes]], parts: list[bytes], method: str = "GET") -> Any:
    """Headers and body as they leave the middleware."""
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async def keep(message: Any) -> None:
        sent.append(message)

    asyncio.run(Opening(app)({"type": "http", "method": method, "path": path}, None, keep))
    body = b"".join(message.get("body", b"") for message in sent)
    return dict(sent[0]["headers"]), body


def test_the_document_itself_says_something() -> None:
    headers, body = answered("/", HTML, PAGE)
    assert body == b"<body>" + SENTENCE + PAGE[1]  # once, in front of where gradio draws
    assert int(headers[b"content-length"]) == len(body)  # or a browser would cut the page off
    assert headers[b"x-own"] == b"1" and len(headers) == 3


@pytest.mark.parametrize(
    ("path", "headers", "method"),
    [
        ("/assets/index.html", HTML, "GET"),
        ("/", HTML, "HEAD"),
        ("/", [(b"content-type", b"application/json")], "GET"),
        ("/", [*HTML, (b"content-encoding", b"gzip")], "GET"),
    ],
)
def test_everything_else_passes_through(path: str, headers: Any, method: str) -> None:
    assert answered(path, headers, PAGE, method) == (dict(headers), b"".join(PAGE))


def test_no_garbage_is_looked_for_within_the_block() -> None:
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ValueError), nothing_thrown_away():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() and gc.get_freeze_count() > before  # later collections pass by what is there
    finally:
        gc.unfreeze()
