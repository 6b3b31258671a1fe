"""Functions that a network carries out many times in a pass, compiled once and put in the place of the ordinary ones.

Between its products a block reads and writes all of its activations many times: norms, shifts, gates, embedded places,
GELU and changes of the number format are a kernel each. torch's compiler (Inductor) makes a few kernels of them. Blocks
of one kind are compiled once for all ("regional compilation"), because their code is the same and weights are inputs
of it; a whole network would take minutes. A step is recorded as a CUDA graph around them (``capture``), so nothing is
recorded here.

What is compiled computes the same but for rounding: between fused operations nothing is rounded to 16 bit. Where a
function cannot be compiled, for whatever reason, the ordinary one goes on, and the log says so once.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.families.requests import Recorder, Repeated, StepFunction
from headshot_ui.settings import ALWAYS, NEVER, Settings

if TYPE_CHECKING:
    import torch

#: Compiles a graph of torch.fx for example inputs: Inductor, or what a test puts in its place.
Backend = Callable[..., Callable[..., Any]]
#: Hears of each graph before it is compiled, with how many were before; it may raise, after that graph.
Told = Callable[[int], None]

#: Of one function: sizes of photos or pictures, widths of blocks, first blocks whose input needs no gradients.
MOST_VARIANTS = 64
#: What is told while something is compiled.
STAGE = "Compiling"
#: In the folder of results: what was compiled before is read instead of made.
FOLDER = "compiled"
_FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

_log = logging.getLogger(__name__)


@dataclass
class Compiled:
    """What became of the functions of one stretch of work."""

    compilations: int = 0  # graphs that were compiled, or found compiled on the disk
    seconds: float = 0.0  # they took
    failed: dict[str, str] = field(default_factory=dict)  # functions that stay ordinary, and why
    full: set[str] = field(default_factory=set)  # functions that more variants were asked of than are compiled
    told: Told | None = None
    raised: BaseException | None = None  # by ``told``: a compiler would take it for a failure of its own


def why_not(device: str) -> str:
    """Why nothing can be compiled for this device; "" where it can. Imports torch on a card only."""
    if device != "cuda":
        return f"blocks are compiled for CUDA cards only, and this is “{device}”"
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton is not installed, or not made for this card"
    named = os.environ.get("CC", "")
    if sys.platform != "win32" and not any(map(shutil.which, filter(None, (named, "gcc", "clang", "cc")))):
        return "there is no C compiler (gcc or clang)"
    return ""


def wanted(settings: Settings, pays: bool = False) -> bool:
    """Whether to compile, as the settings say; ``pays``: with "auto" too, because it saves more than it costs.

    Where it cannot be done the log says why.
    """
    if settings.compile == NEVER or not (pays or settings.compile == ALWAYS):
        return False
    why = why_not(settings.device)
    if why:
        if settings.compile == ALWAYS or settings.device == "cuda":
            _log.info("Blocks are not compiled: %s", why)
        return False
    keep_in(settings.outputs_dir / FOLDER)
    return True


def keep_in(folder: Path) -> None:
    """What is compiled from now on lies in this folder for the next time, unless the environment names another."""
    os.environ.setdefault(_FOLDER_VARIABLE, str(folder))


def something_kept() -> bool:
    """Whether anything that was compiled before lies where ``keep_in`` has it kept."""
    folder = os.environ.get(_FOLDER_VARIABLE, "")
    try:
        return bool(folder) and any(Path(folder).iterdir())
    except OSError:
        return False


@contextmanager
def compiled(
    repeated: Sequence[Repeated], learning: bool, told: Told | None = None, backend: Backend | None = None
) -> Iterator[Compiled]:
    """These functions compiled, each when it is first called, for the length of a block; then as they were.

    ``learning``: only where gradients are wanted; otherwise only where not. ``told`` may raise to cancel, which comes
    out of the function that was being compiled. ``backend`` stands in for Inductor.
    """
    state, before = Compiled(told=told), [(one, vars(one.owner).get(one.name)) for one in repeated]
    with ExitStack() as patches:
        _set_up(patches)
        try:
            for one in repeated:
                own = getattr(one.owner, one.name)
                vars(one.owner)[one.name] = partial(_carry_out, state, own, learning, backend or inductor)
            yield state
        finally:
            for one, own in before:
                if own is None:
                    vars(one.owner).pop(one.name, None)
                else:
                    vars(one.owner)[one.name] = own
    if state.compilations:
        _log.info("%d graphs were compiled or read in %.1f s", state.compilations, state.seconds)


def when_ready(
    recorder: Recorder,
    repeated: Callable[[], Sequence[Repeated]],
    stack: ExitStack,
    told: Told | None = None,
    backend: Backend | None = None,
) -> Recorder:
    """A recorder that compiles first, for drawing, until ``stack`` ends: only then is the denoiser in memory for sure.

    ``repeated`` is asked at the first step that is to be recorded.
    """
    begun: list[bool] = []

    def record(step: StepFunction, module: torch.nn.Module) -> StepFunction:
        if not begun:
            begun.append(True)
            stack.enter_context(compiled(repeated(), learning=False, told=told, backend=backend))
        return recorder(step, module)

    return record


def inductor(graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
    """torch's own compiler, without CUDA graphs of its own."""
    from torch._inductor.compile_fx import compile_fx

    made: Any = compile_fx(graph, list(inputs))
    return made  # type: ignore[no-any-return]


