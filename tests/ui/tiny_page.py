"""A page with one upload field and one button, behind the real door: what surrounds the page, without the page."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from headshot_ui.settings import Settings
from headshot_ui.ui import page as page_module
from headshot_ui.ui import serve
from headshot_ui.ui.guard import Door
from headshot_ui.ui.page_js import READY
from tests.ui.fake_engine import FakeEngine

USER, PASSWORD = "anna", "correct horse"


def build_tiny(engine: Any, settings: Any, shown_dir: Path, **_: Any) -> Any:
    import gradio as gr

    with gr.Blocks(title="Headshots", analytics_enabled=False) as page:
        gr.HTML("<h1>Headshots</h1>")
        files = gr.File(file_count="multiple", elem_id="files")
        said = gr.Textbox(label="Said", elem_id="said")
        files.upload(lambda given: f"{len(given)} files", files, said, queue=False)
        gr.Button("Count", elem_id="count").click(lambda: "counted", None, said)
        page.load(None, js=READY)
    return page


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass
class Running:
    """A server in this process and the door it has."""

    page: Any
    door: Door
    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(
        self, path: str = "/", method: str = "GET", body: Any = None, host: str = "127.0.0.1", **headers: str
    ) -> Answer:
        """One raw request; underscores in header names stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"Host": f"{host}:{self.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, given)
            came = connection.getresponse()
            known = {name.lower(): value for name, value in came.getheaders()}
            endless = "text/event-stream" in known.get("content-type", "")
            return Answer(came.status, known, b"" if endless else came.read())
        finally:
            connection.close()

    def log_in(self, user: str = USER, password: str = PASSWORD, **options: str) -> Answer:
        body = urlencode({"user": user, "password": password})
        return self.ask("/login", "POST", body, content_type="application/x-www-form-urlencoded", **options)

    def cookie(self) -> str:
        """The cookie of a new session, as browsers send it."""
        return self.log_in().headers["set-cookie"].partition(";")[0]


@contextmanager
def running(
    tmp_path: Path, door: Door, host: str = "127.0.0.1", port: int | None = None, **options: Any
) -> Iterator[Running]:
    """The tiny page behind ``door``."""
    settings = Settings.from_environment(outputs_dir=tmp_path / "outputs")
    engine = FakeEngine(settings)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", "")  # back to that of another such page when this one ends
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page_module, "build_page", build_tiny)
            page, _ = serve.launch(engine, settings, host, port, door=door, **options)  # type: ignore[arg-type]
        assert door.uploads is not None
        door.uploads.reserve_bytes = 0  # the tests' own disk may be nearly full
        try:
            yield Running(page, door, page.server_port)
        finally:
            engine.close()
            page.close(verbose=False)
