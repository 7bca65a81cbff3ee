"""An X server without a screen."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

_COMMAND = ("Xvfb", "-screen", "0", "1024x768x24", "-nolisten", "tcp")
_END_TIMEOUT_S = 20.0


@contextlib.contextmanager
def x_server() -> Iterator[str]:
    """DISPLAY of an Xvfb that lives as long as the block; it chooses the number itself.

    Raises FileNotFoundError where there is no Xvfb, RuntimeError when it does not start.
    """
    told, tells = os.pipe()
    try:
        server = subprocess.Popen(  # noqa: S603 (Xvfb)
            [*_COMMAND, "-displayfd", str(tells)],
            pass_fds=(tells,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(tells)
    try:
        with os.fdopen(told) as answer:
            number = answer.readline().strip()  # empty when it has ended
        if not number:
            raise RuntimeError(f"Xvfb ended with {server.wait(_END_TIMEOUT_S)}")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(_END_TIMEOUT_S)