def _set_up(patches: ExitStack) -> None:
    import torch._dynamo.config
    import torch._functorch.config

    # Gradients are compiled together with what they are of: so a failure comes out of the function, not of autograd.
    patches.enter_context(torch._functorch.config.patch(force_non_lazy_backward_lowering=True))
    patches.enter_context(torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS))


def _carry_out(
    state: Compiled, own: Callable[..., Any], learning: bool, backend: Backend, *args: Any, **kw: Any
) -> Any:
    import torch
    import torch._dynamo

    function, leading = _code_of(own)
    name = getattr(function, "__qualname__", str(function))
    if torch.is_grad_enabled() != learning or name in state.failed:
        return own(*args, **kw)
    _Counting.now, before = state, state.compilations
    try:
        out = _compiled_once(function, backend)(*leading, *args, **kw)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        if name not in state.full:
            state.full.add(name)
            _log.warning("%s is compiled for %d cases; others are computed as before", name, MOST_VARIANTS)
            _log.debug("%s", error)
        return own(*args, **kw)
    except Exception as error:
        new = state.compilations > before
        if not (isinstance(error, torch._dynamo.exc.TorchDynamoException) or new) or _ends_early(error):
            raise
        if state.raised is None:
            # If it is not the compiler's fault, the ordinary function raises the same.
            state.failed[name] = " ".join(str(error).split("\n")[:2]).strip()
            _log.warning("%s is not compiled and goes on as it is: %s", name, state.failed[name])
            _log.debug("%s", error)
            return own(*args, **kw)
    finally:
        _Counting.now = None
    if state.raised is not None:
        raised, state.raised = state.raised, None
        raise raised
    return out


def _code_of(own: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function that all blocks of a kind share, and what this one gives it first (the block)."""
    if isinstance(own, partial) and not own.keywords:
        function, leading = _code_of(own.func)
        return function, (*leading, *own.args)
    if hasattr(own, "__func__"):
        return own.__func__, (own.__self__,)  # type: ignore[attr-defined]
    return own, ()


def _ends_early(error: Exception) -> bool:
    """Gradient checkpointing ends what it computes again by an exception, as soon as it has all it kept nothing of."""
    from torch.utils.checkpoint import _StopRecomputationError

    return isinstance(error, _StopRecomputationError)


class _Counting:
    """Whose functions are being compiled; one thread at a time computes."""

    now: Compiled | None = None


@cache
def _compiled_once(function: Callable[..., Any], backend: Backend) -> Callable[..., Any]:
    """The same object each time: a compiler's memory of what it compiled belongs to it."""
    import torch

    def counted(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        state = _Counting.now
        if state is None:
            return backend(graph, inputs)
        if state.told is not None and state.raised is None:
            try:
                state.told(state.compilations)
            except BaseException as error:
                state.raised = error
        began = time.monotonic()
        try:
            return backend(graph, inputs)
        finally:
            state.compilations += 1
            state.seconds += time.monotonic() - began

    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, backend=counted)
    return made
