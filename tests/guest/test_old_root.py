"""The portable guest libraries in a root file system that is older than the host: Debian 11."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, native_dir

RELEASE = "bullseye"  # glibc 2.31; Debian 10 (2.28) is no longer on Debian's mirrors
MIRROR = "http://deb.debian.org/debian"
MAKE_TIMEOUT_S = 900

PROGRAM = """
import ctypes, platform
from ctypes import byref, c_int, c_uint, c_ubyte, c_size_t, c_uint64, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
nvml = ctypes.CDLL("libnvidia-ml.so.1")
def ok(code):
    assert code == 0, code
context, address, back = c_void_p(), c_uint64(), (c_uint * 1000)()
ok(cuda.cuInit(0))
ok(cuda.cuDevicePrimaryCtxRetain(byref(context), 0))
ok(cuda.cuCtxSetCurrent(context))
ok(cuda.cuMemAlloc_v2(byref(address), c_size_t(4000)))
ok(cuda.cuMemsetD32_v2(address, 41, c_size_t(1000)))
module, function = c_void_p(), c_void_p()
ok(cuda.cuModuleLoadData(byref(module), open("/program.ptx", "rb").read() + bytes(1)))
ok(cuda.cuModuleGetFunction(byref(function), module, b"add_one"))
count = c_uint(1000)
given = (c_void_p * 2)(ctypes.addressof(address), ctypes.addressof(count))
ok(cuda.cuLaunchKernel(function, 8, 1, 1, 128, 1, 1, 0, None, given, None))
ok(cuda.cuMemcpyDtoH_v2(back, address, c_size_t(4000)))
ok(nvml.nvmlInit_v2())
print(platform.libc_ver()[1], set(back))
"""


@pytest.fixture(scope="module")
def old_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root, with Python and nothing of this machine in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is missing")
    root = tmp_path_factory.mktemp("old") / "root"
    made = subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            "--include=python3-minimal,libpython3-stdlib",
            RELEASE,
            root,
            MIRROR,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=MAKE_TIMEOUT_S,
    )
    if made.returncode != 0:
        pytest.skip(f"no {RELEASE} from {MIRROR}: {made.stdout[-300:]}")
    yield root
    for mounted in ("proc", "sys"):  # what debootstrap may have left
        subprocess.run(["umount", root / mounted], capture_output=True, check=False, timeout=60)
    shutil.rmtree(root)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(MAKE_TIMEOUT_S + 300)
def test_programs_run_in_an_older_system(host: Host, transport: str, old_root: Path) -> None:
    """A kernel runs, over a unix socket and over TCP, and NVML loads."""
    from tests.guest.cuda import ADD_ONE

    portable = native_dir() / "lib" / "portable"
    if not (portable / "libcuda.so.1").exists():
        pytest.skip("not built: ninja -C build/native portable_guest")
    if not (old_root / "gpupool").exists():
        shutil.copytree(portable, old_root / "gpupool", symlinks=True)
    (old_root / "program.ptx").write_bytes(ADD_ONE)
    (old_root / "program.py").write_text(PROGRAM)
    # The socket and the token, under the paths that they have outside.
    outside = old_root / host.folder.relative_to("/")
    outside.mkdir(parents=True, exist_ok=True)
    for name in ("hostd.sock", "token"):
        if (host.folder / name).exists() and not (outside / name).exists():
            os.link(host.folder / name, outside / name)
    done = host.run(
        transport,
        "chroot",
        str(old_root),
        "/usr/bin/python3",
        "/program.py",
        LD_LIBRARY_PATH="/gpupool",
        PYTHONPATH="",
    )
    assert done.returncode == 0, done.stderr + host.log[-2000:]
    assert done.stdout.split(maxsplit=1) == ["2.31", "{42}\n"]
