"""What went wrong on the way to a server, in plain words: which of the many things it was, and what to do."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx2

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


def refused(status: int, file: RemoteFile, url: str, entry: Entry, code: str = "") -> DownloadError:
    """An HTTP status that is no file. ``code``: the hub's own word for it."""
    host = urlsplit(url).netloc
    if code == "GatedRepo":
        return DownloadError(
            f"{entry.title} is given only to people who have accepted its terms: accept them at {entry.source.page}, "
            "put a token of your account into HF_TOKEN, then get it again."
        )
    if status in (401, 403, 407):
        return DownloadError(
            f"{host} refuses to give {file.remote} ({status}): if it asks for an account, put a token into HF_TOKEN; "
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
