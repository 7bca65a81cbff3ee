"""Memory of this process that is set in a stream's order, also where the GPU does not reach it."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.stream_program import PRELUDE


def test_setting_pinned_memory(host: Host, transport: str) -> None:
    """JAX's tuning of matrix products does so."""
    host.run_python(
        transport,
        PRELUDE
        + """
pinned = c_void_p()
ok(driver.cuMemAllocHost_v2(byref(pinned), c_size_t(4096)))
words = (ctypes.c_uint * 1024).from_address(pinned.value)
words[:] = range(1024)
s, a = stream(), alloc(4096)
at = c_uint64(pinned.value + 16)
# Behind a copy into the same memory, and before one out of it.
ok(driver.cuMemsetD32Async(a, 7, c_size_t(1024), s))
ok(driver.cuMemcpyDtoHAsync_v2(pinned, a, c_size_t(64), s))
ok(driver.cuMemsetD32Async(at, 0xDEADBEEF, c_size_t(4), s))
ok(driver.cuMemcpyHtoDAsync_v2(a, pinned, c_size_t(4096), s))
ok(driver.cuStreamSynchronize(s))
same(list(words[:20]), [7] * 4 + [0xDEADBEEF] * 4 + [7] * 8 + [16, 17, 18, 19])
back = (ctypes.c_uint * 1024)()
ok(driver.cuMemcpyDtoH_v2(back, a, c_size_t(4096)))
same(list(back), list(words))
ok(driver.cuMemsetD8_v2(at, 0xAB, c_size_t(3)))
same(words[4], 0xDEABABAB)
ok(driver.cuMemsetD16Async(at, 0x1234, c_size_t(1), s)); ok(driver.cuStreamSynchronize(s))
same(words[4], 0xDEAB1234)
# Rows with something between them that stays.
ok(driver.cuMemsetD2D32_v2(at, c_size_t(16), 1, c_size_t(2), c_size_t(3)))
same(list(words[4:16]), [1, 1, 0xDEADBEEF, 0xDEADBEEF, 1, 1, 7, 7, 1, 1, 7, 7])
""",
    )
