"""How wide the door is to be opened: what was asked for on the command line, checked and told plainly.

Without a word only this computer gets in. A public link (``--share``) or an address of the network (``--host``)
needs a user name and a password.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headshot_ui.errors import SetupError, SpecError

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
ANY_ADDRESS = ("0.0.0.0", "::")
PASSWORD_VARIABLE = "HEADSHOT_UI_PASSWORD"
PASSWORD_TRIES = 3
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


@dataclass(frozen=True)
class Wish:
    """What was asked for. Raises SpecError, naming the option at fault, for what cannot or must not be done."""

    host: str = "127.0.0.1"
    port: int | None = None  # None: the first free one
    share: bool = False
    user: str = ""
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.host != "localhost" and _address(self.host) is None:
            raise SpecError(
                "host",
                f"“{self.host}” is not an address: give 0.0.0.0 for every network of this computer, or one of: "
                + ", ".join(own_addresses()),
            )
        for name in self.allow_hosts:
            if not _NAME.fullmatch(name) and _address(name) is None:
                raise SpecError("allow_host", f"“{name}” is not a host name: give it without http:// and port.")
        if self.is_public and not self.user:
            what = "--share" if self.share else f"--host {self.host}" if not self.is_local else "--allow-host"
            raise SpecError(
                "user",
                f"{what} lets others reach this page, so it needs --user NAME and a password: "
                f"the password is asked for, or taken from {PASSWORD_VARIABLE} where there is no terminal.",
            )

    @property
    def is_local(self) -> bool:
        """Whether the page listens to this computer only."""
        address = _address(self.host)
        return self.host == "localhost" or (address is not None and address.is_loopback)

    @property
    def is_public(self) -> bool:
        """Whether anybody but this computer may get in."""
        return self.share or not self.is_local or bool(self.allow_hosts)

    @property
    def hosts(self) -> frozenset[str]:
        """Names and addresses under which the page answers at its own port."""
        if self.is_local:
            return LOCAL_HOSTS | {self.host}
        name = socket.gethostname().lower()
        own = {name, f"{name}.local", self.host, *own_addresses(loopback=True)}
        return LOCAL_HOSTS | {each for each in own if each}


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def own_addresses(loopback: bool = False) -> tuple[str, ...]:
    """The IP addresses of this computer's networks; those that mean only this computer too with ``loopback``."""
    import psutil

    found = []
    for cards in psutil.net_if_addrs().values():
        for card in cards:
            address = _address(card.address.partition("%")[0])
            if address is not None and (loopback or not (address.is_loopback or address.is_link_local)):
                found.append(str(address))
    return tuple(sorted(set(found), key=lambda text: (":" in text, text)))


def addresses(wish: Wish, port: int) -> list[str]:
    """What people can type to reach the page from their own computers."""
    if wish.is_local:
        return []
    hosts: list[str] = [wish.host]
    if wish.host in ANY_ADDRESS:
        hosts = [each for each in own_addresses() if ":" not in each or wish.host == "::"]
        hosts.append(socket.gethostname().lower())
    return [web_address(host, port) for host in hosts]


def web_address(host: str, port: int) -> str:
    """ "http://host:port/", with the brackets of IPv6."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def warnings(wish: Wish) -> Iterator[str]:
    """What becomes reachable to whom, before anything is opened."""
    everything = "everything on this page: all photos and pictures of all people in it, and training"
    if wish.share:
        yield (
            f"--share makes a public link. Whoever has the link, the user name and the password can use {everything}. "
            "All of it travels through Gradio's servers on the internet. "
            "The link lasts until you end the program, at most a week."
        )
    if not wish.is_local:
        yield (
            f"--host {wish.host} opens the page to the network. Whoever reaches this computer there and has the user "
            f"name and the password can use {everything}. It travels unencrypted: in networks that you do not trust, "
            "put a reverse proxy with https before it."
        )
    if wish.allow_hosts and wish.is_local:
        yield f"--allow-host lets {', '.join(wish.allow_hosts)} through, and with the password {everything}."


def ask_password(
    ask: Callable[[str], str] = getpass.getpass,
    terminal: Callable[[], bool] = lambda: sys.stdin is not None and sys.stdin.isatty(),
    check: Callable[[str], object] = lambda password: None,
) -> str:
    """The password: from the environment variable if it is set, else typed twice without being shown.

    The variable is removed, so that no program started from here inherits it. ``check`` raises SpecError for a
    password that is no good; at a terminal people may try again. Raises SpecError when there is no password.
    """
    given = os.environ.pop(PASSWORD_VARIABLE, None)
    if given is not None:
        check(given)
        return given
    if not terminal():
        raise SpecError(
            "password",
            f"There is no terminal to ask for the password: put it into the variable {PASSWORD_VARIABLE}.",
        )
    for tries_left in reversed(range(PASSWORD_TRIES)):
        try:
            password = ask("Password for the page (8 characters or more, not shown): ")
            check(password)
            if ask("The same again: ") == password:
                return password
            raise SpecError("password", "The two passwords differ: start again.")
        except SpecError as error:
            if not tries_left:
                raise
            print(error, file=sys.stderr, flush=True)
        except EOFError:
            break
    raise SpecError("password", "No password was given: the page is not opened.")


def check_bind(host: str) -> None:
    """Raises SetupError when ``host`` is no address of this computer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            own = ", ".join(own_addresses()) or "none"
            raise SetupError(
                f"{host} is not an address of this computer: give 0.0.0.0 for all of its networks, or one of: {own}."
            ) from error
