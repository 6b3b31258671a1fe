"""What set-up installs, how, and what is left when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from tests.setup.conftest import ROOT


def uv_commands(app):
    return [command for command in app.commands if command[1:3] == ["-m", "uv"]]


def stamp(venv):
    return json.loads((venv / "headshot_ui.json").read_text())


def test_a_first_start_installs_the_lock_without_resolving(app, venv):
    app.set_up(tests=False)
    assert [command[2] for command in app.commands] == ["venv", "pip", "uv"]
    assert app.UV in app.commands[1] and "==" in app.UV
    (install,) = uv_commands(app)
    assert {"--no-deps", "--compile-bytecode"} <= set(install)
    assert install[-2:] == ["-r", app.LOCK]
    assert stamp(venv)["state"] == "ready" and app.is_ready(False) and not app.is_ready(True)


def test_tests_bring_their_own_lock_to_the_same_environment(app, ready):
    ready(tests=None)
    assert app.is_ready(False) and not app.is_ready(True)
    app.set_up(tests=True)
    assert uv_commands(app)[-1][-2:] == ["-r", app.TEST_LOCK]
    assert not any(command[2] == "venv" for command in app.commands)
    assert app.is_ready(True)


@pytest.mark.parametrize("step", ["venv", "pip", "uv"])
def test_a_set_up_that_broke_is_made_anew_by_the_next_start(app, venv, step):
    app.fails = lambda command: command[2] == step
    with pytest.raises(app.Stop):
        app.set_up(tests=False)
    assert stamp(venv) == {"state": "installing"} and not app.is_ready(False)
    half_installed = venv / "lib" / "torch" / "half.py"
    half_installed.parent.mkdir(parents=True)
    half_installed.touch()

    app.fails = lambda command: False
    app.set_up(tests=False)
    assert app.is_ready(False) and not half_installed.exists()


def test_an_environment_whose_python_is_gone_is_made_anew(app, ready, venv):
    ready()
    (venv / "pyvenv.cfg").write_text("home = /python/that/was/upgraded\n")
    assert not app.is_ready(False)
    (venv / "stale").touch()
    app.set_up(tests=False)
    assert app.is_ready(False) and not (venv / "stale").exists()


@pytest.mark.skipif(os.name == "nt", reason="an environment on Windows holds a copy of Python, not a link")
def test_an_environment_on_another_python_than_before_is_not_ready(app, ready, venv, tmp_path):
    python = ready()
    python.unlink()
    (tmp_path / "python3.99").write_text("")
    python.symlink_to(tmp_path / "python3.99")
    assert not app.is_ready(False)


def test_a_changed_lock_is_installed_in_place(app, ready, venv):
    ready(requirements="another", tests=None)
    (venv / "kept").touch()
    app.set_up(tests=False)
    assert (venv / "kept").exists() and "--reinstall" not in uv_commands(app)[0]
    assert app.is_ready(False)


def test_an_update_renews_the_tests_packages_too_where_they_were(app, ready):
    ready(requirements="another")
    app.set_up(tests=False)
    assert uv_commands(app)[-1][-4:] == ["-r", app.LOCK, "-r", app.TEST_LOCK] and app.is_ready(True)


def test_an_update_that_failed_leaves_a_working_environment_in_use(app, ready, venv):
    ready(tests="another")
    app.fails = lambda command: command[2] == "uv"
    with pytest.raises(app.Stop):
        app.set_up(tests=True)
    assert app.is_ready(False)  # the program starts as before; only the tests lack something

    app.fails = lambda command: False
    app.set_up(tests=True)
    assert "--reinstall" in uv_commands(app)[-1]  # for what the failed one may have left half done
    assert "mend" not in stamp(venv) and app.is_ready(True)


def test_a_folder_of_somebody_elses_is_never_deleted(app, venv):
    (venv / "photos").mkdir(parents=True)
    with pytest.raises(app.Stop, match="holds other things: let HEADSHOT_UI_VENV name an empty or a new folder"):
        app.set_up(tests=False)
    assert (venv / "photos").is_dir()


def test_ctrl_c_says_how_to_go_on(app, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", interrupted)
    assert app.main(["demo"]) == 130
    assert "Start again to go on" in capsys.readouterr().err
    assert not app.is_ready(False)


# --- torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_torch_matches_the_driver_where_its_index_answers(app, venv, monkeypatch, platform):
    monkeypatch.setattr(app.sys, "platform", platform)
    monkeypatch.setattr(app, "answers", lambda url, timeout_s=5: "pytorch.org" in url)
    app.set_up(tests=False)
    torch, rest = uv_commands(app)
    assert "--torch-backend=auto" in torch and "--no-deps" not in torch
    assert [line.split("==")[0] for line in torch[-2:]] == ["torch", "torchvision"]
    assert "--no-deps" in rest
    lines = (venv / "requirements-without-torch.txt").read_text().splitlines()
    assert rest[-1] == torch[torch.index("--constraints") + 1] == str(venv / "requirements-without-torch.txt")
    names = {line.split("==")[0] for line in lines}
    assert {"gradio", "diffusers", "safetensors"} <= names
    assert not [name for name in names if name.startswith(("torch", "nvidia", "cuda", "triton"))]


def test_torch_comes_from_the_registry_where_its_index_does_not_answer(app, capsys):
    app.set_up(tests=False)
    (install,) = uv_commands(app)
    assert "--torch-backend=auto" not in install and app.LOCK in install
    if sys.platform != "darwin":
        assert "download.pytorch.org) cannot be reached, so torch comes from PyPI instead" in capsys.readouterr().err


def test_torch_comes_from_the_registry_when_its_index_has_no_build(app, monkeypatch):
    monkeypatch.setattr(app.sys, "platform", "linux")
    monkeypatch.setattr(app, "answers", lambda url, timeout_s=5: True)
    app.fails = lambda command: "--torch-backend=auto" in command
    app.set_up(tests=False)
    assert uv_commands(app)[-1][-1] == app.LOCK and app.is_ready(False)


def test_a_mac_never_asks_for_the_index(app, monkeypatch):
    monkeypatch.setattr(app.sys, "platform", "darwin")
    monkeypatch.setattr(app, "check_python", lambda: None)
    asked = []
    monkeypatch.setattr(app, "answers", lambda url, timeout_s=5: asked.append(url))
    app.set_up(tests=False)
    assert asked == []


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "words"),
    [((3, 10, 1), "Python 3.10 is too old"), ((2, 7, 18), "too old"), ((3, 14, 0), "Python 3.14 is too new")],
)
@pytest.mark.parametrize(
    ("other", "advice"), [("python3.12", "start again with “python3.12 app.py”"), ("", "install one from python.org")]
)
def test_a_python_that_does_not_fit(app, monkeypatch, version, words, other, advice):
    monkeypatch.setattr(app, "sys", SimpleNamespace(version_info=version, maxsize=sys.maxsize, platform="linux"))
    monkeypatch.setattr(app, "better_python", lambda: other)
    with pytest.raises(app.Stop) as stopped:
        app.check_python()
    sentence = str(stopped.value)
    assert words in sentence and advice in sentence and "3.11, 3.12 or 3.13" in sentence


@pytest.mark.parametrize(
    ("system", "chip", "release", "words"),
    [
        ("darwin", "x86_64", "15.1", "needs a Mac with an Apple chip"),
        ("darwin", "arm64", "13.6.1", "macOS 14 or newer"),
        ("win-arm64", "", "", "install the 64-bit x86 build of Python"),
        ("darwin", "arm64", "14.0", ""),
    ],
)
def test_a_machine_that_pytorch_does_not_serve(app, monkeypatch, system, chip, release, words):
    monkeypatch.setattr(app.sys, "platform", system)
    monkeypatch.setattr(app.sysconfig, "get_platform", lambda: system)
    monkeypatch.setattr(app.os, "uname", lambda: SimpleNamespace(machine=chip), raising=False)
    monkeypatch.setattr(app.platform, "mac_ver", lambda: (release, "", ""))
    if not words:
        return app.check_python()
    with pytest.raises(app.Stop, match=words):
        app.check_python()


def test_no_venv_module(app, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    version = ".".join(map(str, sys.version_info[:2]))
    with pytest.raises(app.Stop, match=f"lacks the venv module.*sudo apt install python{version}-venv"):
        app.check_python()


@pytest.mark.parametrize(
    ("platform", "driver", "index", "update", "needed"),
    [
        ("linux", False, False, False, "8.0 GB"),  # PyPI's torch for Linux always carries CUDA
        ("linux", False, True, False, "2.5 GB"),
        ("linux", True, True, False, "8.0 GB"),
        ("win32", False, False, False, "2.5 GB"),
        ("darwin", False, False, False, "2.5 GB"),
        ("linux", True, True, True, "1.0 GB"),
    ],
)
def test_a_full_disk_is_told_before_anything_is_downloaded(app, monkeypatch, platform, driver, index, update, needed):
    monkeypatch.setattr(app.sys, "platform", platform)
    monkeypatch.setattr(app.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    free = float(needed.split()[0]) * app.GB
    monkeypatch.setattr(app.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    app.check_room(update, False, index)  # just enough
    monkeypatch.setattr(app.shutil, "disk_usage", lambda path: SimpleNamespace(free=free - app.GB / 5))
    with pytest.raises(app.Stop, match=f"needs {needed} and .* GB are free. Make room"):
        app.check_room(update, False, index)
    with pytest.raises(app.Stop):
        app.set_up(tests=False) if not update else app.check_room(True, True, index)
    assert app.commands == []


def test_the_tests_need_more_room(app, monkeypatch):
    monkeypatch.setattr(app.shutil, "disk_usage", lambda path: SimpleNamespace(free=app.ROOM_WITH_CUDA))
    app.check_room(False, False, False)
    with pytest.raises(app.Stop, match="needs [0-9.]+ GB"):
        monkeypatch.setattr(app.sys, "platform", "linux")
        app.check_room(False, True, False)


@pytest.mark.parametrize(
    ("network", "free_gb", "words"),
    [
        (False, 50, "the network cannot be reached .* Connect to it and start again"),
        (True, 0.1, r"the disk is full \(0.1 GB free\). Make room and start again"),
        (True, 50, "the lines above say why. Start again"),
    ],
)
def test_a_failed_command_tells_the_likely_cause(app, monkeypatch, tmp_path, network, free_gb, words):
    monkeypatch.setattr(app, "answers", lambda url, timeout_s=5: network)
    monkeypatch.setattr(app.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gb * app.GB))
    with (tmp_path / "guard").open("w") as guard, pytest.raises(app.Stop, match=f"It failed: {words}"):
        app.real_run([sys.executable, "-c", "raise SystemExit(3)"], "It failed", guard)


def test_an_address_that_does_not_answer_costs_no_more_than_the_time_given(monkeypatch, app):
    def stuck(*_, **__):  # looking up a name can hang far beyond a socket's timeout
        time.sleep(3)

    monkeypatch.setattr("urllib.request.urlopen", stuck)
    start = time.monotonic()
    assert app.real_answers("https://example.invalid", timeout_s=0.2) is False
    assert time.monotonic() - start < 2


# --- what is seen, and two starts at once ---------------------------------------------------------------------------


def test_progress_is_told_away_from_a_terminal(app, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(app, "PROGRESS_EVERY_S", 0.05)
    frees = iter(range(1000, 0, -1))
    monkeypatch.setattr(app.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(frees) * app.GB))
    with (tmp_path / "guard").open("w") as guard:
        app.real_run([sys.executable, "-c", "import time; time.sleep(0.6); print('its own words')"], "x", guard)
    told = capfd.readouterr()
    assert "still installing: 0 s, about 1.0 GB written" in told.err
    assert "its own words" in told.err and told.out == ""  # stdout is the program's


@pytest.mark.skipif(os.name == "nt", reason="POSIX hands an open file on to a child")
def test_a_killed_start_is_waited_for_until_its_installer_has_ended(app, venv, tmp_path):
    """kill -9 of app.py leaves uv running; a second start must not delete the folder beneath it."""
    code = textwrap.dedent(
        f"""
        import importlib.util, os, sys
        spec = importlib.util.spec_from_file_location("app", {str(ROOT / "app.py")!r})
        app = importlib.util.module_from_spec(spec); spec.loader.exec_module(app)
        with app.one_at_a_time() as guard:
            app.run(["sh", "-c", "echo begun; sleep 1.5"], "x", guard)
        """
    )
    first = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert first.stderr.readline() == "begun\n"
    first.kill()
    first.wait()
    start = time.monotonic()
    with app.one_at_a_time():
        waited_s = time.monotonic() - start
    assert 0.3 < waited_s < 5


def test_a_second_start_does_not_install_what_the_first_just_did(app, venv, monkeypatch, ready):
    class Guard:
        def __enter__(self):
            ready()  # by the start that was waited for

        def __exit__(self, *_):
            return False

    monkeypatch.setattr(app, "one_at_a_time", Guard)
    app.set_up(tests=True)
    assert app.commands == []
