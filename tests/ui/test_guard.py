"""Only the page's own browser tab gets an answer, and every answer carries its headers."""

from __future__ import annotations

from typing import Any

import pytest

from headshot_ui.ui.guard import Door, Guard, is_allowed

LINK = "abc123.gradio.live"


def finish(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing; no event loop is needed, and another may be running."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def answers(path: str, kind: str, door: Door | None, headers: dict[str, str | None]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        own = [(b"cache-control", b"public"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": own})

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:7860"} | headers
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value is not None]
    scope = {"type": kind, "path": path, "headers": raw, "scheme": "http", "method": "GET"}
    finish(Guard(app, door)(scope, None, send))  # type: ignore[arg-type]
    return sent


def answer(path: str = "/", kind: str = "http", door: Door | None = None, **headers: str | None) -> Any:
    """Status (or "closed") of one request; headers given as None are left out."""
    return answers(path, kind, door, headers)[0].get("status", "closed")


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
    assert not is_allowed(scope, Door())
    assert is_allowed(scope | {"headers": scope["headers"][:1]}, Door())


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


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/monitoring/summary", "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/token",
     "/gradio_api/proxy=https://a.hf.space/x", "/gradio_api/vibe-code", "/gradio_api/call/predict",
     "/gradio_api/api/predict", "/gradio_api/deep_link"],
)  # fmt: skip
def test_what_the_page_does_not_use_is_not_there(path):
    assert answer(path) == 404


def test_websockets_are_guarded_too_and_start_up_is_not():
    assert answer(kind="websocket", host="evil.com") == "closed"
    assert answer(kind="websocket") == 200
    assert answer(kind="lifespan", host=None) == 200


def test_a_public_name_passes_with_its_https_origin_whatever_host_a_relay_puts_in():
    door = Door(public_hosts=frozenset({LINK}))
    assert answer(door=door, host=LINK, origin=f"https://{LINK}") == 200
    assert answer(door=door, origin=f"https://{LINK}") == 200
    for origin in (f"http://{LINK}", f"https://{LINK}:444", f"https://x.{LINK}", "https://evil.gradio.live"):
        assert answer(door=door, origin=origin) == 403
    assert answer(host=LINK) == 403


def test_every_answer_forbids_guessing_types_framing_and_telling_other_websites():
    for path, status in (("/", 200), ("/monitoring", 404), ("/file=http://evil.com", 403)):
        start = answers(path, "http", None, {})[0]
        headers = dict(start["headers"])
        assert start["status"] == status
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"content-security-policy"] == b"frame-ancestors 'self'"
        assert headers[b"referrer-policy"] == b"same-origin"
    assert dict(answers("/", "http", None, {})[0]["headers"])[b"cache-control"] == b"public"
