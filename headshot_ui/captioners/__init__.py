"""Networks that describe photographs in words, found by discovery: every file here exposes one ``CAPTIONER``.

Adding one means adding a file; nothing else changes. Plans look them up on any thread, so their files load torch only
when they read weights. What of a description becomes a caption is no matter of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from headshot_ui.discovery import offered
from headshot_ui.errors import ModelError
from headshot_ui.wording import how_to_get, listed

if TYPE_CHECKING:
    from pathlib import Path

    from headshot_ui.dataset.types import Captioner
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings


class CaptionerLoader(Protocol):
    """What ``CAPTIONER`` of a file in this package offers. Naming it reads no weights."""

    @property
    def id(self) -> str:
        """As its entry in the catalogue of downloads."""

    @property
    def title(self) -> str: ...

    @property
    def demo(self) -> bool:
        """Whether it describes drawn people, not photographs."""

    def weights(self, settings: Settings) -> tuple[Path, ...]:
        """The files with its weights, or where they would lie."""

    def missing(self, settings: Settings) -> tuple[Path, ...]:
        """Files it needs that are not there; () when it can be loaded."""

    def load(self, settings: Settings) -> Captioner:
        """Read the weights. Raises ModelError naming the file that is missing or damaged."""


def all_captioners() -> tuple[CaptionerLoader, ...]:
    """Every captioner of this package, by id. Raises ValueError when two files share an id."""
    return offered(__path__, __name__, "CAPTIONER", "captioners")


def find_captioner(settings: Settings, base: BaseInfo) -> CaptionerLoader:
    """The captioner for photos of this base that is installed.

    Raises ModelError when there is none, or when files of it are missing, naming them and what to do instead.
    """
    suitable = [loader for loader in all_captioners() if loader.demo == base.demo]
    for loader in suitable:
        if not loader.missing(settings):
            return loader
    if not suitable:
        raise ModelError(f"Nothing here can describe photos for “{base.title}”: take the fixed phrase as the caption.")
    begun = [loader for loader in suitable if any(path.is_file() for path in loader.weights(settings))]
    first = next(iter([*begun, *suitable]))
    names = listed([str(path) for path in first.missing(settings)]) if begun else ""
    what = f"{first.title} is not complete ({names})" if begun else "No captioner is installed"
    raise ModelError(
        f"{what}, so captions cannot be written automatically: {how_to_get(first.id)}, or take the fixed phrase."
    )
