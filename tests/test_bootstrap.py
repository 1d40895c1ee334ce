# SPDX-License-Identifier: GPL-2.0-only
"""tools/bootstrap on machines that lack things: each made of a directory that is all of PATH."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What is on any Debian, however small: dash, coreutils, util-linux, grep.
ESSENTIAL = "sh env dirname cat cp sha256sum uname mkdir rm mv flock setsid sleep grep touch true"

FAKE_ID = "#!/bin/sh\necho ${FAKE_UID:-0}\n"

FAKE_APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$CALLS"
case " $* " in
*" update "*) : >"$CALLS.updated" ;;
*" install "*)
    [ -z "$FAKE_APT_STALE" ] || [ -e "$CALLS.updated" ] || { echo 'E: Unable to locate package'; exit 100; }
    for tool in gcc clang as ld objcopy qemu-system-x86_64 qemu-img; do
        cp "$FAKE_BIN/true" "$FAKE_BIN/$tool"
    done
    ;;
esac
"""

FAKE_SUDO = '#!/bin/sh\necho "sudo $*" >>"$CALLS"\n[ "$1" = -n ] || exit 1\nshift\nexec "$@"\n'

# Stands for python3 and for .venv/bin/python.
FAKE_PYTHON = """#!/bin/sh
[ "$1" != -I ] || { [ -z "$FAKE_NO_VENV" ] && echo "$0"; exit; }
echo "python $*" >>"$CALLS"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*--require-hashes*)
    case $FAKE_PIP in
    offline) echo 'ERROR: Could not find a version that satisfies the requirement rich'; exit 1 ;;
    forged) echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.'; exit 1 ;;
    hangs) sh -c 'echo $$ >"$CALLS.grandchild"; while :; do mkdir -p .venv/late; sleep 0.01; done' ;;
    esac
    ;;
esac
"""


class Machine:
    """A checkout and a PATH of its own."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "check out"  # a blank, to see the quoting
        self.bin = directory / "bin"
        self.calls_file = directory / "calls"
        self.venv = self.checkout / ".venv"
        (self.checkout / "tools").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("tools/bootstrap", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout / name)
        for tool in ESSENTIAL.split():
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(directory),
            "CALLS": str(self.calls_file),
            "FAKE_BIN": str(self.bin),
        }
        self.add("id", FAKE_ID)

    def add(self, name: str, script: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def add_compilers(self) -> None:
        for tool in ("gcc", "clang", "as", "ld", "objcopy", "qemu-system-x86_64", "qemu-img"):
            self.add(tool)

    def command(self, arguments: Sequence[str]) -> list[str]:
        # Whoever runs the tests in the background has these two ignored, and a shell cannot undo that.
        return ["env", "--default-signal=INT,HUP", str(self.checkout / "tools/bootstrap"), *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(arguments),
            env=self.environment | environment,
            cwd=self.checkout.parent,  # the place it is called from must not matter
            check=False,
            timeout=120,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Root on a machine without compilers and apt-get, with a python3 that serves."""
    made = Machine(tmp_path)
    made.add("python3", FAKE_PYTHON)
    return made


@pytest.fixture
def ready(machine: Machine) -> Machine:
    machine.add_compilers()
    return machine


PACKAGES = "gcc binutils clang qemu-system-x86 qemu-utils"
APT_LINE = f"apt-get install -y --no-install-recommends {PACKAGES}"


