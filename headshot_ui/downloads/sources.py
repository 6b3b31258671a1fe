"""Asking a server about a file before it is fetched: address, size, checksum. Hub files through huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2

from headshot_ui import __version__
from headshot_ui.downloads import problems
from headshot_ui.downloads.access import token_for
from headshot_ui.downloads.catalogue import Entry, RemoteFile
from headshot_ui.errors import DownloadError

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

GITHUB = "https://github.com"
#: Seconds. Reading is short, because a cancel is noticed between two reads; a slow server gets several tries.
TIMEOUT = httpx2.Timeout(20.0, read=5.0)
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Remote:
    """One file as the server tells of it."""

    url: str
    size: int | None  # bytes; None: it does not say
    mark: str  # changes when the file does; "" when the server gives none
    sha256: str | None = None  # as the server states it
    git_sha1: str | None = None  # of small hub files: sha1 of b"blob <size>\\0" and the content
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # to be sent with a request; may hold a token


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set; it counts for every download."""
    import huggingface_hub

    return bool(huggingface_hub.is_offline_mode())


@contextmanager
def open_client() -> Iterator[httpx2.Client]:
    """For the files themselves; proxies are taken from the environment."""
    agent = {"User-Agent": f"headshot_ui/{__version__}", "Accept-Encoding": "identity"}
    with httpx2.Client(headers=agent, timeout=TIMEOUT, follow_redirects=True) as client:
        yield client


def locate(entry: Entry, file: RemoteFile, settings: Settings, client: httpx2.Client) -> Remote:
    """Ask for one file. Raises DownloadError: no network, refused, gone, or another file than the catalogue's."""
    remote = _on_hub(entry, file) if entry.source.hub else _in_release(entry, file, settings, client)
    same = file.sha256 is not None and remote.sha256 == file.sha256
    if file.size_is_exact and not same and remote.size not in (None, file.size):
        raise problems.another_size(file, remote.url, remote.size or 0, file.size)
    if file.sha256 and remote.sha256 and not same:
        raise DownloadError(
            f"{file.remote} at {entry.source.page} is another file than this program knows (another sha256 is stated): "
            "nothing was fetched; look for a newer version of this program."
        )
    return remote


# --- the hub ----------------------------------------------------------------------------------------
def _on_hub(entry: Entry, file: RemoteFile) -> Remote:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled

    endpoint = constants.ENDPOINT  # HF_ENDPOINT
    url = hf_hub_url(entry.source.hub, file.remote, revision=entry.source.revision, endpoint=endpoint)
    token = token_for(url)
    try:
        told = get_hf_file_metadata(url, token=token or False, endpoint=endpoint, retry_on_errors=False)
    except OfflineModeIsEnabled as error:
        raise problems.offline(entry, "and it is not in the hub's cache") from error
    except FileMetadataError as error:
        raise problems.no_hub(url, entry) from error
    except HfHubHTTPError as error:
        refusal = problems.refusal_of(error.response.status_code, error.response.headers, token is not None)
        raise problems.refused(refusal, file, url, entry) from error
    except httpx2.RequestError as error:
        raise problems.no_answer(error, url, entry) from error
    if told.commit_hash is None or told.etag is None:
        raise problems.no_hub(url, entry)
    return Remote(
        url=url,  # asked for again at every try: where it leads to is valid for a while only
        size=told.size,
        mark=told.etag,
        sha256=told.etag if _SHA256.fullmatch(told.etag) else None,
        git_sha1=told.etag if _SHA1.fullmatch(told.etag) else None,
        headers={"Authorization": f"Bearer {token}"} if token else {},  # httpx2 keeps it from other hosts
    )


# --- releases on GitHub -----------------------------------------------------------------------------
def _in_release(entry: Entry, file: RemoteFile, settings: Settings, client: httpx2.Client) -> Remote:
    base = settings.release_mirror or GITHUB
    url = f"{base}/{entry.source.release}/releases/download/{entry.source.tag}/{file.remote}"
    try:
        answer = client.head(url)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise DownloadError(f"“{base}” is no address: correct HEADSHOT_UI_RELEASE_MIRROR.") from error
    except httpx2.RequestError as error:
        raise problems.no_answer(error, url, entry) from error
    if answer.status_code in (405, 501):  # a mirror that knows no HEAD: its GET will tell
        return Remote(url, None, "")
    if not answer.is_success:
        raise problems.refused(problems.Refusal(answer.status_code), file, url, entry)
    length = answer.headers.get("Content-Length", "")
    return Remote(url, int(length) if length.isdigit() else None, answer.headers.get("ETag", "").strip('"'))
