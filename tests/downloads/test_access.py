"""Who we are to the hub: every reason for a refusal by its own sentence, and a token that is shown to the hub alone."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from headshot_ui.cli import main
from headshot_ui.commands import models
from headshot_ui.downloads import access, licences
from headshot_ui.downloads.access import log_in
from headshot_ui.downloads.catalogue import find_entry
from headshot_ui.downloads.sources import locate, open_client
from headshot_ui.errors import DownloadError, ModelError, SpecError
from headshot_ui.ui import models_view
from tests.downloads.conftest import INDEX, WEIGHTS, Place, hub_at, hub_path

W = hub_path("unet/w.safetensors")
TOKEN = "hf_SECRETSECRETSECRET"


@pytest.fixture
def hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The hub answers who a token is of."""
    monkeypatch.setattr(hf_api.api, "endpoint", place.world.address)
    place.world.tokens[TOKEN] = "anna"
    return place


def said(error: BaseException) -> str:
    """Every sentence of an error and of those it came from."""
    return "" if error is None else f"{error!r} {error} {said(error.__cause__)} {said(error.__context__)}"


# --- refusals told apart ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("token", "status", "code", "message", "words"),
    [("", 401, "GatedRepo", "", "no token of Hugging Face is here: accept them at https://huggingface.co/someone/model"),
     (TOKEN, 403, "GatedRepo", "not in the authorized list", "the account of the token that is here has not .* accept"),
     (TOKEN, 403, "GatedRepo", "enable access in your fine-grained token settings", "may not read gated repositories"),
     (TOKEN, 401, "", "Invalid credentials in Authorization header", "does not know the token .* make a new one"),
     (TOKEN, 401, "GatedRepo", "", "does not know the token")],
)  # fmt: skip
def test_reasons_of_an_account_are_told_apart(
    place: Place, monkeypatch: pytest.MonkeyPatch, token: str, status: int, code: str, message: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    place.world.status[W], place.world.message = (status, code), message
    with pytest.raises(DownloadError, match=words) as caught:
        place.get("base")
    assert not token or token not in said(caught.value)
    assert place.world.sent_bytes == 0


def test_no_network_is_told_as_such_with_a_token_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="No connection to 127.0.0.1:9") as caught:
        place.get("base")
    assert TOKEN not in said(caught.value)


