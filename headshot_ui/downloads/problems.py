"""What went wrong on the way to a server, in plain words: which of the many things it was, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from headshot_ui.downloads.access import TOKENS_PAGE, is_hub
from headshot_ui.downloads.catalogue import Entry, RemoteFile
from headshot_ui.errors import DownloadError
from headshot_ui.store import readable_bytes

MIRRORS = {"hub": "HF_ENDPOINT", "release": "HEADSHOT_UI_RELEASE_MIRROR"}


def offline(entry: Entry, where: str) -> DownloadError:
    """Downloads are switched off. ``where``: the place that was looked at instead."""
    return DownloadError(
        f"{entry.title} is not here, and downloads are switched off (HF_HUB_OFFLINE is set; {where}): "
        "unset that variable and get it again, or put the files in place by hand."
    )


def no_answer(error: httpx2.RequestError, url: str, entry: Entry) -> DownloadError:
    """No connection, or none that lasts."""
    host, mirror = urlsplit(url).netloc, MIRRORS["hub" if entry.source.hub else "release"]
    if isinstance(error, httpx2.ProxyError):
        return DownloadError(f"The proxy does not let {host} through ({error}): check HTTPS_PROXY, then try again.")
    if "CERTIFICATE" in str(error).upper():
        return DownloadError(
            f"The certificate of {host} cannot be trusted ({error}): check the clock of this computer, and whether "
            "something between it and the network looks into connections."
        )
    if isinstance(error, httpx2.TimeoutException):
        return DownloadError(f"{host} does not answer: check the network and try again, or name a mirror in {mirror}.")
    return DownloadError(
        f"No connection to {host} ({error}): check the network and try again, or name a mirror in {mirror}."
    )


def broke_off(file: RemoteFile, url: str, kept: int) -> DownloadError:
    """The connection broke again and again."""
    return DownloadError(
        f"The connection to {urlsplit(url).netloc} broke off while {file.remote} was fetched; {readable_bytes(kept)} "
        "are kept: get it again to go on from there."
    )


@dataclass(frozen=True)
class Refusal:
    """An HTTP status that is no file, with what else the server told of it."""

    status: int
    code: str = ""  # the hub's own word for it
    message: str = ""  # the hub's sentence
    with_token: bool = False  # whether a token was shown


def refusal_of(status: int, headers: Mapping[str, str], with_token: bool) -> Refusal:
    """From the headers of an answer."""
    return Refusal(status, headers.get("X-Error-Code", ""), headers.get("X-Error-Message", ""), with_token)


def refused(refusal: Refusal, file: RemoteFile, url: str, entry: Entry) -> DownloadError:
    """Which of the many reasons it was."""
    status, host = refusal.status, urlsplit(url).netloc
    if refusal.code == "GatedRepo" or (refusal.with_token and status in (401, 403)):
        return _no_access(refusal, url, entry)
    if status in (401, 403, 407):
        return DownloadError(
            f"{host} refuses to give {file.remote} ({status}): if it asks for an account, log in with “models login”; "
            f"else look at {entry.source.page} in a browser."
        )
    if status in (404, 410):
        return DownloadError(
            f"{file.remote} is not at {host} any more ({status}): look for a newer version of this program, or at "
            f"{entry.source.page}."
        )
    if status == 429:
        return DownloadError(f"{host} has had too many requests from here (429): wait some minutes, then get it again.")
    if status >= 500:
        return DownloadError(f"{host} is in trouble ({status}): this is not your fault, try again later.")
    return DownloadError(f"{host} does not give {file.remote} (status {status}): look at {entry.source.page}.")


def _no_access(refusal: Refusal, url: str, entry: Entry) -> DownloadError:
    """Of an account: there is none, it is not known, or it may not have this."""
    page, log_in = entry.source.page, "log in under Models or with “models login”"
    terms = f"{entry.title} is given only to people who have accepted its terms"
    if not refusal.with_token and not is_hub(url):
        return DownloadError(
            f"{terms}, and a token is never shown to a mirror ({urlsplit(url).netloc}): unset HF_ENDPOINT, accept them "
            f"at {page}, {log_in}, then get it again."
        )
    if not refusal.with_token:
        return DownloadError(
            f"{terms}, and no token of Hugging Face is here: accept them at {page}, make a token at {TOKENS_PAGE}, "
            f"{log_in}, then get it again."
        )
    if refusal.status == 401:
        return DownloadError(
            f"Hugging Face does not know the token that is here (401): it has expired or was withdrawn; make a new one "
            f"at {TOKENS_PAGE} and {log_in} (a token in HF_TOKEN counts before the stored one)."
        )
    if "fine-grained" in refusal.message:
        return DownloadError(
            f"The token that is here may not read gated repositories ({refusal.status}): tick that permission of it at "
            f"{TOKENS_PAGE}, then get {entry.title} again."
        )
    return DownloadError(
        f"{terms}, and the account of the token that is here has not ({refusal.status}): accept them at {page} with "
        "that account, then get it again."
    )


def no_hub(url: str, entry: Entry) -> DownloadError:
    """Something answered that is no hub: a wrong mirror, or the log-in page of a network."""
    return DownloadError(
        f"{urlsplit(url).netloc} answers, but not as a model hub does: check HF_ENDPOINT, and whether the network "
        "wants you to log in first."
    )


def another_size(file: RemoteFile, url: str, size: int, wanted: int) -> DownloadError:
    """Not the file of the catalogue, or more than the server spoke of."""
    return DownloadError(
        f"{file.remote} at {urlsplit(url).netloc} is another file than this program knows ({size} bytes instead of "
        f"{wanted}): it is not taken; look for a newer version of this program."
    )


def wrong_hash(file: RemoteFile, url: str, published: bool) -> DownloadError:
    """Whole, and not what it should be."""
    stated = "published one" if published else "one the server states"
    return DownloadError(
        f"{file.remote} came whole from {urlsplit(url).netloc}, but its checksum is not the {stated}: it was thrown "
        "away; get it again, and if that happens twice, something on the way changes it, such as a proxy or mirror."
    )


def too_little_room(needed: int, free: int, folder: str) -> DownloadError:
    """Told before a byte is fetched."""
    return DownloadError(
        f"This needs {readable_bytes(needed)} on the disk of {folder}, but only {readable_bytes(free)} are free: make "
        f"room for {readable_bytes(needed - free)} more, or name a folder on another disk with --models."
    )
