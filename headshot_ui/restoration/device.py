"""A frozen network that is on the device while it is needed and in main memory at other times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headshot_ui.swapping import move

if TYPE_CHECKING:
    import torch

    from headshot_ui.restoration.protocol import RestorerInfo


class DeviceNet:
    """Holds one network in float32. It begins in main memory."""

    def __init__(self, net: torch.nn.Module, device: str) -> None:
        self._net: torch.nn.Module | None = net.float().eval().requires_grad_(False)
        self._device = device

    @property
    def device(self) -> str:
        """Where the next call computes."""
        net = self._present()
        return str(next((p.device for p in net.parameters()), self._device))

    def run(self, call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """``call(net, x)`` on the network's device, without gradients; the answer is float32 on the CPU."""
        import torch

        net = self._present()
        with torch.inference_mode():
            return call(net, x.to(self.device, torch.float32)).float().cpu()

    def keep(self, parts: frozenset[str]) -> None:
        """Any part's name: on the device; frozenset(): off it."""
        move(self._present(), self._device if parts else "cpu")

    def release(self) -> None:
        """Drop the weights."""
        self._net = None

    def _present(self) -> torch.nn.Module:
        if self._net is None:
            raise RuntimeError("this network was released")
        return self._net


class NetRestorer:
    """A restorer in memory that is one network and the way it is called; behind the LoadedRestorer protocol."""

    def __init__(
        self,
        info: RestorerInfo,
        net: torch.nn.Module,
        device: str,
        call: Callable[[torch.nn.Module, torch.Tensor, float], torch.Tensor],
    ) -> None:
        self.info = info
        self._held = DeviceNet(net, device)
        self._call = call

    def restore(self, faces: torch.Tensor, fidelity_weight: float) -> torch.Tensor:
        """(B, 3, S, S) float32 RGB in [-1, 1] to the same shape and range; 0 repairs most, 1 keeps most."""
        side = self.info.size_px
        if faces.ndim != 4 or tuple(faces.shape[1:]) != (3, side, side):
            raise ValueError(f"{self.info.id} takes faces of (B, 3, {side}, {side}), not {tuple(faces.shape)}")
        return self._held.run(lambda net, x: self._call(net, x, fidelity_weight), faces).clamp(-1, 1)

    def keep(self, parts: frozenset[str]) -> None:
        self._held.keep(parts)

    def release(self) -> None:
        self._held.release()
