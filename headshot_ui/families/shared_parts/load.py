"""From the files of a part to a module in memory, and in which number format it waits there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.shared_parts.files import variant_of, weight_files
from headshot_ui.families.shared_parts.mapped import STORED, read_mapped
from headshot_ui.memory import FilePart, read_header

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, RefinerInfo


def read_model(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One part, frozen and in evaluation mode. Raises ModelError when it cannot be read or lacks a tensor.

    It is in diffusers layout: the config, and the weights beside it, lie in ``folder``/``part``.
    """
    mapped = read_mapped(kind, folder, part, dtype)
    if mapped is not None:
        return mapped.requires_grad_(False).eval()
    try:
        model, info = kind.from_pretrained(
            folder / part,
            dtype=dtype,
            variant=variant_of(folder, part),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever the loaders raise, the cause is a file of this part
        raise ModelError(f"{folder / part} cannot be loaded: {AGAIN}.") from error
    missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
    if missing:  # the loaders fill the gap with random numbers
        raise ModelError(f"The weights in {folder / part} are incomplete (“{sorted(missing)[0]}” is missing): {AGAIN}.")
    return model.requires_grad_(False).eval()


def waiting_dtype(info: BaseInfo | RefinerInfo, part: str, wanted: torch.dtype, in_turns: bool) -> torch.dtype:
    """The number format in which a part waits in main memory for a card, where it computes in ``wanted``.

    That of its file, so that nothing is converted here, unless it takes more room there: then ``wanted``. Read in
    turns, it does not wait at all.
    """
    stored = stored_dtype(info, part, wanted)
    return stored if in_turns or stored.itemsize <= wanted.itemsize else wanted


def stored_dtype(info: BaseInfo | RefinerInfo, part: str, wanted: torch.dtype) -> torch.dtype:
    """The number format in which a part is stored; ``wanted`` where there are several."""
    if info.checkpoint is None:
        kinds = {tensor.dtype for path in weight_files(info.folder, part) for tensor in read_header(path)}
    else:
        prefix = dict(info.checkpoint_parts)[part]
        kinds = {tensor.dtype for tensor in FilePart(info.checkpoint, part, prefix).tensors()}
    kinds -= {"I64", "I32"}
    return STORED.get(kinds.pop(), wanted) if len(kinds) == 1 else wanted


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries meanwhile; our own checks speak instead."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    try:
        for log, _, _ in before:
            log.set_verbosity_error()
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
