"""The generated way to OpenGL: a vendor's library of ours below libEGL."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Host
from tests.opengl.ways import Way, need_egl


def generated(host: Host, transport: str) -> Way:
    """A vGPU of this host. Skips the test where OpenGL cannot be."""
    need_egl()
    library = host.native / "lib" / "guest" / "libEGL_gpupool.so"
    if not library.exists():
        pytest.skip(f"{library} is not built")
    vendor = host.folder / "10_gpupool.json"
    about = {"file_format_version": "1.0.0", "ICD": {"library_path": str(library)}}
    vendor.write_text(json.dumps(about))
    given = host.client_environment(transport)
    names = ("GPUPOOL_ENDPOINT", "GPUPOOL_TRANSPORT", "GPUPOOL_TOKEN_FILE", "LD_LIBRARY_PATH")
    # The last three are of programs in a machine with a window (tests/stand_in.py).
    more = ("GPUPOOL_TLS_FINGERPRINT", "GPUPOOL_WINDOW_SOCKET", "LD_PRELOAD", "VSOCK_FOLDER")
    variables = {name: given[name] for name in (*names, *more) if name in given}
    variables["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(vendor)
    return Way(f"generated-{transport}", variables)


def with_windows(way: Way) -> Way:
    """The same, for programs that draw into an X server's windows."""
    return replace(way, variables={**way.variables, "GPUPOOL_OPENGL_WINDOWS": "1"})


def answer(way: Way, text: str, *arguments: str) -> Any:
    """What a program of Python text prints last, as JSON."""
    done = way.run(sys.executable, "-c", text, *arguments)
    return json.loads(done.stdout.splitlines()[-1])
