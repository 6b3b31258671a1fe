"""Whole downloads from real servers: placed, checked, gone on with, and told apart when they fail."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from headshot_ui.downloads import runner
from headshot_ui.downloads.catalogue import find_entry
from headshot_ui.downloads.records import read_record
from headshot_ui.downloads.states import entry_state
from headshot_ui.errors import Cancelled, DownloadError, ModelError, SpecError
from headshot_ui.restoration import licence
from tests.downloads.conftest import (
    CONFIG,
    INDEX,
    MB,
    NETWORK,
    WEIGHTS,
    Place,
    Said,
    hub_at,
    hub_path,
    release_path,
)
from tests.downloads.servers import git_sha1

W = hub_path("unet/w.safetensors")
NET = release_path("net.pth")


def state(place: Place, entry_id: str) -> str:
    return entry_state(find_entry(entry_id), place.settings).state


def test_an_entry_of_the_hub_comes_whole_and_is_offered_last(place: Place) -> None:
    seen = []
    said = Said(on_line=lambda stage, step: seen.append(place.path("base/base.json").exists()))
    got = place.get("base", said=said)
    assert place.whole("base/unet/w.safetensors", WEIGHTS) and place.whole("base/unet/config.json", CONFIG)
    assert place.whole("base/model_index.json", INDEX)
    assert json.loads(place.path("base/base.json").read_text()) == {"id": "base"} and not any(seen)
    assert got.entries[0].fetched_bytes == len(WEIGHTS) + len(CONFIG) + len(INDEX) and got.ok
    assert {check.words for check in got.entries[0].checks} == {"as published"}
    assert state(place, "base") == "there" and place.leftovers() == []


def test_progress_is_told_in_megabytes_from_nothing_to_all(place: Place) -> None:
    said = Said()
    place.get("base", said=said)
    steps = [(step, total) for stage, step, total in said.lines if stage == runner.FETCHING]
    assert steps[0] == (0, 4) and steps[-1] == (3, 4) and steps == sorted(steps)


def test_a_release_comes_whole_through_its_redirect(place: Place) -> None:
    got = place.get("net")
    assert place.whole("net/net.pth", NETWORK) and got.entries[0].fetched_bytes == len(NETWORK)
    assert place.world.gets("cdn" + NET) == [""]


def test_what_is_complete_is_not_fetched_again(place: Place) -> None:
    place.get("base", "net")
    asked = len(place.world.asked)
    got = place.get("base", "net")
    assert all(entry.already for entry in got.entries) and len(place.world.asked) == asked


def test_a_broken_connection_goes_on_by_itself(place: Place) -> None:
    place.world.cut["" + W] = [2 * MB]
    place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS)
    first, second = place.world.gets("cdn" + W)
    begun = int(second.removeprefix("bytes=").rstrip("-"))
    assert first == "" and MB <= begun <= 2 * MB, "what came was not fetched again"


def test_a_download_that_broke_off_goes_on_at_the_next_start(place: Place) -> None:
    place.world.cut[W] = [2 * MB, *[0] * 20]
    with pytest.raises(DownloadError, match="broke off .* are kept: get it again"):
        place.get("base")
    assert not place.path("base/unet/w.safetensors").exists() and not place.path("base/base.json").exists()
    assert state(place, "base") == "unfinished"
    place.world.cut.clear()
    before = place.world.sent_bytes
    place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS) and place.leftovers() == []
    assert place.world.sent_bytes - before <= len(WEIGHTS) - MB, "only the rest was sent"


def test_a_cancel_keeps_what_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "REPORTS_PER_S", 10**6)
    place.world.gate.clear()  # 1 MB comes, then nothing
    said = Said()
    said.on_line = lambda stage, step: place.world.gate.set() if stage == runner.FETCHING and step >= 1 else None
    said.cancel_at = (runner.FETCHING, 1)
    with pytest.raises(Cancelled):
        place.get("base", said=said)
    assert place.leftovers() == [".w.safetensors.part", ".w.safetensors.part.json"]
    assert not place.path("base/unet/w.safetensors").exists()
    place.world.asked.clear()
    place.get("base")
    (asked,) = place.world.gets("cdn" + W)
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= MB and place.whole("base/unet/w.safetensors", WEIGHTS)


def test_a_server_without_ranges_begins_again(place: Place) -> None:
    place.world.ranges, place.world.cut[W] = False, [2 * MB]
    place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS)


def test_a_part_of_another_file_is_not_gone_on_with(place: Place) -> None:
    place.world.cut[NET] = [MB + MB // 2, *[0] * 20]
    with pytest.raises(DownloadError):
        place.get("loose")
    other = NETWORK[::-1]
    place.world.cut.clear()
    place.world.files[NET] = other
    place.get("loose")
    assert place.whole("loose/net.pth", other)


def test_a_part_that_was_damaged_on_disk_is_fetched_anew(place: Place) -> None:
    place.world.cut[NET] = [2 * MB, *[0] * 20]
    with pytest.raises(DownloadError):
        place.get("net")
    part = place.path("net/.net.pth.part")
    part.write_bytes(b"?" * part.stat().st_size)
    place.world.cut.clear()
    place.get("net")
    assert place.whole("net/net.pth", NETWORK)


# --- wrong files ------------------------------------------------------------------------------------
def test_a_wrong_checksum_is_thrown_away_and_said(place: Place) -> None:
    place.world.sent_instead[NET] = b"!" + NETWORK[1:]
    with pytest.raises(DownloadError, match="checksum is not the published one: it was thrown away"):
        place.get("net")
    assert not place.path("net/net.pth").exists() and place.leftovers() == []


def test_what_the_hub_states_counts_where_nothing_was_published(place: Place) -> None:
    got = place.get("unpinned")
    assert {check.words for check in got.entries[0].checks} == {"as the server stated it"}
    assert state(place, "unpinned") == "there"
    place.path("unpinned/unet/w.safetensors").unlink()
    place.world.sent_instead[W] = b"!" + WEIGHTS[1:]
    with pytest.raises(DownloadError, match="the one the server states"):
        place.get("unpinned")


def test_a_small_file_is_checked_by_its_name_in_git(place: Place) -> None:
    from headshot_ui.downloads.sources import locate, open_client

    entry = find_entry("unpinned")
    with open_client() as client:
        remote = locate(entry, entry.files[1], place.settings, client)
    assert remote.git_sha1 == git_sha1(CONFIG) and remote.sha256 is None
    path = hub_path("unet/config.json")
    honest = place.world.files[path]
    forged = replace(remote, git_sha1="0" * 40)
    import headshot_ui.downloads.runner as module

    real = module.locate
    module.locate = lambda *given: forged if given[1].remote.endswith("config.json") else real(*given)
    try:
        with pytest.raises(DownloadError, match="checksum is not the one the server states"):
            place.get("unpinned")
    finally:
        module.locate = real
    assert honest == CONFIG and not place.path("unpinned/unet/config.json").exists()


def test_without_any_published_hash_the_files_own_is_recorded_and_said(place: Place) -> None:
    said = Said()
    got = place.get("loose", said=said)
    assert got.entries[0].checks[0].words == "not verified against a published hash; recorded now"
    assert said.notes == [f"{place.path('loose/net.pth')}: not verified against a published hash; recorded now."]
    assert "recorded now" in entry_state(find_entry("loose"), place.settings).detail


def test_another_size_is_told_before_a_byte_is_fetched(place: Place) -> None:
    place.world.files[NET] = NETWORK + b"more"
    with pytest.raises(DownloadError, match=f"{len(NETWORK) + 4} bytes instead of {len(NETWORK)}"):
        place.get("net")
    assert place.world.gets("cdn" + NET) == [] and place.world.sent_bytes == 0


def test_another_checksum_at_the_hub_is_told_before_a_byte_is_fetched(place: Place) -> None:
    place.world.files[W] = WEIGHTS[::-1]
    with pytest.raises(DownloadError, match="another file than this program knows"):
        place.get("base")
    assert place.world.sent_bytes == 0


def test_more_than_was_promised_is_not_taken(place: Place) -> None:
    place.world.heads = False
    place.world.files[NET] = NETWORK + b"x" * MB
    with pytest.raises(DownloadError, match="not taken"):
        place.get("net")
    assert not place.path("net/net.pth").exists()


def test_a_mirror_without_head_serves_too(place: Place) -> None:
    place.world.heads = False
    place.get("net")
    assert place.whole("net/net.pth", NETWORK)


def test_a_token_is_shown_to_the_hub_and_to_nobody_else(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place.get("base", "net")
    tokens = set(place.world.shown_tokens)
    assert ("names", "Bearer hf_secret") in tokens and ("cdn", "") in tokens
    assert ("cdn", "Bearer hf_secret") not in tokens
    release = [told for told, asked in zip(place.world.shown_tokens, place.world.asked, strict=True) if NET in asked[1]]
    assert release and all(token == "" for _, token in release)


# --- failures told apart ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(404, "EntryNotFound", r"not at .* any more \(404\)"), (404, "RevisionNotFound", "any more"),
     (401, "GatedRepo", "accepted its terms"), (401, "", r"refuses .* \(401\)"),
     (403, "", r"refuses .* \(403\)"), (500, "", r"in trouble \(500\)"), (503, "", "try again later"),
     (429, "", "too many requests")],
)  # fmt: skip
def test_refusals_of_the_hub_are_told_apart(place: Place, status: int, code: str, words: str) -> None:
    place.world.status[W] = (status, code)
    with pytest.raises(DownloadError, match=words):
        place.get("base")


@pytest.mark.parametrize(
    ("status", "words"), [(404, "any more"), (403, "refuses"), (502, "in trouble"), (429, "too many")]
)
def test_refusals_of_a_release_are_told_apart(place: Place, status: int, words: str) -> None:
    place.world.status[NET] = (status, "")
    with pytest.raises(DownloadError, match=words):
        place.get("net")


def test_trouble_that_passes_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from headshot_ui.downloads import fetch

    place.world.status[NET] = (503, "")
    waits = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        place.world.status.clear()

    monkeypatch.setattr(fetch.time, "sleep", pause)
    entry = find_entry("net")
    from headshot_ui.downloads.sources import Remote, open_client

    with open_client() as client:
        url = place.settings.release_mirror + NET
        errand = fetch.Errand(entry, entry.files[0], Remote(url, len(NETWORK), "x"), place.path("net/net.pth"))
        fetch.fetch(client, errand, lambda there, reading=False: None)
    assert waits and place.whole("net/net.pth", NETWORK)


def test_no_network_is_told_with_the_name_of_the_host(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="No connection to 127.0.0.1:9 .*HF_ENDPOINT"):
        place.get("base")
    away = replace(place.settings, release_mirror="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="No connection to 127.0.0.1:9 .*HEADSHOT_UI_RELEASE_MIRROR"):
        replace(place, settings=away).get("net")


def test_something_that_is_no_hub_is_told(place: Place) -> None:
    place.world.commit = None
    with pytest.raises(DownloadError, match="not as a model hub does: check HF_ENDPOINT"):
        place.get("base")


def test_an_address_that_is_none_names_the_variable(place: Place) -> None:
    for wrong in ("no address", "ftp://x"):
        with pytest.raises(DownloadError, match="HEADSHOT_UI_RELEASE_MIRROR"):
            replace(place, settings=replace(place.settings, release_mirror=wrong)).get("net")


def test_offline_nothing_is_asked_and_the_reason_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for entry in ("base", "net"):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
            place.get(entry)
    assert place.world.asked == []


def test_too_little_room_is_told_before_a_byte_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "free_bytes", lambda path: 40 * MB)
    with pytest.raises(
        DownloadError, match=r"needs 6\d\.\d MB .* only 40.0 MB are free: make room for 2\d\.\d MB more"
    ):
        place.get("base", "net")
    assert place.world.sent_bytes == 0


# --- licences, two at once, files of others ---------------------------------------------------------
def test_a_non_commercial_licence_is_accepted_once_before_the_first_download(place: Place) -> None:
    with pytest.raises(ModelError, match="non-commercial use only .* --accept-licence"):
        place.get("codeformer")
    assert place.world.asked == []
    licence.accept(place.settings, "codeformer")
    place.get("codeformer")
    assert place.whole("codeformer/codeformer.pth", NETWORK)


def test_two_entries_come_in_one_download(place: Place) -> None:
    got = place.get("base", "net")
    assert [entry.id for entry in got.entries] == ["base", "net"]
    assert place.whole("net/net.pth", NETWORK) and place.whole("base/unet/w.safetensors", WEIGHTS)


def test_two_programs_never_fetch_into_the_same_folder(place: Place) -> None:
    place.world.gate.clear()
    first = threading.Thread(target=place.get, args=("base",))
    first.start()
    while not place.world.sent_bytes:
        time.sleep(0.01)
    with pytest.raises(Exception, match="“download” .* is at work in"):
        place.get("net")
    place.world.gate.set()
    first.join(20)
    assert place.whole("base/unet/w.safetensors", WEIGHTS)
    place.get("net")


def test_an_unknown_entry_is_told_with_those_there_are(place: Place) -> None:
    with pytest.raises(SpecError, match="no model “sdxxl” .* base, unpinned"):
        place.get("sdxxl")


def test_the_right_file_put_there_by_hand_is_believed_once_read(place: Place) -> None:
    place.path("net").mkdir(parents=True)
    place.path("net/net.pth").write_bytes(NETWORK)
    assert state(place, "net") == "unchecked"
    got = place.get("net")
    assert got.entries[0].already and place.world.asked == [] and state(place, "net") == "there"
    assert not read_record("net", place.settings).files["net/net.pth"].ours


def test_a_wrong_file_put_there_by_hand_is_kept_aside(place: Place) -> None:
    place.path("net").mkdir(parents=True)
    place.path("net/net.pth").write_bytes(b"half")
    assert state(place, "net") == "damaged"
    said = Said()
    place.get("net", said=said)
    assert place.whole("net/net.pth", NETWORK) and place.path("net/net.pth.replaced").read_bytes() == b"half"
    assert said.notes == [f"{place.path('net/net.pth')} was not the right file; it is kept as net.pth.replaced."]
