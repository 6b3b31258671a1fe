"""The notebook of docs/ read and run without Jupyter: its cells, its answers, and stand-ins for what only Colab has."""

from __future__ import annotations

import json
import shutil
import types
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "colab.ipynb"

#: In place of app.py, whose set-up would download packages: hands over to the program at once. Every command line is
#: kept; those that need the hub go no further. The signal to stop comes from the test, once training has begun.
APP = """
import json, os, pathlib, signal, subprocess, sys, time
with open({log!r}, "a", encoding="utf-8") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if {only_noted} or sys.argv[1:3] == ["models", "get"]:
    print("Downloading  1/2  3 s left")
    print("Downloading  2/2")
    raise SystemExit
os.environ["PYTHONPATH"] = {root!r}
os.execv(sys.executable, [sys.executable, "-P", "-m", "headshot_ui", *sys.argv[1:]])
"""


def read_notebook() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text("utf-8"))
    return notebook


def code_cells() -> dict[str, str]:
    """The source of every code cell by its id, in order."""
    cells = read_notebook()["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}


def answered(source: str, answers: dict[str, Any]) -> str:
    """A cell with other answers in its form. Raises AssertionError for a question it does not ask."""
    for name, value in answers.items():
        before, found, rest = source.partition(f"\n{name} = ")
        assert found, f"the cell does not ask for {name}"
        source = f"{before}{found}{value!r}{rest[rest.index('  # @param') :]}"
    return source


class Session:
    """One kernel on one machine: runs cells in a folder of their own."""

    def __init__(self, folder: Path, only_noted: bool = False) -> None:
        self.folder, self.uploads = folder, [[program_zip(folder, only_noted)]]
        self.downloads: list[Path] = []
        self.shown: list[str] = []
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, cell: str, **answers: Any) -> None:
        source = answered(code_cells()[cell], answers).replace("/content/drive", str(self.folder / "drive"))
        exec(compile(source, f"cell {cell}", "exec"), self.names)

    @property
    def commands(self) -> list[list[str]]:
        """Every command line that was started, without “python3 app.py”."""
        log = self.folder / "commands.jsonl"
        return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []

    def stand_ins(self) -> dict[str, types.ModuleType]:
        """Modules that Colab has: ``google.colab`` with its buttons, ``IPython.display``."""
        files = types.SimpleNamespace(upload=self._upload, download=lambda name: self.downloads.append(Path(name)))
        drive = types.SimpleNamespace(mount=lambda place: Path(place, "MyDrive").mkdir(parents=True, exist_ok=True))
        return {
            "google": _module("google"),
            "google.colab": _module("google.colab", files=files, drive=drive),
            "IPython": _module("IPython"),
            "IPython.display": _module(
                "IPython.display", Image=lambda filename, width=None: filename, display=self.shown.append
            ),
        }

    def _upload(self) -> dict[str, bytes]:
        """As the real one: saves in the current folder what the person chose and returns it by name."""
        chosen = self.uploads.pop(0)
        for path in chosen:
            if Path(path.name).absolute() != path:
                shutil.copy(path, path.name)
        return {path.name: path.read_bytes() for path in chosen}


def program_zip(folder: Path, only_noted: bool) -> Path:
    """As one gets it from a page of the repository: everything within one folder."""
    path = folder / "headshot_ui-main.zip"
    text = APP.format(log=str(folder / "commands.jsonl"), only_noted=only_noted, root=str(ROOT))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("headshot_ui-main/app.py", text)
        packed.writestr("headshot_ui-main/tests/app.py", "raise SystemExit(1)")
    return path


def _module(name: str, **holds: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(holds)
    return module
