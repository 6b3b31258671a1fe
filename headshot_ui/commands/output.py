"""What a command says at its end: lines for people, or one JSON object as the last line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


def progress_stream(as_json: bool) -> TextIO:
    """With --json, standard output carries the JSON line and nothing else."""
    return sys.stderr if as_json else sys.stdout


def to_plain(value: Any) -> Any:
    """``value`` with only JSON types: dataclasses become dicts, paths strings, tuples lists, numbers numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy's own numbers
        return value.item()
    if isinstance(value, Iterable):
        return [to_plain(item) for item in value]
    return str(value)


def print_json(value: Any) -> None:
    """One object on one line, in plain ASCII so that every console can show it."""
    print(json.dumps(to_plain(value)), flush=True)


def print_table(rows: Sequence[tuple[str, ...]], stream: TextIO | None = None) -> None:
    """Rows with aligned columns, the first row being the heading; numbers (all but the first column) to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) if column == 0 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip(), file=stream)
        if number == 0:
            print("  ".join("-" * width for width in widths), file=stream)
