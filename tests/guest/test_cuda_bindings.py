"""NVIDIA's Python bindings (cuda-bindings from PyPI) on a vGPU."""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.guest.test_cudart import KERNEL


def test_driver_and_kernel(host: Host, transport: str) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    host.run_python(
        transport,
        f"KERNEL = {KERNEL!r}\n"
        + """
import ctypes
from array import array
from cuda.bindings import driver

def ok(answer):
    assert answer[0] == driver.CUresult.CUDA_SUCCESS, answer[0]
    return answer[1] if len(answer) == 2 else answer[1:]

ok(driver.cuInit(0))
device = ok(driver.cuDeviceGet(0))
assert ok(driver.cuDeviceGetName(64, device)).strip(b"\\0")
context = ok(driver.cuDevicePrimaryCtxRetain(device))
ok(driver.cuCtxSetCurrent(context))
module = ok(driver.cuModuleLoadData(KERNEL.encode() + b"\\0"))
function = ok(driver.cuModuleGetFunction(module, b"add"))
n = 10_000
numbers = array("i", range(n))
bytes_there = n * numbers.itemsize
a, b = ok(driver.cuMemAlloc(bytes_there)), ok(driver.cuMemAlloc(bytes_there))
for there in (a, b):
    ok(driver.cuMemcpyHtoD(there, numbers.buffer_info()[0], bytes_there))
values, kinds = (a, b, n), (None, None, ctypes.c_int)
# A blocking stream: a copy from pageable memory may be under way when its call returns.
stream = ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_DEFAULT))
blocks = (n + 127) // 128
ok(driver.cuLaunchKernel(function, blocks, 1, 1, 128, 1, 1, 0, stream, (values, kinds), 0))
ok(driver.cuStreamSynchronize(stream))
ok(driver.cuMemcpyDtoH(numbers.buffer_info()[0], b, bytes_there))
assert list(numbers) == [2 * i for i in range(n)]
assert driver.cuMemFree(0x1230)[0] == driver.CUresult.CUDA_ERROR_INVALID_VALUE
""",
    )
