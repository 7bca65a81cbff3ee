"""The runner's end of a process: answers, deaths and silence, each within its time."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from gpupool.bench.link import Link, LinkError, cpu_s

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
DIES = "import sys; sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(7)"
SILENT = "import time; time.sleep(60)"
BUSY = "for line in open(0):\n  end = sum(range(3000000)); print('{}', flush=True)"


def link(program: str, folder: Path) -> Link:
    """A process that is none of ours."""
    return Link([sys.executable, "-c", program], os.environ, folder / "log")


def test_an_answer(tmp_path: Path) -> None:
    one = link(ECHO, tmp_path)
    assert one.ask(30, "time", seconds=1.5) == {"do": "time", "seconds": 1.5}
    one.end()
    assert not one.alive


def test_a_death_tells_the_code_and_the_last_words(tmp_path: Path) -> None:
    one = link(DIES, tmp_path)
    with pytest.raises(LinkError, match="ended with 7: out of luck"):
        one.ask(30, "build")
    with pytest.raises(LinkError, match="the process is gone"):
        one.send("build")


def test_silence_is_ended(tmp_path: Path) -> None:
    one = link(SILENT, tmp_path)
    begin = time.monotonic()
    with pytest.raises(LinkError, match="no answer within"):
        one.ask(0.2, "build")
    assert time.monotonic() - begin < 20
    assert not one.alive


def test_cpu_time_of_another_process(tmp_path: Path) -> None:
    one = link(BUSY, tmp_path)
    one.ask(60, "work")
    used = cpu_s(one.pid)
    assert used > 0.005
    one.ask(60, "work")
    assert cpu_s(one.pid) > used + 0.005
    one.kill()
    assert cpu_s(one.pid) == 0.0
