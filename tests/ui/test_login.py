"""Name and password: what protects, how long wrong tries wait, who holds a session."""

from __future__ import annotations

from typing import Any

import pytest

from headshot_ui.errors import SpecError
from headshot_ui.ui import login
from headshot_ui.ui.login import Credentials, LoginGate, Throttle, client_of

GOOD = Credentials("anna", "correct horse")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(
    gate: LoginGate, path: str, method: str = "GET", body: bytes = b"", secure: bool = False, **headers: str
) -> Any:
    """(status, headers, body) of what the gate answered, or None when it let the request on."""
    sent: list[dict[str, Any]] = []
    client = headers.pop("client", "10.0.0.1")
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw, "client": (client, 5)}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StopIteration) as ended:
        gate.admit(scope, receive, send, secure).send(None)
    if ended.value.value:
        return None
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


def log_in(gate: LoginGate, password: str = "correct horse", user: str = "anna", **options: Any) -> Any:
    return ask(gate, "/login", "POST", f"user={user}&password={password.replace(' ', '+')}".encode(), **options)


@pytest.mark.parametrize(
    ("password", "words"),
    [("", "empty"), ("short77", "at least 8"), ("password", "guessed"), ("ANNA-ANNA", "guessed"),
     ("11111111", "guessed"), ("Qwertyuiop", "guessed")],
)  # fmt: skip
def test_a_password_that_protects_nobody_is_refused_in_words(password, words):
    with pytest.raises(SpecError, match=words) as refused:
        Credentials("anna-anna", password)
    assert refused.value.field == "password"


@pytest.mark.parametrize("user", ["", " anna", "an\nna", "anna:secret", "a" * 101])
def test_a_user_name_that_cannot_be_typed_is_refused(user):
    with pytest.raises(SpecError) as refused:
        Credentials(user, "correct horse")
    assert refused.value.field == "user"


def test_both_must_fit_and_the_password_never_shows():
    assert GOOD.fit("anna", "correct horse") and GOOD.fit(" anna ", "correct horse")
    for user, password in (("anna", "Correct horse"), ("Anna", "correct horse"), ("", ""), ("anna", "correct horse ")):
        assert not GOOD.fit(user, password)
    assert Credentials("anna", "gr\u00fcne Wiese").fit("anna", "gru\u0308ne Wiese")
    assert "correct" not in repr(GOOD)


def test_after_five_wrong_tries_waits_double_up_to_a_minute():
    clock = Clock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(14):
        waits.append(throttle.wait_s("a"))
        clock.now += waits[-1]
        throttle.failed("a")
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert throttle.wait_s("b") == 0
    clock.now += login.FORGET_AFTER_S + 1
    assert throttle.wait_s("a") == 0


def test_many_clients_together_wait_too():
    throttle = Throttle(Clock())
    for number in range(login.TRIES_OF_ALL + 3):
        throttle.failed(f"client {number}")
    assert throttle.wait_s("somebody else") == 8


def test_the_right_password_ends_ones_own_waiting_only():
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(6):
        throttle.failed("a")
    throttle.succeeded("b")
    assert throttle.wait_s("a") > 0
    throttle.succeeded("a")
    assert throttle.wait_s("a") == 0


def test_the_count_of_clients_is_bounded(monkeypatch):
    monkeypatch.setattr(login, "MOST_CLIENTS", 50)
    throttle = Throttle(Clock())
    for number in range(500):
        throttle.failed(str(number))
    assert len(throttle._clients) <= 50


def test_an_ipv6_client_is_its_network():
    first, second = ({"client": (f"2001:db8:1:2::{end}", 1)} for end in ("1", "ffff"))
    assert client_of(first) == client_of(second) != client_of({"client": ("2001:db8:1:3::1", 1)})
    assert client_of({"client": None}) == "" and client_of({"client": ("10.0.0.7", 1)}) == "10.0.0.7"


def test_while_waiting_even_the_right_password_is_not_looked_at():
    clock = Clock()
    gate = LoginGate(GOOD, clock)
    for _ in range(6):
        assert log_in(gate, "wrong")[0] == 401
        clock.now += 1
    status, headers, body = log_in(gate)
    assert status == 429 and headers[b"retry-after"] == b"1" and b"wait 1 second, then" in body
    assert log_in(gate, client="10.0.0.2")[0] == 303
    clock.now += 1
    assert log_in(gate)[0] == 303


def test_a_wrong_name_and_a_wrong_password_get_the_same_answer():
    gate = LoginGate(GOOD)
    wrong = log_in(gate, "nope"), log_in(gate, user="bert"), log_in(gate, "nope", "bert")
    assert len({(status, body) for status, _, body in wrong}) == 1


def test_a_session_lasts_a_week_and_logging_out_ends_it():
    clock = Clock()
    gate = LoginGate(GOOD, clock)
    cookie = log_in(gate)[1][b"set-cookie"].decode().partition(";")[0]
    assert ask(gate, "/config", cookie=f"other=1; {cookie}") is None
    assert ask(gate, "/config", cookie=cookie + "x")[0] == 401
    assert ask(gate, "/login", cookie=cookie)[1][b"location"] == b"/"
    clock.now += login.SESSION_S + 1
    assert ask(gate, "/config", cookie=cookie)[0] == 401
    cookie = log_in(gate)[1][b"set-cookie"].decode().partition(";")[0]
    assert ask(gate, "/logout", cookie=cookie)[0] == 303
    assert ask(gate, "/config", cookie=cookie)[0] == 401


def test_the_cookie_is_kept_from_scripts_and_other_websites_and_secure_only_with_https():
    gate = LoginGate(GOOD)
    plain, secure = (log_in(gate, secure=secure)[1][b"set-cookie"].decode() for secure in (False, True))
    assert plain.endswith("; Path=/; HttpOnly; SameSite=Lax")
    assert secure.endswith("; Path=/; HttpOnly; SameSite=Lax; Secure")


def test_two_pages_on_one_computer_do_not_share_a_cookie():
    names = {log_in(LoginGate(GOOD))[1][b"set-cookie"].partition(b"=")[0] for _ in range(2)}
    assert len(names) == 2


def test_browsers_are_sent_to_the_form_and_programs_are_told():
    gate = LoginGate(GOOD)
    assert ask(gate, "/", accept="text/html,*/*")[:2][1][b"location"] == b"/login"
    assert ask(gate, "/", "HEAD")[0] == 401 and ask(gate, "/gradio_api/upload", "POST")[0] == 401
    assert ask(gate, "/login")[0] == 200
    assert ask(gate, "/robots.txt")[2] == b"User-agent: *\nDisallow: /\n"
    assert ask(gate, "/gradio_api/startup-events") is None


@pytest.mark.parametrize("body", [b"", b"user=anna", b"a&" * 5000, b"user=anna&password=correct+horse&" + b"x=1&" * 50])
def test_forms_of_others_are_wrong_passwords(body):
    assert ask(LoginGate(GOOD), "/login", "POST", body)[0] == 401


def test_what_is_said_in_the_form_is_text():
    assert "<b>" not in login.form("<b>x") and "&lt;b&gt;x" in login.form("<b>x")
    assert "<script" not in login.form()
