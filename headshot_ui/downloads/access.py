"""Who we are to the hub: its token, which stays in the hub's own store and goes to the hub alone.

The token comes from where ``huggingface_hub`` looks (``HF_TOKEN``, its own file). This program never writes it to a
file of its own, to a log or into a sentence, and shows it neither to a mirror named in ``HF_ENDPOINT`` nor to the hosts
that the hub sends us on to.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

import httpx2

from headshot_ui.errors import DownloadError, SpecError

#: Addresses of the hub itself; anything else in ``HF_ENDPOINT`` is a mirror.
HUBS = frozenset({"https://huggingface.co"})
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
_TOKEN = re.compile(r"hf_[!-~]{5,300}")


def is_hub(address: str) -> bool:
    """Whether an address is one of the hub itself, by scheme and host."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}".lower() in HUBS


def token_for(address: str) -> str | None:
    """The token to be shown at that address; None where there is none, or where it is not the hub."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN or not is_hub(address):
        return None
    return get_token()


def has_token() -> bool:
    """Whether the hub's own places hold a token, valid or not."""
    from huggingface_hub import get_token

    return get_token() is not None


def log_in(token: str) -> str:
    """Ask the hub whose token this is, then keep it in the hub's own store; a sentence about it, without the token.

    Raises SpecError for something that is no token, DownloadError when the hub does not take it or is not reached; then
    nothing is stored.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise SpecError("token", f"That is no token of Hugging Face: it begins with hf_. Make one at {TOKENS_PAGE}.")
    if not is_hub(constants.ENDPOINT):
        raise DownloadError(
            "HF_ENDPOINT names a mirror, and a token is shown to the hub alone: unset that variable, then log in."
        )
    try:
        huggingface_hub.login(token=token, add_to_git_credential=False)
    except HfHubHTTPError as error:
        raise _not_taken(error.response.status_code) from None  # its request holds the token
    except (httpx2.RequestError, OfflineModeIsEnabled):
        host = urlsplit(constants.ENDPOINT).netloc
        raise DownloadError(
            f"No connection to {host}, so the token could not be checked and was not stored: check the network "
            "(and that HF_HUB_OFFLINE is not set), then log in again."
        ) from None
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"The token is good but could not be stored in {constants.HF_TOKEN_PATH} ({type(error).__name__}): check "
            "the permissions of that folder."
        ) from None
    instead = " HF_TOKEN is set and counts before it." if _from_environment() not in (None, token) else ""
    return f"Logged in; Hugging Face's own store keeps the token ({constants.HF_TOKEN_PATH}).{instead}"


def _from_environment() -> str | None:
    """What ``HF_TOKEN`` holds: the hub's own library prefers it to its store."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def _not_taken(status: int) -> DownloadError:
    if status in (401, 403):
        return DownloadError(
            f"Hugging Face does not know this token ({status}): it was mistyped, has expired or was withdrawn; make a "
            f"new one at {TOKENS_PAGE}."
        )
    return DownloadError(f"Hugging Face could not check the token now (status {status}): try again in some minutes.")
