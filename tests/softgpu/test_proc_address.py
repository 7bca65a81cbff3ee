"""Looking functions up by name and version, as NVIDIA's own libraries and cuda-bindings do."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from ctypes import byref, c_char_p, c_int, c_uint64, c_void_p
from pathlib import Path

import pytest

from tests.softgpu.driver import Driver

FOUND, NOT_FOUND, TOO_OLD = 0, 1, 2


def look_up(driver: Driver, name: bytes, version: int) -> tuple[int | None, int]:
    out, status = c_void_p(), c_int(-1)
    driver.cuGetProcAddress_v2(c_char_p(name), byref(out), version, c_uint64(0), byref(status))
    return out.value, status.value


def address_of(driver: Driver, symbol: str) -> int | None:
    return ctypes.cast(getattr(driver.library, symbol), c_void_p).value


@pytest.mark.parametrize(
    ("name", "version", "symbol"),
    [
        (b"cuMemAlloc", 12000, "cuMemAlloc_v2"),
        (b"cuCtxCreate", 11030, "cuCtxCreate_v2"),
        (b"cuCtxCreate", 11040, "cuCtxCreate_v3"),
        (b"cuCtxCreate", 13000, "cuCtxCreate_v4"),
        (b"cuStreamGetCaptureInfo", 12000, "cuStreamGetCaptureInfo_v2"),
        (b"cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
        (b"cuLaunchKernel", 7000, "cuLaunchKernel"),
        (b"cuMemcpyHtoDAsync", 12000, "cuMemcpyHtoDAsync_v2"),
    ],
)
def test_a_version_means_a_symbol(driver: Driver, name: bytes, version: int, symbol: str) -> None:
    assert look_up(driver, name, version) == (address_of(driver, symbol), FOUND)


def test_what_is_not_there_is_said_to_be_not_there(driver: Driver) -> None:
    assert look_up(driver, b"cuNoSuchThing", 13000) == (None, NOT_FOUND)
    assert look_up(driver, b"cuMemAlloc", 2000) == (None, TOO_OLD)  # 32-bit pointers
    assert look_up(driver, b"cuTexObjectCreate", 13000) == (None, NOT_FOUND)
    assert look_up(driver, b"malloc", 13000) == (None, NOT_FOUND)


def test_every_export_is_a_driver_function(library: Path) -> None:
    root = Path(__file__).parent.parent.parent
    known = set((root / "wire" / "api" / "exports-13.0.txt").read_text().split())
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    assert len(exported) > 250
    assert exported <= known


BINDINGS = """
from cuda.bindings import driver as cu, nvrtc
def ok(result):
    assert int(result[0]) == 0, result
    return result[1] if len(result) == 2 else result[1:]
ok(cu.cuInit(0))
device = ok(cu.cuDeviceGet(0))
context = ok(cu.cuDevicePrimaryCtxRetain(device))
ok(cu.cuCtxSetCurrent(context))
source = b'''extern "C" __global__ void square(float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = x[i] * x[i];
}'''
program = ok(nvrtc.nvrtcCreateProgram(source, b"square.cu", 0, [], []))
assert int(nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=compute_80"])[0]) == 0
ptx = b" " * ok(nvrtc.nvrtcGetPTXSize(program))
ok(nvrtc.nvrtcGetPTX(program, ptx))
module = ok(cu.cuModuleLoadData(ptx))
kernel = ok(cu.cuModuleGetFunction(module, b"square"))
import ctypes, numpy as np
x = np.arange(1000, dtype=np.float32)
memory = ok(cu.cuMemAlloc(x.nbytes))
stream = ok(cu.cuStreamCreate(0))
ok(cu.cuMemcpyHtoDAsync(memory, x.ctypes.data, x.nbytes, stream))
arguments = ((int(memory), 1000), (ctypes.c_void_p, ctypes.c_int))
ok(cu.cuLaunchKernel(kernel, 4, 1, 1, 256, 1, 1, 0, stream, arguments, 0))
y = np.empty_like(x)
ok(cu.cuMemcpyDtoHAsync(y.ctypes.data, memory, y.nbytes, stream))
ok(cu.cuStreamSynchronize(stream))
assert (y == x * x).all()
print("squared")
"""


def test_cuda_bindings_and_nvrtc(library: Path, tmp_path: Path) -> None:
    """The published Python bindings find, through cuGetProcAddress, all that they need."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    (tmp_path / "libcuda.so.1").symlink_to(library)
    done = subprocess.run(
        [sys.executable, "-c", BINDINGS],
        env=dict(os.environ, LD_LIBRARY_PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "squared\n"
