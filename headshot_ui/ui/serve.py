"""Start the page on this computer and keep it open until Ctrl-C."""

from __future__ import annotations

import os
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import SetupError
from headshot_ui.ui.guard import Guard
from headshot_ui.ui.privacy import set_environment

if TYPE_CHECKING:
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import EngineLike

FIRST_PORT, PORTS_TRIED = 7860, 50
PORT_RACES = 5
_HERE = Path(__file__).parent
#: Gradio calls its thumbnails "Thumbnail 1 of 9" to people who cannot see them; the caption says more.
NAME_THUMBNAILS = """() => {
  const name = () => document.querySelectorAll('button.thumbnail-item img[alt]').forEach((image) => {
    const button = image.closest('button');
    if (image.alt && button.getAttribute('aria-label') !== image.alt) button.setAttribute('aria-label', image.alt);
  });
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}"""


def serve(engine: EngineLike, settings: Settings, host: str, port: int | None, open_browser: bool = True) -> None:
    """Show the page until Ctrl-C. Raises SetupError when the port is taken."""
    page, address = launch(engine, settings, host, port)
    print(f"The page is open at {address}\nPress Ctrl-C here to end the program.", flush=True)
    if open_browser:
        webbrowser.open(address)
    forever = threading.Event()
    try:
        while not forever.wait(1):  # a wait without end would not notice Ctrl-C on Windows
            pass
    except KeyboardInterrupt:
        print("\nThe page is closed.", flush=True)
    finally:
        page.close(verbose=False)


def launch(engine: EngineLike, settings: Settings, host: str, port: int | None, **page_options: Any) -> tuple[Any, str]:
    """Start the server in the background; the gradio page and its address."""
    shown_dir = set_environment()
    from starlette.middleware import Middleware

    from headshot_ui.ui.page import build_page
    from headshot_ui.ui.theme import palette_css, theme

    page = build_page(engine, settings, shown_dir, **page_options)
    page.queue(max_size=20)
    for tries_left in reversed(range(PORT_RACES)):
        free = free_port(host, port)
        try:
            page.launch(
                server_name=host, server_port=free, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
                run_history=False, enable_monitoring=False, show_error=False, mcp_server=False, ssr_mode=False,
                footer_links=[], max_file_size="500mb", theme=theme(), css=palette_css(),
                css_paths=[_HERE / "page.css"], favicon_path=_HERE / "icon.svg", js=NAME_THUMBNAILS,
                app_kwargs={"middleware": [Middleware(Guard)], "openapi_url": None, "docs_url": None,
                            "redoc_url": None},
            )  # fmt: skip
            break
        except OSError as error:  # another program was quicker since the port was found free
            if tries_left == 0:
                raise SetupError(f"The page could not be opened at port {free}: try again.") from error
    shown_host = f"[{host}]" if ":" in host else host
    return page, f"http://{shown_host}:{free}/"


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or the first free one of a few. Raises SetupError when it is taken."""
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # a port of a program that has just ended counts as free, as the server itself sees it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue
    if wanted:
        raise SetupError(f"Port {wanted} is used by another program: close it, or choose another with --port.")
    raise SetupError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} is free: name one with --port.")
