"""How much may come in: counted byte by byte, with room on the disk that uploads share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.ui.privacy import sweep_unfinished
from headshot_ui.ui.uploads import Body, BodyRefused, Uploads

KIND = b"multipart/form-data; boundary=----abc"


def result(coroutine: Any) -> Any:
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value


class Wire:
    """What comes from the browser, message by message."""

    def __init__(self, *chunks: bytes, broken: bool = False) -> None:
        self.left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        self.left += [{"type": "http.disconnect"}] if broken else [{"type": "http.request", "body": b""}]

    async def __call__(self) -> Any:
        return self.left.pop(0)


def incoming(
    uploads: Uploads, *chunks: bytes, length: int | None = None, path: str = "/gradio_api/upload", broken: bool = False
) -> Body:
    headers = [(b"content-type", KIND)] + ([] if length is None else [(b"Content-Length", str(length).encode())])
    return uploads.incoming({"path": path, "headers": headers}, Wire(*chunks, broken=broken))


def read(body: Body, messages: int) -> None:
    for _ in range(messages):
        result(body.receive())


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, request_bytes=1000, other_bytes=100, reserve_bytes=500, free_bytes=lambda path: 10_000)


def test_what_fits_comes_through_unchanged(uploads):
    body = incoming(uploads, b"a" * 600, b"b" * 400, length=1000)
    assert body.refused is None and uploads.under_way
    assert result(body.receive())["body"] == b"a" * 600
    assert list(uploads.under_way.values()) == [400]
    assert result(body.receive())["body"] == b"b" * 400
    body.close()
    assert uploads.under_way == {}


def test_a_request_that_says_it_is_too_large_is_refused_at_once(uploads):
    body = incoming(uploads, length=1001)
    assert body.refused is not None and body.refused.status == 413
    assert "send fewer" in body.refused.sentence and uploads.under_way == {}


def test_a_request_that_does_not_say_it_is_refused_on_the_way(uploads):
    body = incoming(uploads, b"a" * 600, b"b" * 401)
    read(body, 1)
    with pytest.raises(BodyRefused):
        read(body, 1)
    assert body.refused is not None and body.refused.status == 413 and uploads.under_way == {}


def test_other_requests_may_be_small_only(uploads):
    assert incoming(uploads, length=100, path="/gradio_api/queue/join").refused is None
    refused = incoming(uploads, length=101, path="/gradio_api/queue/join").refused
    assert refused is not None and refused.status == 413
    with pytest.raises(BodyRefused):
        read(incoming(uploads, b"a" * 101, path="/gradio_api/run/predict"), 1)


def test_uploads_at_the_same_time_share_what_is_free(uploads):
    uploads.free_bytes = lambda path: 2000
    first = incoming(uploads, length=900)
    second = incoming(uploads, length=601)
    assert first.refused is None and second.refused is not None and second.refused.status == 507
    assert "make room there" in second.refused.sentence
    third = incoming(uploads, length=600)
    assert third.refused is None
    first.close()
    assert incoming(uploads, length=800).refused is None


def test_the_fullest_disk_counts(tmp_path):
    free = {tmp_path: 10_000, tmp_path / "outputs": 400}
    uploads = Uploads(tmp_path, (tmp_path / "outputs",), reserve_bytes=500, free_bytes=free.__getitem__)
    assert incoming(uploads, length=1).refused is not None
    free[tmp_path / "outputs"] = 600
    assert incoming(uploads, length=1).refused is None


def test_the_reserve_is_watched_while_unannounced_bytes_come(uploads, monkeypatch):
    monkeypatch.setattr("headshot_ui.ui.uploads.CHECK_EVERY_BYTES", 100)
    body = incoming(uploads, b"a" * 100, b"b" * 100)
    read(body, 1)
    uploads.free_bytes = lambda path: 499
    with pytest.raises(BodyRefused):
        read(body, 1)
    assert body.refused is not None and body.refused.status == 507


def test_files_are_counted_across_the_edges_of_chunks(uploads):
    uploads.request_files = 3
    whole = b"------abc\r\nx\r\n" * 3 + b"------abc--\r\n"
    for size in (1, 5, 7, 1000):
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        body = incoming(uploads, *chunks)
        read(body, len(chunks))
        assert body.refused is None
    more = b"------abc\r\nx\r\n" * 5
    for size in (5, 33):
        body = incoming(uploads, *(more[start : start + size] for start in range(0, len(more), size)))
        with pytest.raises(BodyRefused, match="More than 3 files"):
            read(body, 100)


def test_an_upload_that_breaks_off_ends_so_that_gradio_removes_its_files(uploads):
    body = incoming(uploads, b"a", broken=True)
    read(body, 1)
    with pytest.raises(BodyRefused):
        read(body, 1)
    done = incoming(uploads)
    read(done, 1)  # the whole body has come: what follows is only the end of the connection
    done._receive = Wire(broken=True)
    assert result(done.receive())["type"] == "http.disconnect"


def test_leftovers_are_swept_when_an_upload_begins_and_none_is_under_way(uploads, tmp_path):
    old, new, other = tmp_path / "tmpold", tmp_path / "tmpnew", tmp_path / "photo.jpg"
    for path in (old, new, other):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    (tmp_path / "tmpfolder").mkdir()
    uploads.under_way[1] = 5
    incoming(uploads, length=5)
    assert old.exists()
    uploads.under_way.clear()
    incoming(uploads, length=5)
    assert not old.exists() and new.exists() and other.exists() and (tmp_path / "tmpfolder").is_dir()
    sweep_unfinished(tmp_path, older_than_s=-1)
    assert not new.exists()
