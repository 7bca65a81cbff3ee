"""`gpupool run`: transparent for its program, and exactly one hostd however many start it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.hostd.adapters.worker_process import start_ticks
from tests.fakes.daemon import environment, eventually, gpupool

CLIENT = """
import os, sys
from tests.fakes.daemon import HELLO, TCP_HELLO, say
from dataclasses import replace
address = os.environ["GPUPOOL_ENDPOINT"]
hello = HELLO
if address.startswith("tcp"):
    token = open(os.environ["GPUPOOL_TOKEN_FILE"], "rb").read().strip()
    hello = replace(TCP_HELLO, token=token)
answer = say(address, hello.encode())
print(answer.welcome.status.word, answer.welcome.session_id, flush=True)
if len(sys.argv) > 1:
    sys.stdin.read()
"""


@dataclass
class Place:
    """A folder for a private hostd, and what runs there."""

    native: Path
    folder: Path

    def variables(self, **more: str) -> dict[str, str]:
        """The environment of a run here."""
        return environment(self.native, self.folder, **{"GPUPOOL_IDLE_TIMEOUT_S": "2", **more})

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`gpupool run WORDS`, to its end."""
        return subprocess.run(
            gpupool("run", *words),
            env=self.variables(**more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """`gpupool run WORDS`, with pipes."""
        return subprocess.Popen(
            gpupool("run", *words),
            env=self.variables(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> dict[str, Any] | None:
        """What the private hostd says, None when none runs."""
        try:
            return admin.call(self.folder / "admin.sock", "status")
        except admin.UnreachableError:
            return None

    @property
    def starts(self) -> int:
        """How many hostds were ever ready here."""
        return (self.folder / "hostd.log").read_text().count("msg=ready")


@pytest.fixture
def place(native: Path, short_path: Path) -> Iterator[Place]:
    """A place whose hostd is gone afterwards."""
    one = Place(native, short_path)
    yield one
    status = one.status()
    if status is not None:
        for session in status["sessions"]:
            with contextlib.suppress(admin.AdminError):  # ended by itself meanwhile
                admin.call(one.folder / "admin.sock", "end", session=session["id"], kill=True)
        admin.call(one.folder / "admin.sock", "stop")
        eventually(lambda: start_ticks(status["pid"]) is None, "hostd leaves")


@pytest.fixture(autouse=True)
def no_system_hostd() -> None:
    """A machine's own hostd would be used instead of a private one."""
    if Path("/run/gpupool/hostd.sock").exists():
        pytest.skip("a system hostd runs on this machine")


@pytest.mark.parametrize("code", [0, 1, 7, 126, 255])
def test_the_exit_code_is_the_programs(place: Place, code: int) -> None:
    done = place.run("--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_signal_that_ends_the_program(place: Place, number: signal.Signals) -> None:
    done = place.run("--", "sh", "-c", f"kill -{int(number)} $$")
    assert (done.returncode, done.stdout) == (128 + number, "")


def test_nothing_of_its_own_on_stdout(place: Place) -> None:
    done = place.run("--", sys.executable, "-c", "print('a\\0b', end='')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\0b", "")


def test_stdin_and_other_descriptors_reach_the_program(place: Place) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"through a pipe")
    os.close(writable)
    done = subprocess.run(
        gpupool("run", "--", "sh", "-c", f"cat; cat /dev/fd/{readable}"),
        env=place.variables(),
        input=b"in, ",
        capture_output=True,
        pass_fds=(readable,),
        timeout=60,
        check=False,
    )
    os.close(readable)
    assert done.stdout == b"in, through a pipe"


def test_a_program_that_is_missing(place: Place) -> None:
    done = place.run("--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, "")
    assert "no-such-program" in done.stderr


def test_a_program_that_cannot_be_executed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    assert place.run("--", str(tmp_path / "text")).returncode == 126


def test_no_program(place: Place) -> None:
    assert place.run().returncode == 2
    assert place.run("--").returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--compute", "0"],
        ["--compute", "101"],
        ["--compute", "x"],
        ["--memory", "0"],
        ["--memory", "1T"],
        ["--transport", "rdma"],
        ["--endpoint", "gpu7:9177"],
    ],
)
def test_wrong_options(place: Place, words: list[str]) -> None:
    done = place.run(*words, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "allowed" in done.stderr or "choose" in done.stderr or "write" in done.stderr


def variables_of(place: Place, *words: str, **more: str) -> dict[str, str]:
    """The environment that the program gets."""
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    done = place.run(*words, "--", sys.executable, "-c", program, **more)
    assert done.returncode == 0, done.stderr
    variables: dict[str, str] = json.loads(done.stdout)
    return variables


def test_variables(place: Place) -> None:
    given = variables_of(
        place, "--compute", "25", "--memory", "2G", "--transport", "shm", LD_LIBRARY_PATH="/a:/b"
    )
    assert given["LD_LIBRARY_PATH"] == f"{place.native}/lib/guest:/a:/b"
    assert given["GPUPOOL_ENDPOINT"] == f"unix:{place.folder}/hostd.sock"
    assert given["GPUPOOL_COMPUTE_PERCENT"] == "25"
    assert given["GPUPOOL_MEMORY_MIB"] == "2048"
    assert given["GPUPOOL_TRANSPORT"] == "shm"


def test_all_processes_of_a_program_have_one_vgpu(place: Place) -> None:
    keys = [variables_of(place, "--compute", "25")["GPUPOOL_VGPU"] for _ in range(2)]
    assert all(key.startswith("~") and len(key) == 33 for key in keys)
    assert keys[0] != keys[1]
    again = variables_of(place, "--memory", "64", GPUPOOL_VGPU=keys[0])  # a run within a run
    assert again["GPUPOOL_VGPU"] not in keys


def test_a_named_vgpu(place: Place) -> None:
    words = ("--vgpu", "trainer", "--policy", "hard", "--wait", "600")
    given = variables_of(place, *words)
    assert (given["GPUPOOL_VGPU"], given["GPUPOOL_WAIT_S"]) == ("trainer", "600")
    assert given["GPUPOOL_POLICY"] == "hard"
    assert variables_of(place, GPUPOOL_VGPU="mine")["GPUPOOL_VGPU"] == "mine"
    assert place.run("--wait", "soon", "--", "true").returncode == 2


def test_variables_that_were_not_asked_for_are_not_set(place: Place) -> None:
    given = variables_of(place)
    assert given["LD_LIBRARY_PATH"] == f"{place.native}/lib/guest"
    unwanted = {"GPUPOOL_COMPUTE_PERCENT", "GPUPOOL_MEMORY_MIB", "GPUPOOL_TRANSPORT"}
    unwanted |= {"GPUPOOL_VGPU", "GPUPOOL_POLICY", "GPUPOOL_WAIT_S"}
    assert not unwanted & set(given)
    assert "GPUPOOL_TOKEN_FILE" not in given


def test_tcp_to_the_private_hostd(place: Place) -> None:
    given = variables_of(place, "--transport", "tcp")
    assert given["GPUPOOL_ENDPOINT"].startswith("tcp://127.0.0.1:")
    assert given["GPUPOOL_TOKEN_FILE"] == f"{place.folder}/token"
    assert Path(given["GPUPOOL_TOKEN_FILE"]).stat().st_mode & 0o777 == 0o600


def test_a_named_endpoint_starts_no_hostd(place: Place) -> None:
    given = variables_of(place, "--endpoint", "tcp://gpu7:9177", "--token-file", "token")
    assert given["GPUPOOL_ENDPOINT"] == "tcp://gpu7:9177"
    assert given["GPUPOOL_TOKEN_FILE"] == str(Path.cwd() / "token")
    assert variables_of(place, GPUPOOL_ENDPOINT="unix:/x")["GPUPOOL_ENDPOINT"] == "unix:/x"
    assert place.status() is None


def test_print_env_is_for_a_shell(place: Place) -> None:
    done = place.run("--print-env", "--compute", "5", GPUPOOL_ENDPOINT="unix:/x")
    assert "export GPUPOOL_COMPUTE_PERCENT=5\n" in done.stdout
    assert place.run("--print-env", "--", "true").returncode == 2


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_client_is_served(place: Place, transport: str) -> None:
    done = place.run("--transport", transport, "--", sys.executable, "-c", CLIENT)
    assert (done.returncode, done.stdout) == (0, "ok 1\n"), done.stderr


def test_later_runs_join(place: Place) -> None:
    for number in range(1, 4):
        assert place.run("--", sys.executable, "-c", CLIENT).stdout == f"ok {number}\n"
    assert place.starts == 1


def test_simultaneous_runs_start_exactly_one(place: Place) -> None:
    runs = [place.start("--", sys.executable, "-c", CLIENT, "stay") for _ in range(8)]
    lines = [run.stdout.readline() for run in runs if run.stdout is not None]
    assert sorted(int(line.split()[1]) for line in lines) == list(range(1, 9))
    status = place.status()
    assert status is not None
    assert len(status["sessions"]) == 8
    assert len(status["runs"]) == 8
    assert place.starts == 1
    for run in runs:
        assert run.communicate(timeout=30) == ("", "")
        assert run.returncode == 0


def test_leaves_when_idle_and_comes_again(place: Place) -> None:
    assert place.run("--", "true").returncode == 0
    status = place.status()
    assert status is not None
    eventually(lambda: start_ticks(status["pid"]) is None, "hostd leaves when idle")
    assert not (place.folder / "hostd.sock").exists()
    assert "reason=idle" in (place.folder / "hostd.log").read_text()
    assert place.run("--", sys.executable, "-c", CLIENT).returncode == 0
    assert place.starts == 2


def test_does_not_leave_under_a_program_that_has_not_asked_yet(place: Place) -> None:
    """A long import before the first CUDA call."""
    done = place.run("--", "sh", "-c", f"sleep 4; exec {sys.executable} -c '{CLIENT}'")
    assert (done.returncode, done.stdout) == (0, "ok 1\n")
    assert place.starts == 1


def test_does_not_leave_under_a_session_whose_run_is_gone(place: Place, tmp_path: Path) -> None:
    """A program that went to the background keeps its GPU."""
    os.mkfifo(tmp_path / "fifo")
    holder = os.open(tmp_path / "fifo", os.O_RDWR)
    (tmp_path / "client.py").write_text(CLIENT)
    command = (
        f"{sys.executable} client.py stay <fifo >out 2>&1 & until [ -s out ]; do sleep 0.1; done"
    )
    done = subprocess.run(
        gpupool("run", "--", "sh", "-c", command),
        env=place.variables(),
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    time.sleep(3)
    status = place.status()
    assert status is not None
    assert len(status["sessions"]) == 1
    assert status["runs"] == []
    os.close(holder)
    eventually(lambda: place.status() is None, "then it leaves")


def test_a_killed_hostd_is_replaced_and_its_sessions_go_on(place: Place) -> None:
    first = place.start("--", sys.executable, "-c", CLIENT, "stay")
    assert first.stdout is not None
    assert first.stdout.readline() == "ok 1\n"
    status = place.status()
    assert status is not None
    os.kill(status["pid"], signal.SIGKILL)
    assert place.run("--", sys.executable, "-c", CLIENT).stdout == "ok 2\n"
    again = place.status()
    assert again is not None
    assert 1 in [session["id"] for session in again["sessions"]]
    assert first.communicate(timeout=30) == ("", "")
    assert place.starts == 2


def test_other_settings_replace_an_unused_hostd(place: Place) -> None:
    place.run("--", "true")
    eventually(lambda: (place.status() or {"runs": [1]})["runs"] == [], "the first run is gone")
    assert place.run("--", "true", GPUPOOL_SOFTGPU_X="1").returncode == 0
    status = place.status()
    assert status is not None
    assert status["settings"]["GPUPOOL_SOFTGPU_X"] == "1"
    assert place.starts == 2


def test_other_settings_are_refused_while_it_is_in_use(place: Place) -> None:
    first = place.start("--", "sh", "-c", "echo; read x")
    assert first.stdout is not None
    first.stdout.readline()
    done = place.run("--", "true", GPUPOOL_SOFTGPU_X="1")
    assert done.returncode == 125
    assert "in use with other settings" in done.stderr
    assert "GPUPOOL_RUNTIME_DIR" in done.stderr
    first.communicate("\n", timeout=30)


def test_a_hostd_that_cannot_start_says_why(place: Place) -> None:
    (place.folder / "hostd.sock").touch()  # in the way
    done = place.run("--", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert "hostd did not start" in done.stderr
    assert "is no socket" in done.stderr


def test_an_open_folder_is_not_used(place: Place) -> None:
    place.folder.chmod(0o755)
    done = place.run("--", "true")
    assert done.returncode == 125
    assert "chmod 700" in done.stderr


def test_without_the_guest_library(place: Place, tmp_path: Path) -> None:
    place.native = tmp_path
    done = place.run("--", "true")
    assert done.returncode == 125
    assert "gpupool doctor" in done.stderr


TRAPS = """
import os, signal
def note(number, frame):
    os.write(1, str(number).encode() + bytes([10]))
for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"):
    signal.signal(getattr(signal, "SIG" + name), note)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"])
def test_signals_are_passed_on_once(place: Place, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    run = place.start("--", sys.executable, "-c", TRAPS)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for _ in range(3):
        run.send_signal(number)
        assert run.stdout.readline() == f"{int(number)}\n"
    run.kill()
    rest, _ = run.communicate(timeout=20)
    assert rest == ""


def test_the_program_dies_with_a_killed_run(place: Place) -> None:
    run = place.start("--", "sh", "-c", "echo $$; exec sleep 60")
    assert run.stdout is not None
    program = int(run.stdout.readline())
    run.kill()
    eventually(lambda: start_ticks(program) is None, "the program is killed too")
    run.communicate(timeout=20)


def test_an_ignored_signal_stays_ignored(place: Place) -> None:
    command = gpupool("run", "--", "sh", "-c", "kill -HUP $$; echo alive")
    done = subprocess.run(
        ["nohup", *command],
        env=place.variables(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_the_program_has_no_blocked_signals(place: Place) -> None:
    done = place.run("--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    assert [int(line.split()[1], 16) for line in done.stdout.splitlines()] == [0, 0]


def test_control_c_reaches_the_program_once(place: Place) -> None:
    """A terminal signals its whole foreground group: passing that on would be a second one."""
    child, terminal = pty.fork()
    if child == 0:
        command = gpupool("run", "--", sys.executable, "-c", TRAPS)
        os.execve(command[0], command, place.variables())  # noqa: S606 (no shell wanted)
    output = b""

    def read_until(word: bytes) -> bool:
        nonlocal output
        output += os.read(terminal, 4096)
        return word in output

    eventually(lambda: read_until(b"ready"), "the program starts")
    os.write(terminal, b"\x03")
    eventually(lambda: read_until(b"2\r\n"), "the program is interrupted")
    time.sleep(0.3)
    os.kill(child, signal.SIGUSR1)
    eventually(lambda: read_until(b"10\r\n"), "the program gets the next signal")
    assert output.count(b"2\r\n") == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)
