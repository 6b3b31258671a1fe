"""The door of a running server: raw requests, as programs that are no browser send them."""

from __future__ import annotations

import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.ui.door import Wish
from headshot_ui.ui.guard import Door
from headshot_ui.ui.login import Credentials, LoginGate
from headshot_ui.ui.serve import make_door
from headshot_ui.ui.uploads import FILE_BYTES
from tests.ui.tiny_page import PASSWORD, USER, Running, running

BOUNDARY = "----------------frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
LINK = "abc123.gradio.live"


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Open to every network, with a password."""
    door = make_door(Wish("0.0.0.0", user=USER), Credentials(USER, PASSWORD))
    with running(tmp_path_factory.mktemp("protected"), door, "0.0.0.0") as server:
        yield server


@pytest.fixture(autouse=True)
def as_before(protected: Running) -> Iterator[None]:
    """Tests of this file change the limits and use up tries."""
    uploads, before = protected.door.uploads, dict(vars(protected.door.uploads))
    yield
    vars(uploads).update(before)
    protected.door.gate = LoginGate(Credentials(USER, PASSWORD))


def multipart(*files: bytes) -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="files"; filename="%d.jpg"\r\n\r\n%s\r\n'
        % (BOUNDARY.encode(), number, data)
        for number, data in enumerate(files)
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def upload(server: Running, body: Any, **headers: str) -> Any:
    return server.ask("/gradio_api/upload", "POST", body, content_type=MULTIPART, cookie=server.cookie(), **headers)


def in_upload_dir(server: Running) -> list[str]:
    return sorted(path.name for path in server.door.uploads.upload_dir.glob("tmp*"))


# --- who --------------------------------------------------------------------------------------------
def test_nothing_but_the_login_is_answered_without_a_session(protected):
    refused = 0
    for path, methods in protected.page.app.openapi()["paths"].items():
        path = re.sub(r"\{[^}]*\}", "x", path)
        if path.rstrip("/") in ("/login", "/logout", "/gradio_api/startup-events", "/robots.txt"):
            continue
        for method in methods:
            answer = protected.ask(path, method.upper(), accept="*/*")
            assert answer.status == 401, f"{method} {path}: {answer.status}"
            assert b"Log in first" in answer.body or method == "head"
            refused += 1
    assert refused > 60  # it did look at Gradio's routes


def test_a_session_opens_the_page_and_its_files(protected):
    cookie = protected.cookie()
    page = protected.ask("/", cookie=cookie)
    assert page.status == 200 and b"Count" in page.body and b"amazonaws" not in page.body
    assert page.headers["cache-control"] == "no-store"
    assert protected.ask("/config", cookie=cookie).status == 200
    (path,) = upload(protected, multipart(b"picture")).body.decode().strip('[]"').split(",")
    fetched = protected.ask(f"/gradio_api/file={path}", cookie=cookie)
    assert fetched.body == b"picture" and fetched.headers["cache-control"] == "no-store"
    assert protected.ask(f"/gradio_api/file={path}").status == 401
    assert stat.S_IMODE(Path(path).parents[1].stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("path", ["/gradio_api/cancel", "/gradio_api/reset"])
def test_strangers_cannot_cancel_what_others_do(protected, path):
    body = '{"session_hash": "a", "fn_index": 0, "event_id": "b"}'
    assert protected.ask(path, "POST", body, content_type="application/json").status == 401
    session = protected.ask(path, "POST", body, content_type="application/json", cookie=protected.cookie())
    assert session.status == 200


def test_wrong_passwords_have_to_wait(protected):
    for _ in range(5):
        assert protected.log_in(password="wrong wrong").status == 401
    protected.log_in(password="wrong wrong")
    late = protected.log_in()
    assert late.status == 429 and "Too many wrong tries" in late.text and "set-cookie" not in late.headers


def test_forged_hosts_and_origins_are_refused_even_with_a_session(protected):
    cookie = protected.cookie()
    own = f"http://127.0.0.1:{protected.port}"
    for host in ("evil.com", "127.0.0.1.evil.com", LINK):
        assert protected.ask(host=host, cookie=cookie).status == 403
    for origin in ("http://evil.com", "null", f"https://{LINK}"):
        assert protected.ask("/config", origin=origin, cookie=cookie).status == 403
        assert upload(protected, multipart(b"x"), origin=origin).status == 403
        assert protected.log_in(origin=origin).status == 403
    assert protected.ask("/config", origin=own, cookie=cookie).status == 200


def test_on_a_network_every_own_name_works(protected):
    for host in ("localhost", socket.gethostname().lower(), *Wish("0.0.0.0", user=USER).hosts):
        shown = f"[{host}]" if ":" in host else host
        assert protected.ask("/login", host=shown).status == 200, host


# --- how much ---------------------------------------------------------------------------------------
def test_an_announced_upload_over_the_limit_is_refused_in_words(protected):
    protected.door.uploads.request_bytes = 1_000_000
    answer = upload(protected, multipart(b"a" * 60_000_000))  # more than any buffer on the way
    assert answer.status == 413 and "send fewer at a time" in answer.text
    assert upload(protected, multipart(b"a" * 900_000)).status == 200


def test_an_upload_of_unknown_length_is_counted(protected):
    protected.door.uploads.request_bytes = 1_000_000
    before = in_upload_dir(protected)

    def chunks(size: int) -> Iterator[bytes]:
        body = multipart(b"a" * size)
        yield from (body[start : start + 50_000] for start in range(0, len(body), 50_000))

    answer = upload(protected, chunks(3_000_000))
    assert answer.status == 413 and "send fewer at a time" in answer.text
    assert in_upload_dir(protected) == before  # and nothing half-written stays
    assert upload(protected, chunks(800_000)).status == 200
    assert _within(5, lambda: protected.door.uploads.under_way == {})


def test_the_disk_reserve_is_kept(protected):
    uploads = protected.door.uploads
    uploads.reserve_bytes, uploads.free_bytes = 2_000_000, lambda path: 2_500_000
    assert upload(protected, multipart(b"a" * 400_000)).status == 200
    answer = upload(protected, multipart(b"a" * 600_000))
    assert answer.status == 507 and "make room there" in answer.text


def test_too_many_files_are_refused(protected):
    protected.door.uploads.request_files = 3
    assert upload(protected, multipart(b"1", b"2", b"3")).status == 200
    answer = upload(protected, multipart(b"1", b"2", b"3", b"4"))
    assert answer.status == 413 and "More than 3 files" in answer.text


def test_one_file_has_a_limit_that_the_browser_knows_too(protected):
    assert protected.page.max_file_size == FILE_BYTES >= 200 * 2**20


def test_other_requests_cannot_fill_the_memory(protected):
    cookie = protected.cookie()
    answer = protected.ask("/gradio_api/run/predict", "POST", b" " * (17 * 2**20), cookie=cookie)
    assert answer.status == 413


def test_an_upload_that_breaks_off_leaves_no_file(protected):
    before = in_upload_dir(protected)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{protected.port}\r\nCookie: {protected.cookie()}\r\n"
        f"Content-Type: {MULTIPART}\r\nContent-Length: 5000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", protected.port)) as connection:
        connection.sendall(head.encode() + multipart(b"a" * 1_000_000)[:900_000])
        assert _within(5, lambda: protected.door.uploads.under_way and in_upload_dir(protected) != before)
    assert _within(5, lambda: not protected.door.uploads.under_way and in_upload_dir(protected) == before)


def _within(seconds: float, holds: Any) -> bool:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True


# --- a public link ----------------------------------------------------------------------------------
def test_a_link_opens_its_own_name_only_once_it_is_there(tmp_path, monkeypatch, capsys):
    from gradio import networking

    door = make_door(Wish(share=True, user=USER), Credentials(USER, PASSWORD))
    seen = []

    def setup_tunnel(**options: Any) -> str:
        seen.append(door.hosts | door.public_hosts)
        print("noise of the relay program")
        return f"https://{LINK}"

    monkeypatch.setattr(networking, "setup_tunnel", setup_tunnel)
    with running(tmp_path, door, share=True) as server:
        assert LINK not in seen[0] and LINK in door.public_hosts
        assert server.page.share_url == f"https://{LINK}"
        assert server.ask(host=LINK, accept="text/html").headers["location"] == "/login"
        answer = server.log_in(host=LINK, origin=f"https://{LINK}:{server.port}")
        assert answer.status == 303 and answer.headers["set-cookie"].endswith("; Secure")
        assert server.ask("/config", host=LINK).status == 401
        assert server.ask(host="other.gradio.live").status == 403
        page = server.ask(cookie=server.cookie())
        assert page.status == 200 and b"amazonaws" not in page.body  # Gradio would send people there for its scripts
    assert "noise" not in capsys.readouterr().out


def test_without_a_link_the_page_works_on_this_computer(tmp_path, monkeypatch, capsys):
    from gradio import networking

    def setup_tunnel(**options: Any) -> str:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    monkeypatch.setattr(networking, "setup_tunnel", setup_tunnel)
    door = make_door(Wish(share=True, user=USER), Credentials(USER, PASSWORD))
    with running(tmp_path, door, share=True) as server:
        assert server.page.share_url is None and door.public_hosts == frozenset()
        assert server.ask(cookie=server.cookie()).status == 200


def test_without_a_password_the_local_page_is_as_before(tmp_path):
    door = Door()
    with running(tmp_path, door, "127.0.0.1") as server:
        page = server.ask()
        assert page.status == 200 and page.headers["x-content-type-options"] == "nosniff"
        assert server.ask("/config", host="localhost").status == 200
        assert server.ask(host=socket.gethostname()).status == 403


def test_the_page_opens_on_ipv6_too(tmp_path):
    if not _has_ipv6():
        return  # nothing to open
    with (
        running(tmp_path, make_door(Wish("::1"), None), "::1") as server,
        socket.create_connection(("::1", server.port), 5) as connection,
    ):
        connection.sendall(f"GET / HTTP/1.0\r\nHost: [::1]:{server.port}\r\n\r\n".encode())
        assert b" 200 " in connection.recv(100)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
