"""The restorer of the drawn demo people: a small network of our own that has only ever seen cartoons."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.restoration.device import NetRestorer
from headshot_ui.restoration.protocol import RestorerInfo

if TYPE_CHECKING:
    import torch

    from headshot_ui.settings import Settings

INFO = RestorerInfo(
    id="demo",
    title="Demo restorer (drawn people only)",
    licence="Apache-2.0",
    note="Repairs the faces of drawn demo people; photographs come out worse than they were.",
    size_px=192,
    commercial=True,
    demo=True,
)


def repaired(net: torch.nn.Module, faces: torch.Tensor, fidelity_weight: float) -> torch.Tensor:
    """(B, 3, 192, 192) in [-1, 1] to the same."""
    out: torch.Tensor = net(faces, fidelity_weight)
    return out


@dataclass(frozen=True)
class DemoRestorer:
    """How the program finds and loads this restorer."""

    info: RestorerInfo = field(default=INFO)

    def weights(self, settings: Settings) -> Path:
        """Where its file lies, or would lie."""
        return settings.models_dir / "demo" / "restorer" / "restorer.safetensors"

    def missing(self, settings: Settings) -> str:
        """What is missing and what to do, in one sentence; "" when it can be used."""
        path = self.weights(settings)
        return "" if path.is_file() else f"The demo restorer is missing: put {path} back by getting the program again."

    def load(self, settings: Settings) -> NetRestorer:
        """Read it. Raises ModelError naming what is missing or damaged."""
        from headshot_ui.restoration.demo_net import read_net

        return NetRestorer(self.info, read_net(self.weights(settings)), settings.device, repaired)


RESTORER = DemoRestorer()
