"""What the shell sees of the command: exit codes, colours, completion, and what a start costs."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpupool.cli import table
from tests.fakes.daemon import Daemon, environment, gpupool

HEAVY = ("typer", "rich", "pydantic", "httpx")


def imported(*words: str, **variables: str) -> set[str]:
    """The top-level packages that `gpupool WORDS` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *gpupool(*words)[1:]],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}


def test_run_starts_without_typer_and_rich() -> None:
    found = imported("run", "--", "true", GPUPOOL_ENDPOINT="unix:/nowhere")
    assert "argparse" in found
    assert not found.intersection(HEAVY)


def test_the_hostd_that_run_starts_does_without_them_too(tmp_path: Path) -> None:
    (tmp_path / "hostd.toml").write_text('gpu = "software"\n')
    found = imported("hostd", "--config", str(tmp_path / "hostd.toml"), "--check")
    assert "argparse" in found
    assert not found.intersection(HEAVY)


def test_a_pipe_gets_its_table_without_rich(daemon: Daemon) -> None:
    daemon.start()
    found = imported("devices", "--admin-socket", str(daemon.admin_socket))
    assert "typer" in found
    assert "rich" not in found


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_leaves_ends_it_quietly(
    native: Path, short_path: Path, buffered: str
) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    done = subprocess.run(
        gpupool("doctor"),
        env=environment(native, short_path, PYTHONUNBUFFERED=buffered),
        stdout=writable,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writable)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_130(short_path: Path) -> None:
    """While it waits for a hostd that does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(short_path / "admin.sock"))
        listener.listen()
        listener.settimeout(20)
        command = gpupool("status", "--admin-socket", str(short_path / "admin.sock"))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            connection.close()
    assert (process.returncode, out, err) == (130, b"", b"")


def on_a_terminal(words: list[str], variables: dict[str, str]) -> str:
    """What a command writes when its stdout is a terminal of 100 columns."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        words, env={**variables, "TERM": "xterm-256color", "COLUMNS": "100"}, stdout=its
    )
    os.close(its)
    received = b""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how a terminal says that nobody holds its other end
            break
        if not piece:
            break
        received += piece
    os.close(ours)
    assert process.wait(timeout=20) == 0
    return received.decode()


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_colours_are_for_terminals(daemon: Daemon, variables: dict[str, str]) -> None:
    words = gpupool("devices")
    place = environment(daemon.native, daemon.folder, **variables)
    shown = on_a_terminal(words, place)
    assert "Fake GPU" in shown
    assert ("\x1b[1m" in shown) or variables
    assert "\x1b[3" not in shown or not variables
    piped = subprocess.run(words, env=place, capture_output=True, timeout=60, check=True).stdout
    assert b"\x1b" not in piped


def test_a_piped_table_is_not_wrapped() -> None:
    wide = "x" * 200
    assert table.render(["A", "B"], [[wide, "1"]]).splitlines()[1] == f"{wide}  1"


def completions(line: str, **variables: str) -> list[str]:
    """What Tab offers in bash at the end of this line."""
    words = line.split(" ")
    done = subprocess.run(
        gpupool(),
        env={
            **os.environ,
            "_GPUPOOL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpupool st", {"status", "stop"}),
        ("gpupool run --tra", {"--transport"}),
        ("gpupool run --transport t", {"tls", "tcp"}),
        ("gpupool stop --k", {"--kill"}),
        ("gpupool hostd --log-format ", {"text", "json"}),
    ],
)
def test_completion(line: str, expected: set[str]) -> None:
    assert set(completions(line)) == expected


def test_what_show_completion_prints_works_in_bash(tmp_path: Path) -> None:
    (tmp_path / "gpupool").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m gpupool.cli "$@"\n', encoding="utf-8"
    )
    (tmp_path / "gpupool").chmod(0o755)
    script = (
        'eval "$(gpupool --show-completion)"; COMP_WORDS=(gpupool doc); COMP_CWORD=1; '
        '_gpupool_completion gpupool; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("doctor\n", "")
