"""How a program of these tests reaches OpenGL: this machine's own, or gpupool's over a transport.

Nothing else here knows how gpupool is started for an OpenGL program.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT, TEST_GPU, Host

# Mesa's own variables, which a developer's shell may have.
_FOREIGN = ("GALLIUM_DRIVER", "LIBGL_ALWAYS_SOFTWARE", "MESA_LOADER_DRIVER_OVERRIDE", "DISPLAY")

_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Way:
    """What stands before a program's command line, and its environment."""

    name: str
    variables: Mapping[str, str]
    before: tuple[str, ...] = ()
    hidden: tuple[str, ...] = field(default=_FOREIGN)

    def environment(self, variables: Mapping[str, str] = _NOTHING) -> dict[str, str]:
        """The program's whole environment; `variables` come last."""
        kept = {name: value for name, value in os.environ.items() if name not in self.hidden}
        return {**kept, "PYTHONPATH": str(ROOT), **self.variables, **variables}

    def start(
        self, *program: str, variables: Mapping[str, str] = _NOTHING
    ) -> subprocess.Popen[str]:
        """Starts a program."""
        return subprocess.Popen(
            [*self.before, *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(variables),
        )

    def run(
        self,
        *program: str,
        variables: Mapping[str, str] = _NOTHING,
        timeout_s: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end; with `check`, an exit code other than 0 fails the test."""
        process = self.start(*program, variables=variables)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{program} took {timeout_s} s\n{out}\n{err}") from None
        done = subprocess.CompletedProcess(program, process.returncode, out, err)
        if check:
            assert done.returncode == 0, f"exit code {done.returncode}\n{out}\n{err}"
        return done


def native() -> Way:
    """This machine's own OpenGL: llvmpipe where gpupool has the software GPU, too."""
    return Way("native", {} if TEST_GPU == "nvidia" else {"LIBGL_ALWAYS_SOFTWARE": "1"})


def gpupool(host: Host, transport: str) -> Way:
    """A vGPU of this host. Skips the test where OpenGL through gpupool cannot be."""
    need_egl()
    if not (host.native / "libexec" / "gpupool-renderer").exists():
        pytest.skip("gpupool-renderer was not built: virglrenderer's headers are missing")
    if not mesa_has_virpipe():
        pytest.skip("Mesa's driver virpipe is not installed (Debian: libgl1-mesa-dri)")
    given = host.client_environment(transport)
    names = ("GPUPOOL_ENDPOINT", "GPUPOOL_TRANSPORT", "GPUPOOL_TOKEN_FILE")
    variables = {name: given[name] for name in (*names, "GPUPOOL_TLS_FINGERPRINT") if name in given}
    variables["GPUPOOL_NATIVE_DIR"] = str(host.native)
    run = (sys.executable, "-m", "gpupool.cli", "run", "--opengl", "yes", "--")
    return Way(transport, variables, run)


def need_egl() -> None:
    """Skips the test where nothing loads OpenGL."""
    if not ctypes.util.find_library("EGL"):
        pytest.skip("libEGL.so.1 is missing (Debian: libegl1, libgl1, libgl1-mesa-dri)")


def need_program(name: str, package: str) -> str:
    """The path of a program, or the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


def mesa_has_virpipe() -> bool:
    """Whether Mesa's drivers here know virgl's socket."""
    for folder in Path("/usr/lib").glob("*-linux-gnu"):
        for library in (*folder.glob("libgallium-*.so"), folder / "dri" / "swrast_dri.so"):
            if library.exists():
                return b".virgl_test" in library.read_bytes()
    return False
