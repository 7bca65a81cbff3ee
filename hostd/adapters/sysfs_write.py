"""One write to a file of sysfs, in a process of its own, with a time limit.

Unbinding a driver runs inside write(2). NVIDIA's driver waits there until everybody has closed the
card, and such a wait takes no signals: in hostd's own process it would keep hostd from ending.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpupool.hostd.core.ports import PortError

_PROGRAM = """
import os, sys
try:
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(fd, sys.argv[2].encode())
except OSError as error:
    sys.exit(error.errno)
"""
TIMEOUT_S = 60.0  # a large card's driver takes seconds


def write(path: Path, text: str, timeout_s: float = TIMEOUT_S) -> None:
    """Writes `text`. Raises PortError, also when it has not returned by then: it then goes on."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(path), text]
    try:
        child = subprocess.Popen(  # noqa: S603 (our own text)
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
    except OSError as error:
        raise PortError(f"cannot write {path}: {error.strerror}") from error
    try:
        code = child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()  # it dies of it when the kernel lets it
        raise PortError(
            f"writing {text.strip()!r} to {path} has not returned for {timeout_s:g} s: somebody "
            "has the card open; see the kernel's log"
        ) from None
    if code:
        raise PortError(f"cannot write {text.strip()!r} to {path}: {os.strerror(code)}")
