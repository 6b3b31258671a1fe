"""Networks that tell faces apart, found by discovery: every file here exposes one ``RECOGNISER``.

Adding one means adding a file; nothing else changes. Importing this package loads no torch; looking the
recognisers up imports their files, and those may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from headshot_ui.discovery import offered
from headshot_ui.errors import ModelError
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from pathlib import Path

    from headshot_ui.dataset.types import Recogniser
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings


class RecogniserLoader(Protocol):
    """What ``RECOGNISER`` of a file in this package offers. Naming it reads no weights."""

    @property
    def id(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def demo(self) -> bool:
        """Whether it knows only the drawn demo people."""

    def weights(self, settings: Settings) -> Path:
        """Where the weights lie, or would."""

    def available(self, settings: Settings) -> bool:
        """Whether the weights are there."""

    def load(self, settings: Settings) -> Recogniser:
        """Read the weights. Raises ModelError naming the file that is missing or damaged."""


def all_recognisers() -> tuple[RecogniserLoader, ...]:
    """Every recogniser of this package, by id. Raises ValueError when two files share an id."""
    return offered(__path__, __name__, "RECOGNISER", "recognisers")


def find_recogniser(settings: Settings, base: BaseInfo) -> RecogniserLoader:
    """The recogniser for pictures of this base: the demo's for the demo, else one made for photographs.

    Raises ModelError when its weights are not there, naming the place where they belong.
    """
    suitable = [loader for loader in all_recognisers() if loader.demo == base.demo]
    for loader in suitable:
        if loader.available(settings):
            return loader
    places = " or ".join(str(loader.weights(settings)) for loader in suitable) or "headshot_ui/recognisers"
    get = "" if base.demo else f"{how_to_get('arcface')}, or "
    raise ModelError(
        f"No face recogniser for “{base.title}” is installed, so likeness cannot be measured: {get}put one at {places}."
    )
