"""NVIDIA's own runtimes on a vGPU: libcudart 11.8, 12.9 and 13.0 as PyPI ships them.

Each checks the driver with its handshake, finds its functions through cuGetProcAddress and uses
the hidden tables in its own way: 11.8 loads code through table 6bd5fb6c, 13.0 through
cuLibraryLoadData.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import Host

RUNTIMES = {
    "11.8": "cuda_runtime/lib/libcudart.so.11.0",
    "12.9": "cuda_runtime/lib/libcudart.so.12",
    "13.0": "cu13/lib/libcudart.so.13",
}

PRELUDE = """
import ctypes, sys
from ctypes import byref, c_int, c_size_t, c_void_p, c_uint, c_float
runtime = ctypes.CDLL(sys.argv[1])
runtime.cudaGetErrorString.restype = ctypes.c_char_p
def ok(result):
    assert result == 0, runtime.cudaGetErrorString(result)
def no_gpu_is_open():
    import os
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.islink(f"/proc/self/fd/{fd}")]
    assert not [name for name in names if name.startswith("/dev/nvidia")], names
"""

KERNEL = """
.version 7.0
.target sm_52
.address_size 64
.visible .entry add(.param .u64 from, .param .u64 to, .param .u32 count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u32 %r6, [%rd4];
    ld.global.u32 %r7, [%rd5];
    add.s32 %r6, %r6, %r7;
    st.global.u32 [%rd5], %r6;
DONE:
    ret;
}
"""


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """The path of one libcudart."""
    name: str = request.param
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / RUNTIMES[name]
        if path.exists():
            return str(path)
    pytest.skip(f"libcudart {name} is not installed: ./run test installs it")


def run(host: Host, transport: str, runtime: str, text: str) -> str:
    """Runs a program that has the runtime loaded."""
    done = host.run(transport, sys.executable, "-c", PRELUDE + text, runtime)
    assert done.returncode == 0, (
        f"{done.returncode}\n{done.stdout}\n{done.stderr}\n{host.log[-3000:]}"
    )
    return done.stdout


def test_devices_are_found(host: Host, transport: str, runtime: str) -> None:
    printed = run(
        host,
        transport,
        runtime,
        """
count, driver, own, value = c_int(), c_int(), c_int(), c_int()
ok(runtime.cudaGetDeviceCount(byref(count)))
ok(runtime.cudaDriverGetVersion(byref(driver)))
ok(runtime.cudaRuntimeGetVersion(byref(own)))
ok(runtime.cudaDeviceGetAttribute(byref(value), 75, 0))
no_gpu_is_open()
print(count.value, driver.value >= own.value, value.value)
""",
    )
    count, new_enough, major = printed.split()
    assert int(count) >= 1
    assert new_enough == "True"
    assert int(major) >= 5


def test_data_comes_back_as_it_went(host: Host, transport: str, runtime: str) -> None:
    run(
        host,
        transport,
        runtime,
        """
import os
for size in (1, 4096, 5_000_001):
    data = os.urandom(size)
    there, back = c_void_p(), ctypes.create_string_buffer(size)
    ok(runtime.cudaMalloc(byref(there), c_size_t(size)))
    ok(runtime.cudaMemcpy(there, data, c_size_t(size), 1))
    ok(runtime.cudaMemcpy(back, there, c_size_t(size), 2))
    assert back.raw == data, size
    ok(runtime.cudaMemset(there, 0x5A, c_size_t(size)))
    ok(runtime.cudaMemcpy(back, there, c_size_t(size), 2))
    assert back.raw == b"\\x5a" * size, size
    ok(runtime.cudaFree(there))
""",
    )


def test_streams_and_events(host: Host, transport: str, runtime: str) -> None:
    run(
        host,
        transport,
        runtime,
        """
