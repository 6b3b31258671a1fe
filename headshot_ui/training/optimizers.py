"""Which optimizer a run has: AdamW in 32 bit, or bitsandbytes' with 8-bit moments where that can be had.

Moments are the two running means AdamW keeps of every number it trains. bitsandbytes keeps them in 8 bit, in blocks
of 256 numbers with a scale each, and in 32 bit for tensors of fewer than 4,096 numbers (Dettmers et al. 2021,
arXiv 2110.02861). It is imported only when a run asks for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headshot_ui.specs import OPTIMIZERS

if TYPE_CHECKING:
    import torch

ADAMW, ADAMW_8BIT = OPTIMIZERS
WEIGHT_DECAY = 1e-4  # as in the published recipe
BLOCK, SMALLEST_8BIT = 256, 4096  # numbers
_QUANTISED = "__bnb_optimizer_quant_state__"  # where bitsandbytes keeps what is not for every optimizer

_log = logging.getLogger(__name__)


def choose_optimizer(wanted: str, device: str, saved: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The optimizer a run can have on ``device``, and why it is not the wanted one in half a sentence, or "".

    ``saved`` is the state of the optimizer that the run goes on with: what began in 32 bit ends in 32 bit, so that
    it ends bit-equal wherever it is continued.
    """
    if wanted != ADAMW_8BIT:
        return wanted, ""
    if saved is not None and saved["state"] and not _is_8bit(saved):
        return ADAMW, "this run was begun without it"
    problem = why_no_8bit(device)
    return (ADAMW, problem) if problem else (ADAMW_8BIT, "")


def why_no_8bit(device: str) -> str:
    """Why 8-bit AdamW cannot be used on ``device``, in half a sentence; "" when a step with it was tried and worked."""
    import torch

    if device == "mps":
        return "it does not work on Apple's graphics"
    try:
        trial = torch.nn.Parameter(torch.ones(SMALLEST_8BIT, device=device))
        trial.grad = torch.ones_like(trial)
        make_optimizer(ADAMW_8BIT, [trial], 0.1).step()
        worked = bool(torch.isfinite(trial).all()) and bool((trial < 1).all())
    except ImportError:
        return "bitsandbytes is not installed"
    except Exception:  # a library for another driver or card can fail in many ways, and none of them may stop a run
        _log.warning("8-bit AdamW does not work here", exc_info=True)
        return "bitsandbytes does not work with this graphics card or driver"
    return "" if worked else "bitsandbytes computes nonsense on this computer"


def make_optimizer(name: str, parameters: Sequence[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """A fresh optimizer. Raises ImportError where bitsandbytes is needed and missing."""
    import torch

    if name == ADAMW_8BIT:
        if sys.modules.get("bitsandbytes", torch) is None:  # shared_parts keeps other libraries from loading it
            del sys.modules["bitsandbytes"]
        with _quietly():
            from bitsandbytes.optim import AdamW8bit
        made: torch.optim.Optimizer = AdamW8bit(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
        return made
    device = parameters[0].device
    if device.type != "cuda":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    rate = torch.tensor(learning_rate, device=device)  # so that a recorded step reads it each time
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY, fused=True, capturable=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """bitsandbytes warns while it is imported of kernels for other things than optimizers."""
    log = logging.getLogger("bitsandbytes")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For the next step, also where that is recorded already."""
    import torch

    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


# --- state ----------------------------------------------------------------------------------------
def fitting_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state as ``optimizer`` takes it: 8-bit moments are widened for one that has 32-bit ones.

    Its settings are its own: some belong to the device that the state was saved on.
    """
    groups = optimizer.state_dict()["param_groups"]
    if not _is_8bit(saved) or type(optimizer).__module__.startswith("bitsandbytes"):
        return {**saved, "param_groups": groups}
    import torch

    state = {}
    for index, entry in saved["state"].items():
        kept = entry[_QUANTISED]
        first, second = (_widened(kept, number) for number in (1, 2))
        state[index] = {"step": torch.tensor(float(entry["step"])), "exp_avg": first, "exp_avg_sq": second}
    return {"state": state, "param_groups": groups}


def _is_8bit(saved: Mapping[str, Any]) -> bool:
    return any(_QUANTISED in entry for entry in saved["state"].values())


def _widened(kept: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
    """The first or second moment in float32, in the shape of its parameter."""
    moment = kept[f"state{number}"]
    if moment.is_floating_point():  # too few numbers for 8 bit
        return moment.clone()
    values = kept[f"qmap{number}"][moment.flatten().long()]
    scales = kept[f"absmax{number}"].repeat_interleave(BLOCK)[: values.numel()]
    return (values * scales).reshape(moment.shape)


def moment_bytes(numbers: int, optimizer: str) -> int:
    """Bytes of both moments of a tensor of so many numbers."""
    if optimizer != ADAMW_8BIT or numbers < SMALLEST_8BIT:
        return 8 * numbers
    return 2 * (numbers + 4 * -(-numbers // BLOCK))
