"""Parts of a model between their files, main memory and the device. It knows no family: a ``PartSource`` reads them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from headshot_ui.errors import Cancelled
from headshot_ui.memory import empty_cache, give_back
from headshot_ui.swapping import forget_copies, move, send

if TYPE_CHECKING:
    import torch

Modules = tuple[Any, ...]


class PartSource(Protocol):
    """Where parts come from."""

    @property
    def in_turns(self) -> bool:
        """Main memory is short beside the parts: each is read when it is needed, and none waits there."""

    def read(self, part: str, as_stored: bool = False) -> Modules:
        """The modules of a part in main memory; ``as_stored``: in the number format of their files."""

    def dtype_of(self, part: str) -> torch.dtype:
        """The number format in which a part computes."""


class Shelf:
    """The parts of one model. They move to the device when first needed, and off it by ``keep``.

    Without a ``source`` no part can be read again, and so none is dropped. ``stays`` says of a part that it must not
    be dropped now, because there is more in it than in its files; ``on_ready`` is called before a part computes,
    ``on_going`` before that and before it moves to the device, ``on_leaving`` before it moves away or is dropped.
    While a module of a part moves to the device ``on_moved`` is called with the part, weights there and weights in all
    (see ``swapping.move``); it may raise Cancelled, and then the module is off the device again.
    """

    def __init__(
        self,
        device: str,
        parts: Mapping[str, Modules],
        source: PartSource | None,
        stays: Callable[[str], bool] = lambda part: False,
        on_ready: Callable[[str, Modules], None] = lambda part, modules: None,
        on_going: Callable[[str, Modules], None] = lambda part, modules: None,
        on_leaving: Callable[[str, Modules], None] = lambda part, modules: None,
        on_moved: Callable[[str, int, int], None] = lambda part, done, total: None,
    ) -> None:
        self.device = device
        self._parts = dict(parts)
        self._source, self._stays, self._on_ready = source, stays, on_ready
        self._on_going, self._on_leaving, self._on_moved = on_going, on_leaving, on_moved
        self._here: set[str] = set()  # parts that compute now, or did since the last ``keep``
        self.frugal = source is not None and source.in_turns  # main memory is short: nothing waits there
        self.together = False  # the device holds all parts at once: what is there stays until all are to go

    @property
    def here(self) -> Collection[str]:
        """Parts that compute now, or did since the last ``keep``."""
        return self._here

    def modules(self, part: str) -> Modules:
        """Those of a part in memory, wherever they are; () if it is not."""
        return self._parts[part]

    def present(self, part: str) -> Modules:
        """The same, read if they are not in memory. Raises ModelError."""
        if not self._parts[part] and self._source is not None:
            self._parts[part] = self._source.read(part, as_stored=self.device == "cuda")
        return self._parts[part]

    def ready(self, part: str) -> Modules:
        """The same, on the device and about to compute. Raises ModelError."""
        modules = self.present(part)
        self._on_going(part, modules)
        dtype = None if self._source is None else self._source.dtype_of(part)  # what is trained keeps its own
        for module in modules:
            if module.device.type != self.device:
                try:
                    told = partial(self._on_moved, part)
                    move(module, self.device, keep_copy=not self.frugal, dtype=dtype, told=told)
                except Cancelled:  # a module that is here and there would be taken for one that is there
                    move(module, "cpu")
                    raise
        self._on_ready(part, modules)
        self._here.add(part)
        return modules

    def keep(self, parts: frozenset[str]) -> None:
        """See ``protocol.LoadedBase.keep``."""
        if self.together and parts:
            parts = parts | self._here
        self._here = set(parts)
        for part in self._parts.keys() - parts:
            self._on_leaving(part, self._parts[part])
        if self.frugal:
            self.shed()
        if self.device == "cpu":
            return
        for part in self._parts.keys() - parts:
            for module in self._parts[part]:
                move(module, "cpu")
        empty_cache(self.device)
        self._here -= parts  # until they are ready, which a cancel may prevent
        for part in sorted(parts):
            self.ready(part)

    def put_away(self, part: str, drop: bool = False) -> None:
        """Have a part in main memory, or have it dropped: it is read again when it is needed."""
        modules = self._parts[part]
        self._here.discard(part)
        self._on_leaving(part, modules)
        if drop and self._source is not None:
            self._parts[part] = modules = ()
            gc.collect()
            give_back()
        for module in modules if self.device != "cpu" else ():
            move(module, "cpu")
        empty_cache(self.device)

    def expect(self, parts: frozenset[str], room: int) -> bool:
        """See ``protocol.LoadedBase.expect``."""
        if self.device != "cuda" or self.frugal:
            return False
        dtypes = {part: None if self._source is None else self._source.dtype_of(part) for part in parts - self._here}
        return any([send(m, self.device, room, dtypes[part]) for part in dtypes for m in self._parts[part]])

    def shed(self) -> None:
        """See ``protocol.LoadedBase.shed``."""
        if self._source is None:
            return
        self.frugal = True
        for part, modules in self._parts.items():
            if part in self._here or self._stays(part):
                for module in modules:
                    forget_copies(module)
            else:
                self._parts[part] = ()
        gc.collect()  # modules of transformers refer to themselves
        give_back()

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""
        for part, modules in self._parts.items():
            self._on_leaving(part, modules)
        self._parts.clear()
        empty_cache(self.device)
