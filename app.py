#!/usr/bin/env python3
"""Starts headshot_ui: makes .venv beside this file, installs into it what requirements.txt names, goes on inside it.

Standard library only, and syntax that Python 3.6 reads, so that an old Python can still say that it is too old.

The stamp, a small file in the environment, says "ready" only after everything was installed, and for which locks.
A start that finds it true goes straight on; one that finds it made for another lock brings the environment up to date;
one that finds none, or an unfinished one, makes the environment anew (uv's cache has what was downloaded before).
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

if os.name == "nt":
    import msvcrt
else:
    import fcntl

HERE = os.path.dirname(os.path.abspath(__file__))
OWN_VENV = os.path.join(HERE, ".venv")
VENV = os.path.abspath(os.environ.get("HEADSHOT_UI_VENV") or OWN_VENV)
STAMP = os.path.join(VENV, "headshot_ui.json")
LOCK = os.path.join(HERE, "requirements.txt")
TEST_LOCK = os.path.join(HERE, "tests", "requirements.txt")
WINDOWS = os.name == "nt"
VENV_PYTHON = os.path.join(VENV, "Scripts", "python.exe") if WINDOWS else os.path.join(VENV, "bin", "python")

UV = "uv==0.13.9"
OLDEST, NEWEST = (3, 11), (3, 13)
REGISTRY = "https://pypi.org/simple/uv/"
TORCH_INDEX = "https://download.pytorch.org/whl/torch/"
# Lines of the lock that belong to one build of torch; PyTorch's own index brings its own versions of them.
TORCH_PARTS = ("torch==", "torchvision==", "triton==", "nvidia-", "cuda-")

LINUX_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
GB = 10**9
PROGRESS_EVERY_S = 10
# Room on the disk that set-up takes, measured (docs/DEPENDENCIES.md) and rounded up by about a fifth.
ROOM_WITH_CUDA, ROOM_WITHOUT_CUDA, ROOM_FOR_UPDATE, ROOM_FOR_TESTS = 8 * GB, 5 * GB // 2, 1 * GB, GB // 2

HELP = """python3 app.py [COMMAND] [OPTIONS]

  (no command)              open the page in the browser
  demo                      run the whole job on the small demo models
  headshots                 photos in, headshots out; its parts: prepare, train, generate
  doctor                    what this computer can run, and what is missing
  test [--slow] [...]       run the program's own tests, with --slow the long ones too; the rest goes to pytest

The first start makes the folder .venv beside app.py (HEADSHOT_UI_VENV names another place) and installs into it.
After that, "python3 app.py COMMAND --help" tells everything about one command.
"""


class Stop(Exception):
    """Set-up cannot go on: one sentence that says what happened and what to do."""


def main(arguments):
    tests = arguments[:1] == ["test"]
    if {"-h", "--help"} & set(arguments) and (tests or not is_ready(False)):
        print(HELP, end="")
        return 0
    try:
        if not is_ready(tests):
            set_up(tests)
    except Stop as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("Set-up was stopped. Start again to go on with it.")
        return 130
    if tests:
        os.chdir(HERE)
        return go_inside(["-m", "pytest"] + pytest_arguments(arguments[1:]))
    return go_inside(["-m", "headshot_ui"] + arguments)


def say(line):
    """To stderr, so that stdout stays the program's own."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def pytest_arguments(arguments):
    rest = [argument for argument in arguments if argument != "--slow"]
    shared = [] if rest else ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadgroup"]  # see tests/conftest.py
    return shared + rest if "--slow" in arguments else ["-m", "not slow"] + shared + rest


