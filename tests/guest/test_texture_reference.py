"""Texture references, as only images from before CUDA 12 have them."""

from __future__ import annotations

import pytest

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE

# fetch(out): reads the first four elements through the module's reference.
REFERENCE = r"""
WITH_REFERENCE = b'''
.version 7.0
.target sm_70, texmode_unified
.address_size 64
.global .texref source;
.visible .entry fetch(.param .u64 out)
{
  .reg .u64 %d<4>;
  .reg .u32 %r<8>;
  ld.param.u64 %d1, [out];
  cvta.to.global.u64 %d2, %d1;
  mov.u32 %r1, %tid.x;
  tex.1d.v4.u32.s32 {%r2, %r3, %r4, %r5}, [source, {%r1}];
  mul.wide.u32 %d3, %r1, 4;
  add.u64 %d2, %d2, %d3;
  st.global.u32 [%d2], %r2;
  ret;
}
'''
"""


@pytest.mark.gpu
def test_a_module_with_a_reference(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + REFERENCE
        + """
module, function, reference, missing = (c_void_p() for _ in range(4))
ok(driver.cuModuleLoadData(byref(module), WITH_REFERENCE), "load")
ok(driver.cuModuleGetFunction(byref(function), module, b"fetch"))
ok(driver.cuModuleGetTexRef(byref(reference), module, b"source"), "cuModuleGetTexRef")
again = c_void_p()
ok(driver.cuModuleGetTexRef(byref(again), module, b"source")); same(again.value, reference.value)
same(driver.cuModuleGetTexRef(byref(missing), module, b"none"), 500)
memory, out = alloc(4096), alloc(16)
words = (c_uint * 4)(10, 20, 30, 40)
ok(driver.cuMemcpyHtoD_v2(memory, words, c_size_t(16)))
offset = c_size_t(9)
ok(driver.cuTexRefSetFormat(reference, 3, 1))  # one 32-bit number each
ok(driver.cuTexRefSetFlags(reference, 1))  # read as integers
ok(driver.cuTexRefSetAddress_v2(byref(offset), reference, memory, c_size_t(4096)))
same(offset.value, 0)
got, channels, address = c_int(), c_int(), c_uint64()
ok(driver.cuTexRefGetFormat(byref(got), byref(channels), reference))
same((got.value, channels.value), (3, 1))
ok(driver.cuTexRefGetAddress_v2(byref(address), reference)); same(address.value, memory.value)
color = (c_float * 4)(0.25, 0.5, 0.75, 1)
ok(driver.cuTexRefSetBorderColor(reference, color))
color = (c_float * 4)()
ok(driver.cuTexRefGetBorderColor(color, reference)); same(list(color), [0.25, 0.5, 0.75, 1])
pointers = (c_void_p * 1)(ctypes.addressof(out))
ok(driver.cuLaunchKernel(function, 1, 1, 1, 4, 1, 1, 0, None, pointers, None))
ok(driver.cuCtxSynchronize()); same(read(out, 4), [10, 20, 30, 40])
ok(driver.cuModuleUnload(module))
assert driver.cuTexRefSetFlags(reference, 0) in (INVALID_VALUE, INVALID_HANDLE)
""",
    )


@pytest.mark.softgpu
def test_without_textures(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
reference = c_void_p()
same(driver.cuModuleGetTexRef(byref(reference), _module, b"source"), NOT_SUPPORTED)
same(driver.cuModuleGetTexRef(byref(reference), c_void_p(12345), b"source"), INVALID_HANDLE)
assert driver.cuTexRefSetFlags(c_void_p(12345), 1) in (INVALID_VALUE, INVALID_HANDLE, NOT_SUPPORTED)
same(driver.cuParamSetTexRef(kernel, 0, c_void_p(1)), INVALID_VALUE)
ok(driver.cuCtxSynchronize())
""",
    )
