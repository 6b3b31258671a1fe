"""Work that finds too little graphics memory goes on in a smaller way: what training and drawing have in common.

How much a piece of work takes is estimated before it was ever made. Where the estimate was too small for a card, the
piece is tried again in a smaller way; which ways there are, whoever does the work knows, and the base model (see
``LoadedBase.fit`` and ``decode_latents``).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headshot_ui.logs import is_out_of_gpu_memory
from headshot_ui.memory import empty_cache

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from headshot_ui.families.protocol import LoadedBase

#: The next way takes so much less at least, so that it is not tried ten times for want of one block.
LEAST_LESS = 2**29
VAE = frozenset({"vae"})

_log = logging.getLogger(__name__)


def out_of_memory(work: Callable[[], object], what: str) -> RuntimeError | None:
    """Do it; the error if graphics memory ran out in it, which then holds nothing of what the work had made.

    ``what`` it is stands in the log: "A training step".
    """
    try:
        work()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_gpu_memory(error):
            raise
        _log.warning("%s found too little graphics memory", what, exc_info=error)
        return error.with_traceback(None)  # its frames would keep the tensors
    return None


def make_room(device: str) -> None:
    """After memory ran out: everything that nobody holds any more is given back."""
    gc.collect()
    empty_cache(device)


def decode(loaded: LoadedBase, latents: torch.Tensor, device: str) -> list[Image.Image]:
    """See ``LoadedBase.decode_latents``. Where memory runs out nothing but the VAE stays on the device, and in the end
    it works in tiles. The last error is raised where that does not help."""
    found: list[Image.Image] = []

    def decoded(**how: Any) -> None:
        found.extend(loaded.decode_latents(latents, **how))

    failed = None
    for how in ({}, {}, {"in_tiles": True}):
        if failed is not None:
            loaded.keep(frozenset())
            make_room(device)
            loaded.keep(VAE)
        failed = out_of_memory(lambda how=how: decoded(**how), "Decoding a picture")  # type: ignore[misc]
        if failed is None:
            return found
    assert failed is not None
    raise failed