def go_inside(arguments):
    """Hand over to the environment's Python for good; returns its exit code where there is no exec."""
    os.environ["PYTHONPATH"] = HERE
    command = [VENV_PYTHON, "-P"] + arguments  # -P: modules come from PYTHONPATH, never from the current folder
    if not WINDOWS:
        os.execv(VENV_PYTHON, command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child as well, which decides what to do
    return subprocess.call(command)  # exec on Windows would give the console back at once


def is_ready(tests):
    stamp = read_stamp()
    fits = stamp.get("requirements") == digest(LOCK) and (not tests or stamp.get("tests") == digest(TEST_LOCK))
    return fits and is_whole(stamp)


def is_whole(stamp):
    """Whether an install was finished and still stands on the same Python."""
    return stamp.get("state") == "ready" and stamp.get("python") == present_python() != ""


def read_stamp():
    try:
        with open(STAMP, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}


def write_stamp(stamp):
    with open(STAMP + ".tmp", "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
    os.replace(STAMP + ".tmp", STAMP)


def digest(path):
    if not os.path.exists(path):
        return "missing"
    with open(path, "rb") as file:
        return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest()


def present_python():
    """Which Python the environment stands on, without starting it; "" when it is gone.

    An upgrade of the system can take away the Python beneath an environment, or put another version there.
    """
    try:
        with open(os.path.join(VENV, "pyvenv.cfg"), encoding="utf-8") as file:
            facts = dict(line.strip().split(" = ", 1) for line in file if " = " in line)
    except (OSError, ValueError):
        return ""
    there = os.path.isdir(facts.get("home", "")) and os.path.exists(VENV_PYTHON)
    return os.path.basename(os.path.realpath(VENV_PYTHON)) if there else ""


def set_up(tests):
    """Make the environment, or bring it up to date. Raises Stop."""
    if not os.path.exists(LOCK) or (tests and not os.path.exists(TEST_LOCK)):
        raise Stop("requirements.txt is missing in %s: get a complete copy of the program." % HERE)
    with one_at_a_time() as guard:
        if is_ready(tests):  # the start that was waited for has done it
            return
        old = read_stamp()
        update = is_whole(old)
        tests = tests or (update and bool(old.get("tests")))
        if not update:
            check_python()
        torch_index = sys.platform != "darwin" and torch_index_answers()
        check_room(update, tests, torch_index)
        if update:
            say("Bringing %s up to date." % VENV)
            write_stamp({"state": "installing"})
        else:
            say("Setting up in %s (only the first start does this)." % VENV)
            make_environment(guard)
        try:
            install(tests, torch_index, old.get("mend", False), guard)
        except Stop:
            if update:  # uv downloads before it touches anything, so most likely what was there still works
                write_stamp(dict(old, mend=True))
            raise
        made_for = {"requirements": digest(LOCK), "tests": digest(TEST_LOCK) if tests else None}
        write_stamp(dict(made_for, state="ready", python=present_python()))
        say("Set-up is complete.")


def check_python():
    version, known = "%d.%d" % sys.version_info[:2], "Python 3.11, 3.12 or 3.13"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        size = "old" if sys.version_info[:2] < OLDEST else "new"
        other = better_python()
        advice = "start again with “%s app.py”" % other if other else "install one from python.org and start again"
        raise Stop("Python %s is too %s: this program needs %s; %s." % (version, size, known, advice))
    if sys.maxsize < 2**32 or sysconfig.get_platform() == "win-arm64":
        raise Stop("PyTorch does not exist for this kind of Python: install the 64-bit x86 build of %s." % known)
    if sys.platform == "darwin" and (os.uname().machine != "arm64" or int(platform.mac_ver()[0].split(".")[0]) < 14):
        raise Stop("PyTorch needs a Mac with an Apple chip, macOS 14 or newer, and %s made for that chip." % known)
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        advice = "on Debian or Ubuntu run “sudo apt install python%s-venv”, elsewhere install Python from python.org"
        raise Stop("This Python lacks the venv module: %s; then start again." % (advice % version)) from None


def better_python():
    """A Python of a fitting version on this machine, as one would type it; "" when there is none."""
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        command = ["py", "-3.%d" % minor] if WINDOWS else ["python3.%d" % minor]
        with contextlib.suppress(OSError):
            if subprocess.call(command + ["-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
                return " ".join(command)
    return ""


def torch_index_answers():
    """Whether PyTorch's own index, which has a build for every driver and a small one for none, can be reached."""
    if answers(TORCH_INDEX):
        return True
    say("PyTorch's own index (download.pytorch.org) cannot be reached, so torch comes from PyPI instead.")
    if WINDOWS:
        say("That build uses no NVIDIA GPU; should there be one, delete %s and start again another time." % VENV)
    elif not shutil.which("nvidia-smi"):
        say("That build carries NVIDIA's libraries: some gigabytes more than this computer needs.")
    return False


def answers(url, timeout_s=5):
    """Whether the address answers in time. In a thread, for looking up a name can take far longer than any timeout."""
    import threading
    import urllib.request

    good = []

    def ask():
        with contextlib.suppress(Exception):
            request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "headshot-ui"})
            good.append(urllib.request.urlopen(request, timeout=timeout_s))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(good)


def nearest_folder(path):
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def free_bytes():
    return shutil.disk_usage(nearest_folder(VENV)).free


def check_room(update, tests, torch_index):
    cuda = shutil.which("nvidia-smi") if torch_index else sys.platform == "linux"
    need = ROOM_FOR_UPDATE if update else ROOM_WITH_CUDA if cuda else ROOM_WITHOUT_CUDA
    need += ROOM_FOR_TESTS if tests else 0
    if free_bytes() < need:
        facts = (VENV, need / GB, free_bytes() / GB)
        raise Stop(
            "The disk of %s is too full: set-up needs %.1f GB and %.1f GB are free. "
            "Make room, or let HEADSHOT_UI_VENV name a folder on a larger disk, and start again." % facts
        )


def make_environment(guard):
    """An empty environment with the stamp in it from the beginning: a folder that is not ours is never deleted."""
    try:
        if os.path.isdir(VENV) and os.listdir(VENV):
            if VENV != OWN_VENV and not os.path.exists(STAMP):
                raise Stop("%s holds other things: let HEADSHOT_UI_VENV name an empty or a new folder." % VENV)
            say("The environment there is not complete; it is made anew.")
            shutil.rmtree(VENV)
        os.makedirs(VENV, exist_ok=True)
        write_stamp({"state": "installing"})
    except OSError as error:
        raise Stop("%s cannot be made anew (%s): close what uses it and start again." % (VENV, error)) from error
    # Started from within an environment, the Python beneath it is meant: that environment may just have been deleted.
    python = getattr(sys, "_base_executable", None) or sys.executable
    run([python, "-m", "venv", VENV], "The environment was not made", guard)


def install(tests, torch_index, mend, guard):
    pip = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--retries", "1"]
    run(pip + [UV], "The installer uv was not installed", guard)
    os.environ.setdefault("UV_HTTP_TIMEOUT", "120")  # seconds without a byte; the default of 30 is hard on slow lines
    if sys.platform != "linux" or any(map(os.path.exists, LINUX_CERTIFICATES)):
        os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # offices that inspect traffic put their certificate there
    uv = [VENV_PYTHON, "-m", "uv", "pip", "install", "--python", VENV_PYTHON] + cache_options()
    uv += ["--reinstall"] if mend else []
    lock = LOCK
    if torch_index:
        rest = os.path.join(VENV, "requirements-without-torch.txt")
        torch = split_lock(rest)
        try:
            # The one place where uv resolves: which of NVIDIA's libraries torch needs depends on the driver.
            run(uv + ["--torch-backend=auto", "--constraints", rest] + torch, "torch was not installed", guard)
            lock = rest
        except Stop:
            say("PyTorch's own index has no build that fits, so torch comes from PyPI instead.")
    locks = ["-r", lock] + (["-r", TEST_LOCK] if tests else [])
    run(uv + ["--no-deps", "--compile-bytecode"] + locks, "Not everything was installed", guard)


def split_lock(rest):
    """Write the lock without what belongs to a build of torch to ``rest``; return torch's own lines."""
    with open(LOCK, encoding="utf-8") as file:
        lines = [line for line in file if line.strip() and not line.lstrip().startswith("#")]
    with open(rest, "w", encoding="utf-8") as file:
        file.writelines(line for line in lines if not line.startswith(TORCH_PARTS))
    return [line.strip() for line in lines if line.startswith(("torch==", "torchvision=="))]


def cache_options():
    """uv links files from its cache when both are on one disk; else the cache would cost the same room again."""
    found = subprocess.run([VENV_PYTHON, "-m", "uv", "cache", "dir"], stdout=subprocess.PIPE, universal_newlines=True)
    cache = nearest_folder(os.path.abspath(found.stdout.strip()))
    same_disk = os.access(cache, os.W_OK) and os.stat(cache).st_dev == os.stat(VENV).st_dev
    return [] if found.returncode == 0 and same_disk else ["--cache-dir", os.path.join(VENV, ".cache")]


def run(command, failure, guard):
    """Run to the end with its output shown; away from a terminal, where uv draws no bars, lines tell how far it is."""
    start, room = time.time(), free_bytes()
    # The child holds the guard's file too: should this process be killed, the next start waits for the child to end.
    keep = {} if WINDOWS else {"pass_fds": (guard.fileno(),)}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=HERE, **keep)
    while True:
        try:
            code = child.wait(None if sys.stderr.isatty() else PROGRESS_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            written = max(0, room - free_bytes()) / GB
            say("  still installing: %d s, about %.1f GB written" % (time.time() - start, written))
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        raise Stop("%s: %s" % (failure, likely_cause()))


def likely_cause():
    if free_bytes() < GB // 2:
        return "the disk is full (%.1f GB free). Make room and start again." % (free_bytes() / GB)
    if not answers(os.environ.get("UV_INDEX_URL") or REGISTRY):
        return "the network cannot be reached (no answer from pypi.org). Connect to it and start again."
    return "the lines above say why. Start again to go on; should it fail again, delete %s first." % VENV


@contextlib.contextmanager
def one_at_a_time():
    """Two starts at once must not install into one environment: the second waits."""
    import tempfile

    name = "headshot-ui-%s.lock" % hashlib.sha256(VENV.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with open(os.path.join(tempfile.gettempdir(), name), "a") as guard:
        if not lock_file(guard):
            say("Another start is setting up right now; waiting until it is done.")
            while not lock_file(guard):
                time.sleep(1)
        yield guard


def lock_file(file):
    try:
        if WINDOWS:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