stream, begin, end, there, time = c_void_p(), c_void_p(), c_void_p(), c_void_p(), c_float(-1)
ok(runtime.cudaStreamCreate(byref(stream)))
ok(runtime.cudaEventCreate(byref(begin)))
ok(runtime.cudaEventCreate(byref(end)))
ok(runtime.cudaMalloc(byref(there), c_size_t(1 << 20)))
ok(runtime.cudaEventRecord(begin, stream))
ok(runtime.cudaMemsetAsync(there, 1, c_size_t(1 << 20), stream))
ok(runtime.cudaEventRecord(end, stream))
ok(runtime.cudaStreamSynchronize(stream))
ok(runtime.cudaEventQuery(end))
ok(runtime.cudaEventElapsedTime(byref(time), begin, end))
assert time.value >= 0
ok(runtime.cudaStreamDestroy(stream))
""",
    )


def test_errors_are_the_drivers(host: Host, transport: str, runtime: str) -> None:
    run(
        host,
        transport,
        runtime,
        """
assert runtime.cudaSetDevice(99) == 101
assert runtime.cudaGetLastError() == 101
assert runtime.cudaGetLastError() == 0
ok(runtime.cudaFree(None))
assert runtime.cudaFree(c_void_p(0x1230)) == 1
there = c_void_p()
assert runtime.cudaMalloc(byref(there), c_size_t(1 << 50)) == 2
""",
    )


def test_a_reset_device_works_again(host: Host, transport: str, runtime: str) -> None:
    run(
        host,
        transport,
        runtime,
        """
there = c_void_p()
for _ in range(3):
    ok(runtime.cudaMalloc(byref(there), c_size_t(1 << 20)))
    ok(runtime.cudaMemset(there, 0, c_size_t(1 << 20)))
    ok(runtime.cudaDeviceReset())
""",
    )


def test_registered_code_runs(host: Host, transport: str, runtime: str) -> None:
    run(
        host,
        transport,
        runtime,
        f"KERNEL = {KERNEL!r}\n"
        + """
from tests.guest.fatbin import fatbin, wrap
wrapper, memory = wrap(fatbin(KERNEL, 52))
runtime.__cudaRegisterFatBinary.restype = c_void_p
handle = c_void_p(runtime.__cudaRegisterFatBinary(byref(wrapper)))
@ctypes.CFUNCTYPE(None)
def stand_in(): pass
function = ctypes.cast(stand_in, c_void_p)
runtime.__cudaRegisterFunction(
    handle, function, b"add", b"add", c_int(-1), None, None, None, None, None)
runtime.__cudaRegisterFatBinaryEnd(handle)

class Dim3(ctypes.Structure):
    _fields_ = [("x", c_uint), ("y", c_uint), ("z", c_uint)]

n = 100_000
numbers = (c_int * n)(*range(n))
a, b = c_void_p(), c_void_p()
ok(runtime.cudaMalloc(byref(a), c_size_t(4 * n)))
ok(runtime.cudaMalloc(byref(b), c_size_t(4 * n)))
ok(runtime.cudaMemcpy(a, numbers, c_size_t(4 * n), 1))
ok(runtime.cudaMemcpy(b, numbers, c_size_t(4 * n), 1))
count = c_int(n)
parameters = (c_void_p * 3)(*(ctypes.addressof(value) for value in (a, b, count)))
runtime.cudaLaunchKernel.argtypes = [c_void_p, Dim3, Dim3, c_void_p, c_size_t, c_void_p]
for _ in range(2):
    grid, block = Dim3((n + 255) // 256, 1, 1), Dim3(256, 1, 1)
    ok(runtime.cudaLaunchKernel(function, grid, block, parameters, 0, None))
ok(runtime.cudaDeviceSynchronize())
ok(runtime.cudaMemcpy(numbers, b, c_size_t(4 * n), 2))
assert list(numbers) == [3 * i for i in range(n)]
runtime.__cudaUnregisterFatBinary(handle)
""",
    )
