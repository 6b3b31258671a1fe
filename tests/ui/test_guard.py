"""Only the page's own browser tab on this computer gets an answer."""

from __future__ import annotations

from typing import Any

import pytest

from headshot_ui.ui.guard import LOCAL_HOSTS, Guard, is_allowed


def finish(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing; no event loop is needed, and another may be running."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def answer(path: str = "/", kind: str = "http", **headers: str | None) -> Any:
    """Status (or "closed") of one request; headers given as None are left out."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:7860"} | headers
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value is not None]
    scope = {"type": kind, "path": path, "headers": raw, "scheme": "http"}
    finish(Guard(app)(scope, None, send))  # type: ignore[arg-type]
    return sent[0].get("status", "closed")


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:7860", "[::1]:7860"])
def test_the_own_names_of_this_computer_pass(host):
    assert answer(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.com", "evil.com:7860", "127.0.0.1.evil.com", "localhost.evil.com", "127.0.0.1@evil.com", "[::1",
     "127.0.0.1:port", "0.0.0.0:7860"],
)  # fmt: skip
def test_any_other_name_is_refused(host):
    assert answer(host=host) == 403


def test_two_hosts_are_refused():
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost"), (b"host", b"evil.com")]}
    assert not is_allowed(scope, LOCAL_HOSTS)
    assert is_allowed(scope | {"headers": scope["headers"][:1]}, LOCAL_HOSTS)


def test_the_pages_own_origin_passes():
    assert answer("/gradio_api/upload", origin="http://127.0.0.1:7860") == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.com", "https://evil.com:7860", "null", "", "http://127.0.0.1:9999", "http://127.0.0.1",
     "http://localhost:7860", "file://127.0.0.1:7860"],
)  # fmt: skip
def test_any_other_origin_is_refused(origin):
    assert answer("/gradio_api/upload", origin=origin) == 403


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=http://evil.com/x", "/gradio_api/file=HTTPS://evil.com", "/gradio_api/file=//evil.com/x",
     "/gradio_api/file=http%3A%2F%2Fevil.com", "/file=ftp://evil.com"],
)  # fmt: skip
def test_the_server_fetches_nothing_for_others(path):
    assert answer(path) == 403


@pytest.mark.parametrize("path", ["/gradio_api/file=/tmp/shown/a.png", "/gradio_api/file=C:/Temp/shown/a.png"])
def test_local_files_of_the_page_pass(path):
    assert answer(path) == 200


def test_websockets_are_guarded_too_and_start_up_is_not():
    assert answer(kind="websocket", host="evil.com") == "closed"
    assert answer(kind="websocket") == 200
    assert answer(kind="lifespan", host=None) == 200
