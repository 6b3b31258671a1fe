"""Arrows between modules go one way, and opening the program loads nothing heavy.

    ui, cli → engine → dataset, training, generation → families, residency, likeness, store → specs, errors, settings
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "headshot_ui"

#: Layer of each module or folder; the longest matching name counts. A module may import its own layer and those
#: below it. What is not listed fails the test: a new module must be given its place here.
LAYERS = {
    "errors": 0,
    "collecting": 0,
    "discovery": 0,
    "reading_ahead": 0,
    "specs": 0,
    "settings": 0,
    "jobs": 0,
    "meter": 0,
    "wording": 0,
    "gguf_files": 0,
    "bfloat16": 0,
    "graphics": 0,
    "card_words": 0,
    "dataset.types": 0,
    "families.fits": 0,
    "families.protocol": 0,
    "families.requests": 0,
    "restoration.protocol": 0,
    "logs": 1,
    "memory": 1,
    "less_memory": 1,
    "capture": 1,
    "compiling": 1,
    "card_state": 1,
    "swapping": 1,
    "pinned": 1,
    "peaks": 1,
    "lock": 1,
    "stars": 1,
    "store": 1,
    "runs": 1,
    "presets": 1,
    "recipes": 1,
    "families": 2,
    "recognisers": 2,
    "captioners": 2,
    "residency": 2,
    "likeness": 2,
    "dataset": 3,
    "doctor": 3,
    "usual_base": 3,
    "training": 3,
    "generation": 3,
    "restoration": 3,
    "export": 3,
    "downloads": 3,
    "parts": 4,
    "made_to_fit": 4,
    "own_models": 4,
    "amounts": 4,
    "base_bytes": 4,
    "forecast": 4,
    "workshop": 4,
    "engine_runners": 4,
    "engine": 4,
    "sheet": 4,
    "prove": 4,
    "bench": 4,
    "commands": 5,
    "cli": 5,
    "ui": 5,
    "__main__": 6,
}
#: Narrower than the layers: these know nothing of jobs, people and output folders.
FORBIDDEN = {
    "families": ("jobs", "runs", "residency", "recognisers", "likeness", "recipes", "capture", "compiling"),
    "recognisers": ("jobs", "runs", "residency", "families"),
    "captioners": ("jobs", "runs", "residency", "families", "recognisers"),
    "likeness": ("jobs", "runs", "residency"),
    "residency": ("jobs", "runs", "families", "recognisers", "likeness"),
    "dataset": ("training", "generation", "restoration"),
    "downloads": ("training", "generation", "dataset", "families", "recognisers", "residency", "runs"),
    "restoration": ("training", "generation", "families", "recognisers", "residency", "runs"),
    "ui": ("families", "recognisers", "residency", "training"),
    "engine": ("sheet",),
    "engine_runners": ("sheet",),
}
#: The face of a forbidden package that may be known all the same.
BUT = {
    "recognisers": ("families.protocol",),
    "captioners": ("families.protocol",),
    "residency": ("families.fits", "families.protocol"),
    "ui": ("families", "families.protocol", "training.plan"),
}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "facexlib", "spandrel", "cv2"}
#: Imported only inside functions themselves, so they may import torch at their top.
LATE = ("families", "training", "recognisers", "restoration.demo_net", "bench.swap_pictures")


def modules() -> dict[str, Path]:
    """Name inside the package ("dataset.crop", "" for the package itself) → file."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


