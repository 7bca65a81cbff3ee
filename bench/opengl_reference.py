"""virglrenderer's own server, `virgl_test_server`: what gpupool's virgl path is compared with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpupool.hostd.adapters import native_files

NAME = "virgl_test_server"
_START_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 20.0


class ReferenceError(RuntimeError):
    """The stock server cannot be used. The text says why."""


@contextlib.contextmanager
def reference_server(folder: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    """Its socket; one process of it a program, as gpupool has. Raises ReferenceError.

    `variables` choose the OpenGL that it draws with: native's.
    """
    program = shutil.which(NAME)
    if program is None:
        raise ReferenceError(f"{NAME} is not installed (Debian: virgl-server)")
    path = folder / "reference.sock"
    with (folder / "reference-server.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 (virglrenderer's)
            [program, "--use-egl-surfaceless", f"--socket-path={path}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(variables),
            # As hostd's renderers: in the program's own session Linux would count both as one for
            # their share of the processors (autogroup), and on a busy host that decides.
            start_new_session=True,
        )
    try:
        until = time.monotonic() + _START_TIMEOUT_S
        while not path.is_socket():
            if server.poll() is not None or time.monotonic() > until:
                raise ReferenceError(f"{NAME} does not listen; its exit code: {server.poll()}")
            time.sleep(0.02)
        yield path
    finally:
        server.terminate()
        server.wait(_END_TIMEOUT_S)


def reference_words(path: Path) -> tuple[str, ...]:
    """What stands before a program's words, so that any Mesa dials the server. ReferenceError."""
    relay = native_files.locate().opengl
    if relay is None:
        raise ReferenceError("gpupool-opengl, which gives older Mesa its socket, was not built")
    return (str(relay), "exec", "--socket", str(path), "--")


def reference_variables(path: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """For the program: Mesa's virpipe, and where it dials."""
    return {
        **variables,
        "GALLIUM_DRIVER": "virpipe",
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "VTEST_SOCKET_NAME": os.fspath(path),
        "__GLX_VENDOR_LIBRARY_NAME": "mesa",
    }
