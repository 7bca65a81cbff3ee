"""The guest libraries as the wheel has them: they load on systems older than the one that built
them, leave nothing but the driver's names in a program, and work like the ordinary build.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Host, native_dir

GLIBC = (2, 28)  # Debian 10, RHEL 8 and later
# What glibc 2.28 consists of; any other library might be missing in a container.
ALLOWED = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
OURS = {"gpupool_guest_runtime", "gpupool_private_table"}
LIBRARIES = {"libcuda.so.1": r"cu[A-Z]\w*|cudbg\w+", "libnvidia-ml.so.1": r"nvml\w+"}
LOADER = "ld-linux-x86-64.so.2"


@pytest.fixture(scope="module")
def portable() -> Path:
    """The folder with the libraries for old systems."""
    folder = native_dir() / "lib" / "portable"
    if not (folder / "libcuda.so.1").exists():
        pytest.skip("not built: ninja -C build/native portable_guest")
    return folder


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, portable: Path) -> Path:
    """One of them."""
    return portable / str(request.param)


def read_elf(library: Path, *what: str) -> str:
    """What readelf prints of a library."""
    return subprocess.run(
        ["readelf", "-W", *what, library], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_needs_no_newer_glibc(library: Path) -> None:
    needed = {
        tuple(int(part) for part in version.split("."))
        for version in re.findall(r"GLIBC_([\d.]+)", read_elf(library, "--version-info"))
    }
    assert needed, "no symbol versions found"
    assert max(needed) <= GLIBC


def test_brings_its_own_cpp_library(library: Path) -> None:
    needed = set(re.findall(r"Shared library: \[(.*?)\]", read_elf(library, "--dynamic")))
    assert needed - ALLOWED <= {LOADER}


def test_exports_only_the_drivers_names(library: Path) -> None:
    exported = {
        line.split()[7].split("@")[0]
        for line in read_elf(library, "--dyn-syms").splitlines()
        if re.search(r" (GLOBAL|WEAK) +DEFAULT +\d", line)
    }
    assert len(exported) > 100
    pattern = re.compile(LIBRARIES[library.name])
    assert {name for name in exported if not pattern.fullmatch(name)} <= OURS


def test_uses_no_newer_instructions(library: Path) -> None:
    """x86-64-v2 has no 256-bit registers."""
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert "%xmm" in code
    assert "%ymm" not in code


PROGRAM = """
import os, threading
from tests.e2e.client import Counter
from tests.guest.cuda import Driver
before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
import ctypes
ctypes.CDLL("libcuda.so.1")
assert (len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))) == before
counter = Counter()
for _ in range(100):
    counter.add()
maps = [line.split()[-1] for line in open("/proc/self/maps") if "libcuda" in line]
print(counter.value(), maps[0])
"""


def test_programs_run_with_it(host: Host, transport: str, portable: Path) -> None:
    """Loading it starts no thread and opens nothing; then kernels run."""
    done = host.run(transport, sys.executable, "-c", PROGRAM, LD_LIBRARY_PATH=str(portable))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["100", str((portable / "libcuda.so.1").resolve())]
