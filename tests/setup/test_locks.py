"""The locks say the same as pyproject.toml, and are complete, since they are installed without resolving."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.setup.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MACHINES = [
    {"sys_platform": system, "platform_system": name, "platform_machine": machine, "os_name": os_name}
    for system, name, machine, os_name in (
        ("linux", "Linux", "x86_64", "posix"), ("linux", "Linux", "aarch64", "posix"),
        ("darwin", "Darwin", "arm64", "posix"), ("win32", "Windows", "AMD64", "nt"),
    )
]  # fmt: skip
PYTHONS = [{"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.5"} for minor in (11, 12, 13)]


def read(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]


def locked(requirements, environment):
    """Name to version on one kind of machine; a name with two versions there fails."""
    found = {}
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found, f"{requirement.name} twice for {environment}"
            found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine["sys_platform"] + machine["platform_machine"])
@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: python["python_version"])
def test_every_range_of_the_project_is_met_by_one_exact_version(machine, python):
    environment = {**machine, **python}
    main, tests = locked(read("requirements.txt"), environment), locked(read("tests/requirements.txt"), environment)
    for wanted, lock in ((PROJECT["project"]["dependencies"], main), (PROJECT["dependency-groups"]["test"], tests)):
        for line in wanted:
            requirement = Requirement(line)
            assert requirement.specifier.contains(lock[requirement.name]), f"{requirement.name} {lock}"
    both = main.keys() & tests.keys()
    assert {name: main[name] for name in both} == {name: tests[name] for name in both}


def test_opencv_comes_headless_and_never_twice():
    for name in ("requirements.txt", "tests/requirements.txt"):
        names = {requirement.name for requirement in read(name)}
        assert not names & {"opencv-python", "opencv-contrib-python", "numba", "llvmlite", "filterpy", "basicsr"}
    assert "opencv-python-headless" in {requirement.name for requirement in read("requirements.txt")}


def test_every_line_is_exact():
    for requirement in read("requirements.txt") + read("tests/requirements.txt"):
        (only,) = requirement.specifier
        assert only.operator == "==" and "*" not in only.version, str(requirement)


def test_nothing_is_missing_from_the_locks():
    """Whatever an installed package asks for on this machine is locked, in a version that it accepts."""
    everything = {}
    for name in ("requirements.txt", "tests/requirements.txt"):
        active = [item for item in read(name) if item.marker is None or item.marker.evaluate()]
        everything |= {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in active}
    left_out = set(PROJECT["tool"]["uv"]["exclude-dependencies"])
    missing = []
    for name in everything:
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # torch from PyTorch's own index brings its own libraries
            assert name.startswith(("nvidia-", "cuda-", "triton")), f"{name} is locked and not installed"
            continue
        for requirement in map(Requirement, wanted):
            wanted_name = canonicalize_name(requirement.name)
            if wanted_name in left_out or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            version = everything.get(wanted_name)
            if version is None or not requirement.specifier.contains(Version(version), prereleases=True):
                missing.append(f"{name} wants {requirement}, locked is {version}")
    assert missing == []


def test_facexlib_works_without_what_the_lock_leaves_out():
    code = (
        "import sys\n"
        "for name in ('numba', 'llvmlite', 'filterpy', 'matplotlib'): sys.modules[name] = None\n"
        "from facexlib.detection.retinaface import RetinaFace\n"
        "from facexlib.recognition.arcface_arch import Backbone\n"
        "from facexlib.parsing.parsenet import ParseNet\n"
        "from facexlib.utils.face_restoration_helper import FaceRestoreHelper\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
