"""Several programs at once, and programs whose renderer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TRANSPORTS, Host, end_host, make_host
from tests.opengl import ways
from tests.opengl.ways import Way

SCENES = ("triangle", "textures", "instances", "buffers")
_CLIENTS = 8
# Draws and reads until its input ends; says `drawn` after the first picture.
FOREVER = """
import sys, threading
import moderngl
context = moderngl.create_context(standalone=True, backend="egl")
target = context.framebuffer([context.texture((64, 64), 4)])
target.use()
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
count = 0
while not stop.is_set():
    context.clear(0.25, 0.5, 0.75, 1)
    assert target.read(components=4) == bytes([64, 128, 191, 255]) * 4096
    count += 1
    if count == 1:
        print("drawn", flush=True)
print(count, flush=True)
"""


@pytest.fixture(scope="module", params=TRANSPORTS)
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[Host, Way]]:
    """A hostd whose sessions are this module's alone."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name))
        host.crash_expected = True
        yield host, ways.gpupool(host, request.param)
        end_host(host)


def forever(way: Way) -> subprocess.Popen[str]:
    """A program that has drawn something and goes on."""
    program = subprocess.Popen(
        [*way.before, sys.executable, "-c", FOREVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=way.environment(),
    )
    assert program.stdout is not None
    if program.stdout.readline() != "drawn\n":
        program.kill()
        raise AssertionError(program.communicate()[1])
    return program


def test_eight_programs_at_once(native: Way, machine: tuple[Host, Way], tmp_path: Path) -> None:
    host, way = machine
    command = (sys.executable, "-m", "tests.opengl.scenes_moderngl")
    native.run(*command, str(tmp_path / "native.npz"), *SCENES)
    targets = [tmp_path / f"{number}.npz" for number in range(_CLIENTS)]
    programs = [way.start(*command, str(target), *SCENES) for target in targets]
    try:
        for program in programs:
            out, err = program.communicate(timeout=200)
            assert program.returncode == 0, err
            assert '"virgl' in out
    finally:
        for program in programs:
            if program.poll() is None:
                program.kill()
                program.communicate()
    with np.load(tmp_path / "native.npz") as expected:
        for target in targets:
            with np.load(target) as found:
                for name in SCENES:
                    assert np.array_equal(expected[name], found[name]), (target.name, name)
    host.wait_until(lambda: not host.sessions(), "the sessions to end")


def test_a_killed_renderer_ends_its_program_alone(machine: tuple[Host, Way]) -> None:
    host, way = machine
    other = forever(way)
    survivor = {session["worker_pid"] for session in host.sessions()}
    one = forever(way)
    (killed,) = {session["worker_pid"] for session in host.sessions()} - survivor
    os.kill(killed, signal.SIGKILL)
    try:
        # Its input stays open: nothing else ends it.
        assert one.wait(timeout=60) != 0, "it drew on without a renderer"
        assert other.poll() is None
        out, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors
        assert int(out) > 1
    finally:
        for program in (one, other):
            if program.poll() is None:
                program.kill()
                program.communicate()
    host.wait_until(lambda: not host.sessions(), "the sessions to end")


def test_a_killed_program_leaves_no_renderer(machine: tuple[Host, Way]) -> None:
    host, way = machine
    program = forever(way)
    (session,) = host.sessions()
    program.kill()  # `gpupool run`, and the program with it
    program.communicate(timeout=60)
    host.wait_until(lambda: not host.sessions(), "the session to end")
    with pytest.raises(ProcessLookupError):
        os.kill(session["worker_pid"], 0)
