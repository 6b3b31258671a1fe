"""Start the page and keep it open until Ctrl-C: on this computer, and as far beyond it as was asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import SetupError
from headshot_ui.ui.door import Wish, addresses, check_bind, web_address
from headshot_ui.ui.guard import Door, Guard
from headshot_ui.ui.login import Credentials, LoginGate
from headshot_ui.ui.opening import Opening, nothing_thrown_away
from headshot_ui.ui.privacy import set_environment
from headshot_ui.ui.share import NO_LINK, NO_NETWORK, close_links, link_host, relay_answers, tidy_link
from headshot_ui.ui.uploads import FILE_BYTES, Uploads

if TYPE_CHECKING:
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import EngineLike

FIRST_PORT, PORTS_TRIED = 7860, 50
PORT_RACES = 5
_HERE = Path(__file__).parent


def serve(
    engine: EngineLike,
    settings: Settings,
    wish: Wish,
    credentials: Credentials | None = None,
    *,
    open_browser: bool = True,
    note: Callable[[str], None] = lambda address: None,
) -> None:
    """Show the page until Ctrl-C. ``note`` is told its address. Raises SetupError when the port is taken."""
    door = make_door(wish, credentials)
    share = wish.share and _can_share()
    with nothing_thrown_away():
        page, address = launch(engine, settings, wish.host, wish.port, door=door, share=share)
    note(address)
    try:
        with _ctrl_c_on_termination():
            _say_where(page, address, wish)
            if share and not page.share_url:
                print(NO_LINK, flush=True)
            print("Press Ctrl-C here to end the program.", flush=True)
            if open_browser:
                webbrowser.open(address)
            forever = threading.Event()
            while not forever.wait(1):  # a wait without end would not notice Ctrl-C on Windows
                pass
    except KeyboardInterrupt:
        busy = any(not job.snapshot.finished for job in engine.jobs())
        more = " What still runs is being cancelled; what is finished is kept." if busy else ""
        print(f"\nThe page is closed.{more}", flush=True)
    finally:
        close_links()
        page.close(verbose=False)


def make_door(wish: Wish, credentials: Credentials | None) -> Door:
    """The door as it was asked for; a link's own name is added once there is one."""
    gate = None if credentials is None else LoginGate(credentials)
    return Door(hosts=wish.hosts, public_hosts=frozenset(wish.allow_hosts), gate=gate)


def launch(
    engine: EngineLike,
    settings: Settings,
    host: str,
    port: int | None,
    *,
    door: Door | None = None,
    share: bool = False,
    **page_options: Any,
) -> tuple[Any, str]:
    """Start the server in the background; the gradio page and its address. Raises SetupError.

    With ``share`` this takes until the public link is there, at worst half a minute; without luck the page's
    ``share_url`` is None. The link's host is added to ``door``.
    """
    shown_dir = set_environment(host)
    from headshot_ui.ui.page import build_page

    door = door or Door()
    door.uploads = Uploads(shown_dir, (settings.outputs_dir,))
    page = build_page(engine, settings, shown_dir, **page_options)
    with tidy_link(shown_dir / "link") if share else contextlib.nullcontext():
        free = _launch_on_free_port(page, host, port, door, share)
    if page.share_url:
        name = frozenset({link_host(page.share_url)})
        door.public_hosts |= name
        door.https_hosts |= name
        # Only chooses between two copies of Gradio's scripts: its own, or those on a server of others.
        page.share = False
    return page, web_address(_shown(host), free)


def _launch_on_free_port(page: Any, host: str, port: int | None, door: Door, share: bool) -> int:
    from starlette.middleware import Middleware

    from headshot_ui.ui.page_js import ON_LOAD
    from headshot_ui.ui.theme import palette_css, theme

    for tries_left in reversed(range(PORT_RACES)):
        free = free_port(host, port)
        try:
            page.launch(
                server_name=f"[{host}]" if ":" in host else host, server_port=free, prevent_thread_lock=True,
                quiet=True, share=share, inbrowser=False, run_history=False, enable_monitoring=False, show_error=False,
                mcp_server=False, ssr_mode=False, footer_links=[], max_file_size=FILE_BYTES, theme=theme(),
                css=palette_css(), css_paths=style_sheets(), favicon_path=_HERE / "icon.svg", js=ON_LOAD,
                app_kwargs={"middleware": [Middleware(Guard, door=door), Middleware(Opening)],
                            "openapi_url": None, "docs_url": None, "redoc_url": None},
            )  # fmt: skip
            return free
        except OSError as error:  # another program was quicker since the port was found free
            if tries_left == 0:
                raise SetupError(f"The page could not be opened at port {free}: try again.") from error
    raise AssertionError("unreachable")


def style_sheets() -> list[Path]:
    """The page's own style first, then those of its parts."""
    return sorted(_HERE.glob("*.css"), key=lambda path: (path.name != "page.css", path.name))


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or the first free one of a few. Raises SetupError when it is taken, or the host not ours."""
    check_bind(host)
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if _is_free(host, port) and _is_free("127.0.0.1", port):  # gradio wants the port there too, wherever it serves
            return port
    if wanted:
        raise SetupError(f"Port {wanted} is used by another program: close it, or choose another with --port.")
    raise SetupError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} is free: name one with --port.")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":  # a port of a program that has just ended counts as free, as the server itself sees it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _can_share() -> bool:
    print("Asking for a public link …", flush=True)
    if relay_answers():
        return True
    print(NO_NETWORK, flush=True)
    return False


def _say_where(page: Any, address: str, wish: Wish) -> None:
    print(f"The page is open at {address}", flush=True)
    for other in addresses(wish, page.server_port):
        if other != address:
            print(f"From other computers: {other}", flush=True)
    if page.share_url:
        print(f"Public link: {page.share_url}", flush=True)


@contextlib.contextmanager
def _ctrl_c_on_termination() -> Iterator[None]:
    """Closing the terminal or shutting down the computer ends the program as tidily as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    present = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        present = []  # only the main thread may choose
    # What was started with nohup is to outlive its terminal.
    before = {each: signal.signal(each, stop) for each in present if signal.getsignal(each) != signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _shown(host: str) -> str:
    """The address for this computer's own browser."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
