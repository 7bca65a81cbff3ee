"""What the programs of these tests share: two kernels, and a counter on the vGPU that they drive.

Runs in the client processes, not in pytest.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint, c_uint64, c_void_p

from tests.guest.cuda import Driver
from tests.guest.kernels import Parameters, get_function, launch, load_module

PTX = b"""
.version 8.0
.target sm_80
.address_size 64

// data[i] += 1, for i < n
.visible .entry add_one(.param .u64 data, .param .u32 n)
{
  .reg .pred %p<2>;
  .reg .b32 %r<8>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [data];
  ld.param.u32 %r1, [n];
  mov.u32 %r4, %ctaid.x;
  mov.u32 %r5, %ntid.x;
  mov.u32 %r6, %tid.x;
  mad.lo.s32 %r7, %r4, %r5, %r6;
  setp.ge.u32 %p1, %r7, %r1;
  @%p1 bra done;
  mul.wide.u32 %rd3, %r7, 4;
  add.s64 %rd4, %rd1, %rd3;
  ld.global.u32 %r2, [%rd4];
  add.s32 %r2, %r2, 1;
  st.global.u32 [%rd4], %r2;
done:
  ret;
}

// *at = 1, wherever that is
.visible .entry poke(.param .u64 at)
{
  .reg .b32 %r<2>;
  .reg .b64 %rd<2>;
  ld.param.u64 %rd1, [at];
  mov.u32 %r1, 1;
  st.global.u32 [%rd1], %r1;
  ret;
}
"""


class Counter:
    """1000 integers on the vGPU, all zero at first."""

    COUNT = 1000

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        self.module = load_module(self.driver, PTX)
        self.function = get_function(self.driver, self.module, "add_one")
        self.data = self.driver.alloc(4 * self.COUNT)
        self.driver.upload(self.data, bytes(4 * self.COUNT))

    def add(self, stream: c_void_p | None = None) -> int:
        """Adds one to each, without waiting; the result of cuLaunchKernel."""
        parameters = Parameters(c_uint64(self.data), c_uint(self.COUNT))
        return launch(self.driver, self.function, (4, 1, 1), (256, 1, 1), parameters, stream=stream)

    def value(self) -> int:
        """What they are now. Fails if they differ."""
        raw = self.driver.download(self.data, 4 * self.COUNT)
        values = set((c_uint * self.COUNT).from_buffer_copy(raw))
        assert len(values) == 1, sorted(values)[:10]
        return int(values.pop())


def poke(driver: Driver, address: int) -> int:
    """Writes to a device address in a kernel; the result of cuLaunchKernel."""
    function = get_function(driver, load_module(driver, PTX), "poke")
    return launch(driver, function, parameters=Parameters(c_uint64(address)))


def result(driver: Driver, name: str, *arguments: object) -> int:
    """The CUresult of a call that may fail. Plain integers are passed as 64 bits."""
    wide = [c_uint64(each) if isinstance(each, int) else each for each in arguments]
    code: int = getattr(driver.lib, name)(*wide)
    return code


def window_base() -> int:
    """Where the window is mapped in this process, over shared memory."""
    with open("/proc/self/maps", encoding="ascii") as maps:  # noqa: PTH123 - procfs
        return next(int(line.split("-")[0], 16) for line in maps if "memfd:" in line)


def word(address: int) -> ctypes.c_uint64:
    """A 64-bit word of this process's memory, to read and write."""
    return ctypes.c_uint64.from_address(address)
