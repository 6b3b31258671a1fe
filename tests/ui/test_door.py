"""What was asked for at the door: checked, told plainly, and the password asked for where nobody reads along."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from headshot_ui.errors import SetupError, SpecError
from headshot_ui.ui import door as door_module
from headshot_ui.ui import share
from headshot_ui.ui.door import Wish, addresses, ask_password, check_bind, own_addresses, warnings
from headshot_ui.ui.login import Credentials

ADDRESSES = ("192.168.1.5", "10.0.0.5", "2001:db8::5")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(loopback: bool = False) -> tuple[str, ...]:
        return (*ADDRESSES, "127.0.0.1") if loopback else ADDRESSES

    monkeypatch.setattr(door_module, "own_addresses", own)
    monkeypatch.setattr(socket, "gethostname", lambda: "Studio")


def test_without_a_word_only_this_computer_gets_in():
    wish = Wish()
    assert not wish.is_public and wish.hosts == {"127.0.0.1", "localhost", "::1"}
    assert list(warnings(wish)) == [] and addresses(wish, 7860) == []
    for host in ("localhost", "::1", "127.0.0.2"):
        assert not Wish(host).is_public and host in Wish(host).hosts


@pytest.mark.parametrize(
    "wish",
    [{"share": True}, {"host": "0.0.0.0"}, {"host": "192.168.1.5"}, {"host": "::"}, {"allow_hosts": ("a.example",)}],
)
def test_whatever_lets_others_in_needs_a_user(network, wish):
    with pytest.raises(SpecError, match="--user NAME") as refused:
        Wish(**wish)
    assert refused.value.field == "user" and "HEADSHOT_UI_PASSWORD" in str(refused.value)
    assert Wish(**wish, user="anna").is_public


@pytest.mark.parametrize("host", ["evil.com", "", "0.0.0.0:7860", "http://0.0.0.0"])
def test_what_is_no_address_is_refused_with_those_there_are(network, host):
    with pytest.raises(SpecError, match=r"0\.0\.0\.0.*192\.168\.1\.5"):
        Wish(host, user="anna")


@pytest.mark.parametrize("name", ["http://a.example", "a.example:443", "", "a b", "*"])
def test_a_host_name_is_given_bare(name):
    with pytest.raises(SpecError, match="without http"):
        Wish(user="anna", allow_hosts=(name,))


def test_on_a_network_the_page_answers_to_this_computers_own_names_and_addresses(network):
    wish = Wish("0.0.0.0", user="anna")
    assert {"studio", "studio.local", "192.168.1.5", "2001:db8::5", "127.0.0.1", "localhost"} <= wish.hosts
    assert "evil.com" not in wish.hosts
    assert addresses(wish, 80) == ["http://192.168.1.5:80/", "http://10.0.0.5:80/", "http://studio:80/"]
    assert "http://[2001:db8::5]:80/" in addresses(Wish("::", user="anna"), 80)
    assert addresses(Wish("10.0.0.5", user="anna"), 80) == ["http://10.0.0.5:80/"]


def test_it_is_said_who_can_reach_what(network):
    (told,) = warnings(Wish(share=True, user="anna"))
    assert "public link" in told and "all photos" in told and "at most a week" in told and "internet" in told
    (told,) = warnings(Wish("0.0.0.0", user="anna"))
    assert "network" in told and "all photos" in told and "unencrypted" in told


def test_an_address_of_another_computer_is_told_apart_from_a_port_in_use():
    check_bind("127.0.0.1")
    with pytest.raises(SetupError, match="not an address of this computer"):
        check_bind("203.0.113.77")


def test_own_addresses_are_this_computers():
    assert "127.0.0.1" in own_addresses(loopback=True) and "127.0.0.1" not in own_addresses()


# --- the password -----------------------------------------------------------------------------------
def good(password: str) -> object:
    return Credentials("anna", password)


def typing(*typed: str):  # noqa: ANN201
    left = list(typed)
    return lambda prompt: left.pop(0)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSHOT_UI_PASSWORD", raising=False)


def test_the_password_is_typed_twice(capsys):
    typed = typing("short", "correct horse", "correct hose", "correct horse", "correct horse")
    assert ask_password(typed, lambda: True, good) == "correct horse"
    told = capsys.readouterr().err
    assert "too short" in told and "differ" in told and "horse" not in told


def test_three_bad_passwords_are_enough():
    with pytest.raises(SpecError, match="too short"):
        ask_password(typing("a", "b", "c"), lambda: True, good)


def test_without_a_terminal_it_comes_from_the_environment_and_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("HEADSHOT_UI_PASSWORD", "correct horse")
    assert ask_password(typing(), lambda: False, good) == "correct horse"
    assert "HEADSHOT_UI_PASSWORD" not in os.environ
    with pytest.raises(SpecError, match="variable HEADSHOT_UI_PASSWORD"):
        ask_password(typing(), lambda: False, good)
    monkeypatch.setenv("HEADSHOT_UI_PASSWORD", "")
    with pytest.raises(SpecError, match="empty"):
        ask_password(typing(), lambda: False, good)


# --- the link ---------------------------------------------------------------------------------------
def test_no_network_is_found_out_within_four_seconds(monkeypatch):
    def swallowed(*_: object) -> None:
        threading.Event().wait(10)
        raise OSError("timed out")

    monkeypatch.setattr(socket, "create_connection", swallowed)
    started = time.monotonic()
    assert not share.relay_answers()
    assert time.monotonic() - started < 4

    def refused(*_: object) -> None:
        raise OSError("no route")

    assert not share.relay_answers(refused)


def test_the_link_service_is_asked_for_on_its_own_port():
    asked = []

    class Connection:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def connect(address: object, timeout: float) -> Connection:
        asked.append((address, timeout))
        return Connection()

    assert share.relay_answers(connect) and asked == [(("api.gradio.app", 443), 3.0)]


def test_gradios_certificate_stays_out_of_the_current_folder(tmp_path, monkeypatch, capsys):
    from gradio import networking, tunneling

    reply = type("Reply", (), {"json": lambda self: [{"host": "h", "port": 1, "root_ca": "a certificate"}]})()
    monkeypatch.setattr(networking.httpx, "get", lambda *_, **__: reply)
    monkeypatch.setattr(networking.Tunnel, "start_tunnel", lambda self: print("noise") or "https://a.gradio.live")
    program = tmp_path / "frpc"
    program.write_bytes(b"half of it")
    monkeypatch.setattr(tunneling, "BINARY_PATH", str(program))
    monkeypatch.setitem(tunneling.CHECKSUMS, tunneling.BINARY_URL, "0" * 64)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with share.tidy_link(tmp_path / "link"):
        assert networking.setup_tunnel("127.0.0.1", 1, "token", None, None) == "https://a.gradio.live"
    assert (tmp_path / "link" / "certificate.pem").read_text() == "a certificate"
    assert list(here.iterdir()) == [] and not program.exists()
    assert networking.CERTIFICATE_PATH == tunneling.CERTIFICATE_PATH and "noise" not in capsys.readouterr().out


def test_the_host_of_a_link():
    assert share.link_host("https://ABC.gradio.live") == "abc.gradio.live" and share.link_host(None) == ""


def test_page_css_comes_first(tmp_path, monkeypatch):
    from headshot_ui.ui import serve

    for name in ("zebra.css", "page.css", "apple.css", "page.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(serve, "_HERE", Path(tmp_path))
    assert [path.name for path in serve.style_sheets()] == ["page.css", "apple.css", "zebra.css"]
