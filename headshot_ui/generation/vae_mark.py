"""Which VAE made a picture, where it was not the base's own: it stands in the picture, and is asked for again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import LoadedBase, OtherVae
from headshot_ui.generation.refiner_choice import weights_sha256
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store


@dataclass(frozen=True)
class VaeMark:
    """What is written into pictures about a VAE that is not the base's own."""

    id: str
    sha256: str  # of its weights


def vae_mark(loaded: LoadedBase) -> VaeMark | None:
    """The mark for pictures of this base; None: its own VAE makes them. Reads the weights whole. Raises StoreError."""
    return _mark(loaded.other_vae)


def check_vae(before: VaeMark | None, spec: GenerateSpec, path: Path, store: Store) -> None:
    """Raise ModelError unless the VAE that made ``path`` (``before``) would make it again here."""
    now = _mark(families.other_vae(families.find_base(spec.base, store.settings), store.settings))
    if now != before:
        raise ModelError(
            f"{path.name} was made with {_words(before)}, but here {_words(now)} would make it, with other last bits; "
            "draw a new picture."
        )


def _mark(vae: OtherVae | None) -> VaeMark | None:
    return None if vae is None else VaeMark(vae.id, weights_sha256(vae))


def _words(mark: VaeMark | None) -> str:
    return "the base model's own VAE" if mark is None else f"the VAE “{mark.id}” ({mark.sha256[:8]})"
