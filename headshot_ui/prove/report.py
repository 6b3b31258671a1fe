"""The report of a proof: Markdown for people, JSON for programs, and nothing in either that tells who it is from.

No picture, no name, no place: only hardware, versions, figures and sentences, and of those every path, user name and
host name is taken out.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import __version__
from headshot_ui.prove.findings import Proof, Result
from headshot_ui.store import readable_bytes, write_bytes_atomic, write_json_atomic
from headshot_ui.wording import format_seconds

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.prove.plan import ProvePlan
    from headshot_ui.settings import Settings

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "spandrel", "numpy", "pillow")
MARKS = {"holds": "holds", "fails": "**FAILS**", "not possible": "not possible here"}
ATTACH = "Attach this file to an issue: it holds no picture, no name and no place."
#: Any absolute path that is left: of Windows, of Unix with at least two parts (so that "1/16" and "s/step" stay).
_PATHS = re.compile(r"[A-Za-z]:\\[^\s“”\"',;:]+|(?<![\w.>])/(?:[^\s/“”\"',;:]+/)+[^\s“”\"',;:]*")
#: What follows the name of a folder. Only within the models is it nobody's own.
_TAILS = re.compile(r"(<(?!models>)\w+>)[/\\][^\s“”\"',;:]*")


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    device: str
    card: str  # "" without one
    card_bytes: int
    driver: str
    dtype: str
    vram_limit_bytes: int | None
    python: str
    packages: Mapping[str, str]


def machine(settings: Settings) -> Machine:
    """Facts of this computer that say nothing about its owner."""
    import torch

    from headshot_ui.memory import total_ram_bytes

    card, card_bytes, driver = "", 0, ""
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        card, card_bytes = str(properties.name), int(properties.total_memory)
        driver = f"CUDA {torch.version.cuda}, compute capability {properties.major}.{properties.minor}{_driver()}"
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Machine(
        f"{platform.system()} {platform.machine()}", _processor(), len(_usable_cores()), total_ram_bytes(),
        settings.device, card, card_bytes, driver, settings.dtype, settings.vram_limit_bytes,
        platform.python_version(), versions,
    )  # fmt: skip


def _usable_cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _driver() -> str:
    """ ", driver 580.65" where nvidia-smi says so."""
    import subprocess

    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return f", driver {told[0]}" if told else ""
    return ""


# --- writing ------------------------------------------------------------------------------------------
def write_report(
    path: Path, proof: Proof, plan: ProvePlan, info: BaseInfo, about: Machine, places: Sequence[Settings]
) -> tuple[Path, Path]:
    """Write ``path`` (Markdown) and the same as JSON beside it; both paths. Raises StoreError.

    ``places`` are the settings whose folders must not be told.
    """
    clean = Scrubber.of(places, plan)
    data = clean.everything(report_data(proof, plan, info, about))
    beside = path.with_suffix(".json")
    write_json_atomic(beside, data)
    write_bytes_atomic(path, (clean.text("\n".join(markdown(proof, plan, info, about))) + "\n").encode())
    return path, beside


def report_data(proof: Proof, plan: ProvePlan, info: BaseInfo, about: Machine) -> dict[str, Any]:
    """Everything as plain JSON types."""
    return {
        "program": f"headshot_ui {__version__}",
        "ok": not proof.failed,
        "base": {"id": info.id, "family": info.family, "size_px": info.size_px, "random_weights": plan.random},
        "photos": "bundled, drawn" if plan.bundled else "given",
        "amounts": asdict(plan.amounts),
        "machine": asdict(about),
        "checks": [{**asdict(result), "measured": dict(result.measured)} for result in proof.results],
        "notes": list(proof.notes),
        "seconds": round(proof.seconds, 1),
    }


def markdown(proof: Proof, plan: ProvePlan, info: BaseInfo, about: Machine) -> list[str]:
    """The lines of the report."""
    failed = len(proof.failed)
    verdict = "everything that could be tried holds" if not failed else f"{failed} of {len(proof.results)} checks FAIL"
    lines = [
        f"# headshot_ui {__version__}: proof of “{info.id}”", "",
        f"**{verdict[0].upper()}{verdict[1:]}.** {ATTACH}", "",
    ]  # fmt: skip
    if plan.random:
        lines += ["The weights are random: what is drawn is noise, and nothing is said of faces or likeness.", ""]
    lines += ["| check | verdict | what was found | time | memory | graphics memory |", "|---|---|---|---|---|---|"]
    lines += [_row(result) for result in proof.results]
    if proof.failed:
        lines += ["", "## What to do", ""]
        lines += [f"- **{_cell(result.title)}**: {_cell(result.advice)}" for result in proof.failed]
    measured = {name: value for result in proof.results for name, value in result.measured.items()}
    if measured:
        lines += ["", "## Measured", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in measured.items()]
    lines += ["", "## This computer", "", *_machine_lines(about), "", *_amount_lines(plan, proof)]
    if proof.notes:
        lines += ["", "## Notes of the program", "", *(f"- {_cell(note)}" for note in proof.notes)]
    return lines


def _row(result: Result) -> str:
    vram = readable_bytes(result.peak_vram_bytes) if result.peak_vram_bytes else ""
    cells = (
        result.title, MARKS[result.verdict], result.figure, format_seconds(result.seconds),
        readable_bytes(result.peak_ram_bytes), vram,
    )  # fmt: skip
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that cannot break out of a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _machine_lines(about: Machine) -> list[str]:
    card = f"{about.card} with {readable_bytes(about.card_bytes)} ({about.driver})" if about.card else "none in use"
    limit = f", of which {readable_bytes(about.vram_limit_bytes)} may be used" if about.vram_limit_bytes else ""
    return [
        f"- System: {about.system}, {about.cores} cores ({about.processor}), {readable_bytes(about.memory_bytes)}",
        f"- Graphics card: {card}{limit}",
        f"- Computing on {about.device} in {about.dtype}",
        f"- Python {about.python}, " + ", ".join(f"{name} {version}" for name, version in about.packages.items()),
    ]


def _amount_lines(plan: ProvePlan, proof: Proof) -> list[str]:
    amounts = plan.amounts
    photos = "the bundled photos of a drawn person" if plan.bundled else "given photos"
    return [
        f"Learned from {photos} in {amounts.train_steps} steps; drew {amounts.pictures} pictures of "
        f"{amounts.sampling_steps} steps each time. {format_seconds(proof.seconds)} in all."
    ]


# --- nobody is in it --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scrubber:
    """Takes out what tells where and whose this computer is."""

    words: tuple[tuple[str, str], ...]  # (what, what stands there instead), the longest first

    @classmethod
    def of(cls, places: Sequence[Settings], plan: ProvePlan) -> Scrubber:
        """For the folders, photos, user and host at hand."""
        words = {str(Path.home()): "<home>"}
        for settings in places:
            words |= {
                str(settings.root): "<program>", str(settings.outputs_dir): "<outputs>",
                str(settings.logs_dir): "<logs>", str(settings.models_dir): "<models>",
            }  # fmt: skip
        words = {path: name for path, name in words.items() if len(Path(path).parts) > 1}
        if not plan.bundled:
            for given in plan.photos:
                words |= {given: "<photos>", str(Path(given).expanduser().absolute()): "<photos>"}
            words |= {name: "<photo>" for name in _photo_names(plan)}
        for name, instead in ((_user(), "<user>"), (platform.node(), "<computer>")):
            if len(name) > 2:
                words[name] = instead
        return cls(tuple(sorted(words.items(), key=lambda item: -len(item[0]))))

    def text(self, text: str) -> str:
        for word, instead in self.words:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", instead, text)
        return _PATHS.sub("<path>", _TAILS.sub(r"\1", text))

    def everything(self, data: Any) -> Any:
        """``text`` for every string inside plain JSON types."""
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, Mapping):
            return {key: self.everything(value) for key, value in data.items()}
        if isinstance(data, Sequence):
            return [self.everything(item) for item in data]
        return data


def _photo_names(plan: ProvePlan) -> Sequence[str]:
    """As they are told in sentences about single photos."""
    from headshot_ui.dataset.intake import collect
    from headshot_ui.errors import HeadshotError

    try:
        return [source.name for source in collect(plan.photos).sources]
    except HeadshotError:
        return []


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        return ""