# --- where a token goes -----------------------------------------------------------------------------
def test_a_mirror_never_sees_a_token(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(access, "HUBS", frozenset({"https://huggingface.co"}))  # the server is a mirror now
    place.get("base")
    assert place.world.shown_tokens and {token for _, token in place.world.shown_tokens} == {""}
    place.path("base/unet/w.safetensors").unlink()
    place.world.status[W] = (401, "GatedRepo")
    with pytest.raises(DownloadError, match="never shown to a mirror .*unset HF_ENDPOINT"):
        place.get("base")


@pytest.mark.parametrize(
    ("address", "hub"),
    [("https://huggingface.co/a/b", True), ("https://HuggingFace.co", True), ("http://huggingface.co", False),
     ("https://huggingface.co.evil.org", False), ("https://huggingface.co:444", False),
     ("https://huggingface.co@evil.org/x", False), ("https://hf-mirror.com", False)],
)  # fmt: skip
def test_the_hub_is_known_by_scheme_and_host(address: str, hub: bool) -> None:
    assert access.is_hub(address) == hub


def test_nothing_that_is_written_holds_the_token(hub: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        told = log_in(f"  {TOKEN}\n")
        hub.get("base", "net")
    assert TOKEN not in caplog.text and TOKEN not in told
    assert ("names", f"Bearer {TOKEN}") in hub.world.shown_tokens and ("cdn", "") in hub.world.shown_tokens
    assert ("cdn", f"Bearer {TOKEN}") not in hub.world.shown_tokens
    written = [path for path in hub.settings.models_dir.rglob("*") if path.is_file()]
    assert written and not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert not any(TOKEN in path for _, path, _ in hub.world.asked), "not in an address either"


def test_what_is_shown_of_a_file_to_fetch_holds_no_token(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with open_client() as client:
        remote = locate(find_entry("base"), find_entry("base").files[0], place.settings, client)
    assert remote.headers["Authorization"] == f"Bearer {TOKEN}" and TOKEN not in repr(remote)


# --- login ------------------------------------------------------------------------------------------
def test_login_keeps_a_good_token_in_the_store_of_the_hub(hub: Place) -> None:
    assert "own store" in log_in(TOKEN)
    assert Path(constants.HF_TOKEN_PATH).read_text() == TOKEN and access.has_token()
    assert Path(constants.HF_TOKEN_PATH).stat().st_mode & 0o077 == 0, "for nobody else to read"


def test_login_refuses_a_token_that_the_hub_does_not_know(hub: Place) -> None:
    with pytest.raises(DownloadError, match="does not know this token") as caught:
        log_in("hf_mistypedmistyped")
    assert "mistyped" not in repr(caught.value).replace("was mistyped", "") and not access.has_token()
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_login_says_what_else_can_be_wrong(hub: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "secret password", "hf_", "https://huggingface.co"):
        with pytest.raises(SpecError, match="no token of Hugging Face") as caught:
            log_in(text)
        assert not text or "password" not in str(caught.value)
    hub.world.status["/api/whoami-v2"] = (503, "")
    with pytest.raises(DownloadError, match=r"could not check the token now \(status 503\)"):
        log_in(TOKEN)
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="No connection to .* was not stored"):
        log_in(TOKEN)
    monkeypatch.setattr(access, "HUBS", frozenset({"https://huggingface.co"}))
    with pytest.raises(DownloadError, match="names a mirror"):
        log_in(TOKEN)
    assert not access.has_token()


def test_a_token_in_the_environment_is_said_to_count_first(hub: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "HF_TOKEN is set and counts before it" in log_in(TOKEN)


def test_the_command_reads_the_token_from_standard_input(
    hub: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    assert main(["models", "login"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Logged in") and TOKEN not in shown.out + shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["models", "login"]) == 2 and "no token of Hugging Face" in capsys.readouterr().err


def test_the_page_tells_of_a_login_in_words(hub: Place) -> None:
    assert "Logged in" in models_view.log_in(TOKEN)["text"]
    assert "no token" in models_view.log_in("x")["problem"]


def test_no_command_takes_a_token_as_an_argument() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["login", TOKEN])


# --- licences of models -----------------------------------------------------------------------------
def test_a_base_with_a_licence_is_fetched_only_once_it_is_accepted(place: Place) -> None:
    entry = find_entry("licensed")
    with pytest.raises(ModelError, match="non-commercial use only .*models get licensed --accept-licence"):
        place.get("licensed")
    assert place.world.asked == [] and "https://x.org/l" in licences.terms(entry)
    licences.accept(entry, place.settings)
    place.get("licensed")
    assert place.path("licensed/base.json").is_file()
    assert licences.terms(find_entry("codeformer")).startswith("CodeFormer"), "a restorer's stand with the restorer"


# --- files that two models share --------------------------------------------------------------------
def test_what_another_model_has_already_is_not_fetched_twice(place: Place) -> None:
    place.get("base")
    before = place.world.sent_bytes
    got = place.get("twin")
    assert place.world.sent_bytes == before and got.entries[0].cached_bytes == len(WEIGHTS) + len(INDEX)
    assert place.whole("twin/unet/w.safetensors", WEIGHTS)
    assert place.path("twin/unet/w.safetensors").samefile(place.path("base/unet/w.safetensors")), "on the disk once"


def test_two_models_in_one_download_share_too(place: Place) -> None:
    got = place.get("base", "twin")
    assert place.world.gets("cdn" + W) == [""] and place.whole("twin/unet/w.safetensors", WEIGHTS)
    assert [entry.cached_bytes for entry in got.entries] == [0, len(WEIGHTS) + len(INDEX)]


def test_each_of_two_that_share_can_go_alone(place: Place) -> None:
    from headshot_ui.downloads.runner import remove

    place.get("base", "twin")
    remove(find_entry("base"), place.settings)
    assert place.whole("twin/unet/w.safetensors", WEIGHTS) and place.get("twin").entries[0].already


def test_a_damaged_file_of_another_model_is_not_shared(place: Place) -> None:
    place.get("base")
    path = place.path("base/unet/w.safetensors")
    path.write_bytes(b"?" * len(WEIGHTS))
    place.get("twin")
    assert place.whole("twin/unet/w.safetensors", WEIGHTS) and path.read_bytes() == b"?" * len(WEIGHTS)
