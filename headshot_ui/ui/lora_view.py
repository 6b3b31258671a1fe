"""A finished training as a file for other programs: what is offered, what is said of it, the file. No gradio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import families
from headshot_ui.errors import SpecError
from headshot_ui.export.lora import base_of, export_lora
from headshot_ui.generation.prompts import subject_of
from headshot_ui.runs import find_run
from headshot_ui.store import readable_bytes
from headshot_ui.ui import run_history
from headshot_ui.ui.gallery import copied
from headshot_ui.ui.outcomes import count_of
from headshot_ui.wording import licence_comes_with

if TYPE_CHECKING:
    from headshot_ui.families.protocol import LoraLayout
    from headshot_ui.store import Store

#: Nothing is offered.
NO_HEAD: dict[str, Any] = {"run": ""}
NO_HELP: dict[str, Any] = {"where": []}
NOT_TOLD: dict[str, Any] = {"file": ""}


@dataclass(frozen=True)
class Offer:
    """One training that can be taken along."""

    run: str
    when: str
    steps: int
    layouts: tuple[LoraLayout, ...]  # the most useful one first
    subject: str  # what stands for the person in prompts; "" where that is not known
    base: str  # title
    demo: bool
    licence: str  # one sentence; "" where nothing is known

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(words, value) pairs."""
        return [(layout.title, layout.id) for layout in self.layouts]

    def head_values(self) -> dict[str, Any]:
        return {"run": self.run, "when": self.when, "steps": count_of(self.steps, "step")}

    def help_values(self, layout: str | None) -> dict[str, Any]:
        """Where the file in this layout goes, and how it is used there."""
        chosen = next((each for each in self.layouts if each.id == layout), self.layouts[0])
        return {"where": list(chosen.where), "subject": self.subject, "base": self.base, "demo": self.demo,
                "licence": self.licence}  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """A file to hand out."""

    copy: Path  # in the private folder
    told: dict[str, Any]  # values of the template TAKEN_LORA


def offer(store: Store, person: str, run_name: str) -> Offer:
    """What can be taken along of a run. Raises StoreError, SpecError, and ModelError when its base model is gone."""
    run = find_run(store, person, run_name)
    info = base_of(run, store)
    trigger, class_word = (str(run.facts.get(name) or "") for name in ("trigger", "class_word"))
    subject = subject_of(trigger, class_word) if trigger else ""
    return Offer(run.name, run_history.when(run.created), run.step, families.lora_layouts(info), subject, info.title,
                 info.demo, licence_comes_with(info.title, info.licence))  # fmt: skip


def take(store: Store, person: str, run_name: str, layout: str | None, shown_dir: Path) -> Taken:
    """Write the file among the person's exports, unless it is there, and copy it. Raises what ``export_lora`` does."""
    if not run_name:
        raise SpecError("run", "No training is chosen: press “Take along” at one of them.")
    made = export_lora(store, person, run_name, layout)
    told = {"file": made.path.name, "size": readable_bytes(made.bytes), "folder": str(made.path.parent)}
    return Taken(copied(made.path, shown_dir), told)