def assert_says_what_to_run(result: subprocess.CompletedProcess[str], line: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"bootstrap: Debian packages are missing; as root, run:\n{line}\n"


def test_no_apt_get(machine: Machine) -> None:
    assert_says_what_to_run(machine.run(), APT_LINE)
    assert not machine.venv.exists()


def test_no_root_and_no_sudo(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    assert_says_what_to_run(machine.run(FAKE_UID="1000"), APT_LINE)
    assert machine.calls() == []


def test_sudo_that_wants_a_password(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    machine.add("sudo", "#!/bin/sh\nexit 1\n")
    assert_says_what_to_run(machine.run(FAKE_UID="1000"), APT_LINE)
    assert machine.calls() == []


def test_no_install(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    assert_says_what_to_run(machine.run("--no-install"), APT_LINE)
    assert machine.calls() == []


def test_only_what_is_missing(machine: Machine) -> None:
    machine.add_compilers()
    (machine.bin / "objcopy").unlink()
    assert_says_what_to_run(machine.run(), "apt-get install -y --no-install-recommends binutils")


def test_the_browser_only_when_asked_for(ready: Machine, tmp_path: Path) -> None:
    font = tmp_path / "font.ttf"
    wanted = ready.run("--browser", FONT=str(font))
    assert_says_what_to_run(wanted, "apt-get install -y --no-install-recommends chromium fonts-dejavu-core")
    font.touch()
    ready.add("chromium")
    assert ready.run("--browser", FONT=str(font)).returncode == 0


@pytest.mark.parametrize("python", [None, "#!/bin/sh\nexit 127\n"], ids=["none", "only a shim"])
def test_no_python_that_serves(ready: Machine, python: str | None) -> None:
    (ready.bin / "python3").unlink()
    if python:
        ready.add("python3", python)
    assert_says_what_to_run(ready.run(), "apt-get install -y --no-install-recommends python3-venv")


def test_python_without_ensurepip(ready: Machine) -> None:
    assert_says_what_to_run(
        ready.run(FAKE_NO_VENV="1"), "apt-get install -y --no-install-recommends python3-venv"
    )


def test_python_behind_one_that_does_not_serve(ready: Machine, tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python3").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3").chmod(0o755)
    assert ready.run(PATH=f"{shims}:{ready.bin}").returncode == 0
    assert (ready.venv / "bin/python").exists()


def test_python_asked_for_does_not_serve(ready: Machine) -> None:
    result = ready.run(PYTHON=str(ready.bin / "true"))
    assert result.returncode == 2
    assert result.stderr.startswith("bootstrap: PYTHON=")


def test_real_python_serves(ready: Machine) -> None:
    """The probe itself, on the interpreter of these tests; nothing is installed, pip is not reached."""
    result = ready.run(
        PYTHON=sys.executable,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/",
        PIP_RETRIES="0",
    )
    assert result.returncode == 2
    heading, reason = result.stderr.splitlines()
    assert heading == f"bootstrap: making .venv with {os.path.realpath(sys._base_executable)}"  # type: ignore[attr-defined]
    assert reason.startswith("bootstrap: pip could not get the locked packages from its index")
    assert not ready.venv.exists()


def test_root_installs_without_update(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    result = machine.run()
    assert result.returncode == 0, result.stderr
    apt = [call for call in machine.calls() if call.startswith("apt-get")]
    assert apt == [f"apt-get -o DPkg::Lock::Timeout=300 {APT_LINE.removeprefix('apt-get ')}"]
    assert (machine.venv / "bin/python").exists()


def test_update_only_when_needed(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    assert machine.run(FAKE_APT_STALE="1").returncode == 0
    verbs = [call.split()[3] for call in machine.calls() if call.startswith("apt-get")]
    assert verbs == ["install", "update", "install"]


def test_sudo_without_password(machine: Machine) -> None:
    machine.add("apt-get", FAKE_APT_GET)
    machine.add("sudo", FAKE_SUDO)
    assert machine.run(FAKE_UID="1000").returncode == 0
    sudo = [call for call in machine.calls() if call.startswith("sudo")]
    assert sudo[0] == "sudo -n true"
    assert sudo[1].startswith("sudo -n env DEBIAN_FRONTEND=noninteractive apt-get ")
    assert len(sudo) == 2


def test_apt_get_that_fails(machine: Machine) -> None:
    machine.add("apt-get", "#!/bin/sh\nexit 100\n")
    result = machine.run()
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(APT_LINE)
    assert not machine.venv.exists()


def test_apt_get_that_installs_nothing(machine: Machine) -> None:
    machine.add("apt-get")
    result = machine.run()
    assert result.returncode == 2
    assert f"still not found: {PACKAGES}" in result.stderr


def test_second_run_does_nothing(ready: Machine) -> None:
    assert ready.run().returncode == 0
    assert not (ready.venv / "unfinished").exists()
    before = ready.calls()
    times = {path: path.stat().st_mtime_ns for path in ready.checkout.rglob("*")}
    durations = []
    for _ in range(5):
        start = time.monotonic()
        result = ready.run()
        durations.append(time.monotonic() - start)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert ready.calls() == before
    assert {path: path.stat().st_mtime_ns for path in ready.checkout.rglob("*")} == times
    assert min(durations) < 0.2


def test_order_of_work(ready: Machine) -> None:
    assert ready.run().returncode == 0
    venv, locked, project = ready.calls()
    assert venv == "python -m venv .venv"
    assert locked == "python -m pip install --require-hashes --only-binary :all: -r requirements.lock"
    assert project == "python -m pip install --no-index --no-deps --no-build-isolation --editable ."


def test_changed_lock_makes_a_new_venv(ready: Machine) -> None:
    assert ready.run().returncode == 0
    (ready.venv / "old").touch()
    with (ready.checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert ready.run().returncode == 0
    assert not (ready.venv / "old").exists()
    assert len(ready.calls()) == 6


def test_changed_project_keeps_the_venv(ready: Machine) -> None:
    assert ready.run().returncode == 0
    (ready.venv / "old").touch()
    with (ready.checkout / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    assert ready.run().returncode == 0
    assert (ready.venv / "old").exists()
    assert [call.split()[4] for call in ready.calls()[3:]] == ["--no-index"]


def test_copied_checkout_makes_its_own(ready: Machine) -> None:
    assert ready.run().returncode == 0
    ready.checkout = ready.checkout.rename(ready.checkout.with_name("moved"))
    assert ready.run().returncode == 0
    assert len(ready.calls()) == 6


@pytest.mark.parametrize(
    ("pip", "reason"),
    [
        ("offline", "pip could not get the locked packages from its index"),
        ("forged", "a downloaded package is not the one in requirements.lock"),
    ],
)
def test_pip_that_fails(ready: Machine, pip: str, reason: str) -> None:
    result = ready.run(FAKE_PIP=pip)
    assert result.returncode == 2
    assert [line.startswith("bootstrap: ") for line in result.stderr.splitlines()] == [True, True]
    assert reason in result.stderr
    assert not ready.venv.exists()


def test_failure_brings_the_old_venv_back(ready: Machine) -> None:
    ready.venv.mkdir()
    (ready.venv / "old").touch()
    assert ready.run(FAKE_PIP="offline").returncode == 2
    assert [path.name for path in ready.venv.iterdir()] == ["old"]
    # And it is not taken for a good one.
    assert ready.run().returncode == 0
    assert not (ready.venv / "old").exists()


def test_unfinished_venv_is_thrown_away(ready: Machine) -> None:
    ready.venv.mkdir()
    (ready.venv / "unfinished").touch()
    assert ready.run(FAKE_PIP="offline").returncode == 2
    assert not ready.venv.exists()


@contextmanager
def hanging(machine: Machine) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run that is in the middle of pip, and /proc of what pip has started; both end with the test."""
    grandchild = Path(f"{machine.calls_file}.grandchild")
    environment = machine.environment | {"FAKE_PIP": "hangs"}
    process = subprocess.Popen(machine.command([]), env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not (grandchild.exists() and grandchild.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process, Path("/proc", grandchild.read_text().strip())
    finally:
        process.kill()
        process.wait()
        if grandchild.exists():
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(int(grandchild.read_text())), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(ready: Machine, number: signal.Signals) -> None:
    ready.venv.mkdir()
    (ready.venv / "old").touch()
    with hanging(ready) as (process, grandchild):
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        # What pip had started is gone too (or dead and not yet buried), and writes nothing more.
        assert not grandchild.exists() or "State:\tZ" in (grandchild / "status").read_text()
        assert [path.name for path in ready.venv.iterdir()] == ["old"]


def test_killed(ready: Machine) -> None:
    """SIGKILL cannot be caught: the next run finds an unfinished .venv and makes it anew."""
    with hanging(ready):
        pass
    assert (ready.venv / "unfinished").exists()
    assert ready.run().returncode == 0
    assert not (ready.venv / "late").exists()


def test_two_at_once(ready: Machine) -> None:
    processes = [
        subprocess.Popen(ready.command([]), env=ready.environment, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(ready.calls()) == 3


def test_unknown_argument(ready: Machine) -> None:
    result = ready.run("--instal")
    assert result.returncode == 2
    assert result.stderr == "usage: tools/bootstrap [--no-install] [--browser] [--kernel]\n"


@pytest.mark.parametrize("target", ["verify", "test", "bench", "kernel-image"])
def test_make_passes_arguments(target: str) -> None:
    command = ["make", "--no-print-directory", "-n", "-C", str(ROOT), target, "ARGS=--specimen naive"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].split()[0] == "tools/bootstrap"
    assert lines[-1].endswith(" --specimen naive")


def test_what_building_a_kernel_takes(ready: Machine) -> None:
    result = ready.run("--kernel", "--no-install")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1].split()
    # What is looked for by its file, not on PATH, may be on this machine.
    by_file = {"libelf-dev", "libssl-dev", "linux-source-6.1"}
    wanted = {"git", "make", "flex", "bison", "bc", "cpio", "perl", "ccache", "sparse", "xz-utils", "dwarves"}
    assert wanted <= set(line[line.index("--no-install-recommends") + 1 :]) <= wanted | by_file
