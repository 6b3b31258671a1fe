"""CodeFormer (arXiv 2206.11253): repairs faces in photographs, by the network of spandrel-extra-arches.

The network takes exactly 512 x 512 in [-1, 1] and breaks down in half precision. Its argument is called
``weight``; any other name is swallowed without a word and 0.5 is used.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.restoration import licence
from headshot_ui.restoration.device import NetRestorer
from headshot_ui.restoration.protocol import RestorerInfo
from headshot_ui.restoration.weights import find_file, read_spandrel
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    import torch

    from headshot_ui.settings import Settings

SIDE = 512
ARCHITECTURE = "CodeFormer"
RELEASE = "https://github.com/sczhou/CodeFormer/releases/tag/v0.1.0"
LICENCE_PAGE = "https://github.com/sczhou/CodeFormer/blob/master/LICENSE"

INFO = RestorerInfo(
    id="codeformer",
    title="CodeFormer (photographs)",
    licence="S-Lab License 1.0",
    note="Repairs faces in photographs; for non-commercial use only.",
    size_px=SIDE,
    commercial=False,
    terms=(
        "CodeFormer, program and weights, is under the S-Lab License 1.0: you may use, copy and change it for "
        "non-commercial purposes only, have to keep its copyright notice, and need the authors' permission for "
        f"commercial use. The whole text: {LICENCE_PAGE}"
    ),
)


def repaired(net: torch.nn.Module, faces: torch.Tensor, fidelity_weight: float) -> torch.Tensor:
    """(B, 3, 512, 512) in [-1, 1] to the same. ``adain`` lets the result take over the colours of the input."""
    out: torch.Tensor = net(faces, weight=fidelity_weight, adain=True)[0]
    return out


def read_net(path: Path) -> torch.nn.Module:
    """The network with the weights of a .safetensors or .pth file. Raises ModelError naming the file."""
    from spandrel import ArchRegistry

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package compiles with what torch will take away one day
        from spandrel_extra_arches import EXTRA_REGISTRY

    registry = ArchRegistry()  # one of our own: adding to spandrel's main registry a second time raises
    registry.add(EXTRA_REGISTRY[ARCHITECTURE])
    return read_spandrel(path, registry, ARCHITECTURE)


@dataclass(frozen=True)
class CodeFormerRestorer:
    """How the program finds and loads CodeFormer."""

    info: RestorerInfo = field(default=INFO)

    def weights(self, settings: Settings) -> Path:
        """Where its file lies, or would lie: ``models/codeformer/``."""
        return find_file(settings.models_dir / "codeformer", ("codeformer",))

    def missing(self, settings: Settings) -> str:
        """What is missing (or not accepted) and what to do, in one sentence; "" when it can be used."""
        if importlib.util.find_spec("spandrel_extra_arches") is None:
            return "CodeFormer needs the package spandrel-extra-arches: run “python3 app.py” to set everything up."
        path = self.weights(settings)
        if not path.is_file():
            return (
                f"CodeFormer is not installed: {how_to_get(self.info.id)}; or take {path.name} from {RELEASE} and put "
                f"it at {path}."
            )
        if not licence.accepted(settings, self.info.id):
            return (
                f"CodeFormer is for non-commercial use only ({self.info.licence}, {LICENCE_PAGE}): accept its licence "
                "once, here or with “restore --accept-licence codeformer”."
            )
        return ""

    def load(self, settings: Settings) -> NetRestorer:
        """Read it. Raises ModelError naming what is missing or damaged."""
        return NetRestorer(self.info, read_net(self.weights(settings)), settings.device, repaired)


RESTORER = CodeFormerRestorer()
