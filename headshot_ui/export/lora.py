"""A finished training's LoRA as a file for other programs, in the layout they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.downloads.catalogue import load_catalogue
from headshot_ui.errors import ModelError, SpecError, StoreError
from headshot_ui.runs import Run, find_run, list_runs
from headshot_ui.store import check_free_space, told_plainly, write_bytes_atomic
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, LoraLayout
    from headshot_ui.store import Store

FOLDER = "loras"  # in the person's exports
DTYPES = ("float16", "float32")
_SUFFIX = ".safetensors"
_MOST_COPIES = 1000


@dataclass(frozen=True)
class LoraExport:
    """One file that was written, or was there already with the very same content."""

    path: Path
    run: str
    base: str  # id
    layout: str  # id
    takers: str  # the programs this layout is for
    where: tuple[str, ...]  # for each of them a sentence: where the file goes there
    trigger: str
    steps: int
    bytes: int
    was_there: bool = False
    base_title: str = ""
    licence: str = ""  # of the base model, which may be inherited


def export_lora(
    store: Store,
    person: str,
    run_name: str | None = None,
    layout: str | None = None,
    to: Path | None = None,
    dtype: str | None = None,
) -> LoraExport:
    """Write the LoRA of a finished run (default: the newest) in ``layout`` (default: the family's first).

    It goes to ``to``, or to the person's exports under a name made of person, run, steps and layout. Nothing is
    overwritten: where the name is taken by another content, the next free one is used, and ``to`` is refused.
    ``dtype`` is one of ``DTYPES``; None keeps that of the training. Raises SpecError, StoreError and ModelError.
    """
    run = _finished(store, person, run_name)
    source = run.lora_path
    assert source is not None
    info = base_of(run, store)
    chosen = _layout(info, layout)
    if dtype is not None and dtype not in DTYPES:
        raise SpecError("dtype", f"“{dtype}” is no type of numbers for a LoRA; choose from {', '.join(DTYPES)}.")
    target = _target(store, run, chosen, to, dtype)
    with told_plainly(source, "read"):
        check_free_space(target, 2 * source.stat().st_size)
    data = _file(chosen, source, target.stem, info, run, dtype)
    final = _free(target, data, may_rename=to is None)
    was_there = final.exists()
    if not was_there:
        write_bytes_atomic(final, data)
    trigger = str(run.facts.get("trigger", ""))
    return LoraExport(
        final, run.name, info.id, chosen.id, chosen.title, chosen.where, trigger, run.step, len(data), was_there,
        info.title, info.licence,
    )  # fmt: skip


def base_of(run: Run, store: Store) -> BaseInfo:
    """The base model a run was trained on: how its layers are named for others depends on it. Raises ModelError."""
    try:
        return families.find_base(run.spec.base, store.settings)
    except ModelError as error:
        base = run.spec.base
        remedy = f"put a complete copy of it into {store.settings.models_dir}"
        if base in load_catalogue():
            remedy = how_to_get(base)
        raise ModelError(
            f"The training “{run.name}” was made on the base model “{base}”, without which its LoRA cannot be written "
            f"for other programs, and which is not usable here any more: {remedy}."
        ) from error


def newest_finished(store: Store, person: str) -> Run | None:
    """The newest run of a person whose LoRA is there."""
    return next((run for run in list_runs(store, person) if _is_finished(run)), None)


def _finished(store: Store, person: str, run_name: str | None) -> Run:
    if run_name is None:
        newest = newest_finished(store, person)
        if newest is None:
            raise SpecError("person", f"“{person}” has no finished training yet: train first.")
        return newest
    run = find_run(store, person, run_name)
    if not _is_finished(run):
        raise SpecError("run", f"The training “{run.name}” has no LoRA yet; go on with it or choose another.")
    return run


def _is_finished(run: Run) -> bool:
    return run.lora_path is not None and run.lora_path.is_file()


def _layout(info: BaseInfo, wanted: str | None) -> LoraLayout:
    layouts = families.lora_layouts(info)
    for layout in layouts:
        if wanted in (None, layout.id):
            return layout
    known = ", ".join(f"{layout.id} (for {layout.title})" for layout in layouts)
    raise SpecError("layout", f"LoRAs for “{info.title}” cannot be written as “{wanted}”; choose from {known}.")


def _target(store: Store, run: Run, layout: LoraLayout, to: Path | None, dtype: str | None) -> Path:
    name = "_".join(part for part in (run.spec.person, run.name, f"{run.step}-steps", layout.id, dtype) if part)
    if to is None:
        return store.exports_dir(run.spec.person) / FOLDER / f"{name}{_SUFFIX}"
    to = to.expanduser()
    if to.is_dir():
        return to / f"{name}{_SUFFIX}"
    if to.suffix.lower() != _SUFFIX:
        raise SpecError("to", f"{to} does not end with {_SUFFIX}: other programs would not take it; name it so.")
    return to


def _file(layout: LoraLayout, source: Path, title: str, info: BaseInfo, run: Run, dtype: str | None) -> bytes:
    facts = {
        "base": info.id,
        "base_title": info.title,
        "trigger": str(run.facts.get("trigger", "")),
        "class_word": str(run.facts.get("class_word", "")),
        "steps": str(run.step),
    }
    return families.lora_in_layout(layout.id, source, info, facts, title, dtype)


def _free(target: Path, data: bytes, may_rename: bool) -> Path:
    """``target``, or with ``may_rename`` the first such name with a number, that is free or holds ``data`` already."""
    for number in range(1, _MOST_COPIES):
        path = target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")
        if not path.exists():
            return path
        with told_plainly(path, "read"):
            if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                return path
        if not may_rename:
            raise SpecError("to", f"{path} is there already and holds something else: name another file.")
    raise StoreError(f"{target.parent} holds too many exports of this LoRA: remove some.")
