"""Running OpenGL programs natively and over the generated path: the same text, two environments."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Host

MESA = Path("/usr/share/glvnd/egl_vendor.d/50_mesa.json")


def need_opengl() -> None:
    """Skips where the machine has no EGL with a software device of Mesa's."""
    if ctypes.util.find_library("EGL") is None or not MESA.exists():
        pytest.skip("no libEGL.so.1 with Mesa: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri")


def run_native(text: str, *arguments: str) -> Any:
    """What the program prints, as JSON, on this machine's own OpenGL."""
    environment = dict(
        os.environ,
        __EGL_VENDOR_LIBRARY_FILENAMES=str(MESA),
        LIBGL_ALWAYS_SOFTWARE="1",
        PYTHONPATH=str(ROOT),
    )
    return _result(
        subprocess.run(
            [sys.executable, "-c", text, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment,
        ),
        "",
    )


def run_generated(host: Host, transport: str, text: str, *arguments: str, **variables: str) -> Any:
    """The same on a vGPU."""
    vendor = host.native / "lib" / "guest" / "10_gpupool.json"
    if not vendor.exists():
        pytest.skip(f"{vendor} is not built")
    return _result(
        host.run(
            transport,
            sys.executable,
            "-c",
            text,
            *arguments,
            timeout_s=120,
            **{"__EGL_VENDOR_LIBRARY_FILENAMES": str(vendor), **variables},
        ),
        host.log[-3000:],
    )


def _result(done: subprocess.CompletedProcess[str], log: str) -> Any:
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{log}"
    return json.loads(done.stdout.splitlines()[-1])