MODULES = modules()
#: Modules with a ``FAMILY``, by which discovery knows them.
FAMILIES = {name for name in MODULES if within(name, "families") and "\nFAMILY = " in MODULES[name].read_text("utf-8")}


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """Everything a module imports, absolute, and whether that happens when it is itself imported."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    late = {id(child) for node in ast.walk(tree) if _runs_later(node) for child in ast.walk(node)}
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = [PACKAGE, *filter(None, package.split("."))]
                source = ".".join([*above[: len(above) - node.level + 1], *filter(None, [source])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                inside = whole.removeprefix(f"{PACKAGE}.") in MODULES and source.startswith(PACKAGE)
                yield whole if inside else source, id(node) not in late


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def inner_imports(name: str) -> Iterator[str]:
    """Modules of the package that ``name`` imports, anywhere in it and for whatever purpose."""
    for imported, _ in imports(name):
        if imported.startswith(f"{PACKAGE}."):
            yield imported.removeprefix(f"{PACKAGE}.")


def place_of(name: str) -> str | None:
    return max((place for place in LAYERS if within(name, place)), key=len, default=None)


def wrong_arrows(name: str, imported: list[str]) -> list[str]:
    """Sentences about the arrows from ``name`` that point the wrong way."""
    own = place_of(name)
    if own is None:
        return [f"{name} has no layer in LAYERS"]
    wrong = []
    for other in imported:
        target = place_of(other)
        if target is None:
            wrong.append(f"{name} imports {other}, which has no layer in LAYERS")
        elif LAYERS[target] > LAYERS[own]:
            wrong.append(f"{name} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[target]})")
        elif other not in BUT.get(own, ()) and any(within(other, place) for place in FORBIDDEN.get(own, ())):
            wrong.append(f"{name} must not know {other}")
    return wrong


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name))
def test_arrows_point_one_way(name: str) -> None:
    assert wrong_arrows(name, list(inner_imports(name))) == []


def test_the_check_itself_finds_wrong_arrows() -> None:
    assert wrong_arrows("store", ["errors", "settings", "specs"]) == []
    assert wrong_arrows("dataset.types", []) == [] and wrong_arrows("families.sdxl", ["families.protocol"]) == []
    for name, other in (
        ("store", "engine"), ("training.runner", "ui.page"), ("families.sdxl", "jobs"), ("errors", "families"),
        ("dataset.types", "dataset.crop"), ("generation.runner", "cli"), ("ui.page", "families.sdxl"),
        ("errors", "store"), ("brand_new", "errors"), ("store", "brand_new"),
    ):  # fmt: skip
        assert wrong_arrows(name, [other]), f"{name} → {other} went unnoticed"


def family_of(name: str) -> str | None:
    """The family a module belongs to, as its file or in its parts; None for what families share and all else."""
    return next((one for one in FAMILIES if within(name, one) or within(name, f"{one}_parts")), None)


def strange_families(name: str, imported: list[str]) -> list[str]:
    """What a module of ``families`` imports of a family that is not its own."""
    return [other for other in imported if family_of(other) not in (None, family_of(name))]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if within(name, "families")))
def test_no_family_needs_another(name: str) -> None:
    """What two need lies in ``shared_parts`` or ``lora_parts``, which know none of them."""
    assert strange_families(name, list(inner_imports(name))) == []


def test_families_are_told_apart() -> None:
    assert {"families.flux", "families.sdxl"} <= FAMILIES
    own = ["families.flux_parts.files", "families.shared_parts.load", "memory"]
    assert strange_families("families.flux_parts.lora", own) == []
    for name in ("families.flux", "families.flux_parts.lora", "families.shared_parts.load", "families.shelf"):
        assert strange_families(name, ["families.sdxl_parts.load"]), f"{name} → SDXL went unnoticed"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_ui_knows_gradio(name: str) -> None:
    if not within(name, "ui"):
        assert "gradio" not in {imported.split(".")[0] for imported, _ in imports(name)}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.startswith(LATE)))
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    assert {imported.split(".")[0] for imported, at_once in imports(name) if at_once} & HEAVY == set()


def test_jobs_need_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {PACKAGE}
    assert {imported.split(".")[0] for imported, _ in imports("jobs")} <= allowed
    assert set(inner_imports("jobs")) == {"errors"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after running ``code`` in a fresh interpreter."""
    code += "\nimport sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.split("\n")[-2].split())


def import_all(*places: str) -> str:
    names = sorted(f"{PACKAGE}.{name}" for name in MODULES if any(within(name, place) for place in places))
    assert names
    return f"import {', '.join(names)}"


def test_starting_the_commands_loads_neither_models_nor_the_page() -> None:
    light = import_all("cli", "commands", "engine", "residency", "likeness") + f", {PACKAGE}.families"
    assert loaded_by(light) & (HEAVY | {"gradio"}) == set()


def test_the_page_answers_before_torch_is_loaded(tmp_path: Path) -> None:
    code = import_all("ui") + (
        f"\nimport urllib.request; from {PACKAGE}.engine import Engine; from {PACKAGE}.settings import Settings"
        f"\nfrom {PACKAGE}.ui.serve import launch"
        f"\nsettings = Settings.from_environment(outputs_dir={str(tmp_path / 'outputs')!r}, environment={{}})"
        "\nengine = Engine(settings); page, address = launch(engine, settings, '127.0.0.1', None)"
        "\nassert b'gradio-app' in urllib.request.urlopen(address).read()"
        "\npage.close(verbose=False); engine.close()"
    )
    assert loaded_by(code) & HEAVY == set()


def test_looking_for_base_models_loads_no_torch() -> None:
    code = (
        f"from {PACKAGE} import families; from {PACKAGE}.settings import Settings\n"
        "families.all_bases(Settings.from_environment())"
    )
    assert loaded_by(code) & HEAVY == set()
