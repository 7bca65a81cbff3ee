"""Asks libcuda many small questions about memory and prints the answers as JSON, one object.

Run natively and on a vGPU by test_memory_parity.py; addresses are printed relative to their
allocation, so that the two can be compared. Bytes that a query left untouched show as aa.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

from tests.guest.cuda import Driver, Memcpy2D

ATTRIBUTES = {
    1: "context", 2: "type", 3: "device_pointer", 4: "host_pointer", 6: "sync_memops", 8: "managed",
    9: "ordinal", 11: "start", 12: "size", 13: "mapped", 14: "handle_types", 16: "access",
    17: "pool", 18: "mapping_size", 19: "mapping_base",
}  # fmt: skip
ADDRESSES = {"device_pointer", "host_pointer", "start", "mapping_base"}


class Prop(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int), ("handles", c_int), ("location_type", c_int), ("location", c_int),
        ("meta", c_void_p), ("flags", ctypes.c_ubyte * 8),
    )  # fmt: skip


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location_type", c_int), ("location", c_int), ("flags", c_int))


class Probe:
    """Collects answers."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.answers: dict[str, object] = {}

    def code(self, what: str, name: str, *arguments: object) -> int:
        """Records the CUresult of a call."""
        wide = [c_uint64(each) if isinstance(each, int) else each for each in arguments]
        result: int = getattr(self.driver.lib, name)(*wide)
        self.answers[what] = result
        return result

    def pointer(self, what: str, address: int, base: int) -> None:
        """Records every attribute of a pointer, one by one and in one call."""
        for number, name in ATTRIBUTES.items():
            data = (ctypes.c_ubyte * 16)(*[0xAA] * 16)
            result = self.driver.lib.cuPointerGetAttribute(data, c_int(number), c_uint64(address))
            self.answers[f"{what}.{name}"] = [result, self.shown(name, bytes(data), base)]
        numbers = (c_int * len(ATTRIBUTES))(*ATTRIBUTES)
        cells = [(ctypes.c_ubyte * 16)(*[0xAA] * 16) for _ in ATTRIBUTES]
        places = (c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
        result = self.driver.lib.cuPointerGetAttributes(
            c_uint(len(cells)), numbers, places, c_uint64(address)
        )
        shown = [
            self.shown(name, bytes(cell), base)
            for name, cell in zip(ATTRIBUTES.values(), cells, strict=True)
        ]
        self.answers[f"{what}.together"] = [result, shown]

    def shown(self, name: str, data: bytes, base: int) -> str:
        """A value without what differs from run to run."""
        value = int.from_bytes(data[:8], "little")
        if name in ADDRESSES and value not in (0, 0xAAAA_AAAA_AAAA_AAAA):
            return f"base+{value - base}" + data[8:].hex()
        if name == "context":
            known = {self.driver.context.value: "current", 0: "null"}
            return known.get(value, "other") + data[8:].hex()
        if name == "pool" and value not in (0, 0xAAAA_AAAA_AAAA_AAAA):
            return "some" + data[8:].hex()
        return data.hex()

    def run(self) -> None:
        """All questions."""
        self.plain()
        self.host()
        self.pooled()
        self.virtual()
        self.copies()

    def plain(self) -> None:
        """cuMemAlloc and its errors."""
        d = self.driver
        address = c_uint64()
        block = d.alloc(5 << 20)
        self.pointer("device", block + 4097, block)
        self.code("alloc.zero", "cuMemAlloc_v2", byref(address), 0)
        self.code("alloc.null", "cuMemAlloc_v2", None, 8)
        self.code("alloc.huge", "cuMemAlloc_v2", byref(address), 1 << 60)
        self.code("free.null", "cuMemFree_v2", 0)
        self.code("free.inside", "cuMemFree_v2", block + 256)
        self.code("free.unknown", "cuMemFree_v2", 0x1234000)
        self.code("range.unknown", "cuMemGetAddressRange_v2", None, None, 0x1234000)
        self.code("range.nulls", "cuMemGetAddressRange_v2", None, None, block)
        small = d.alloc(1)
        base, size = c_uint64(), c_size_t()
        self.code("range.small", "cuMemGetAddressRange_v2", byref(base), byref(size), small)
        self.answers["range.small.size"] = size.value
        pitch = c_size_t()
        for width, element in ((100, 4), (1025, 16), (100, 3), (100, 0)):
            name = f"pitch.{width}.{element}"
            if (
                self.code(
                    name, "cuMemAllocPitch_v2", byref(address), byref(pitch), width, 7, element
                )
                == 0
            ):
                self.answers[name + ".value"] = pitch.value
        one = c_uint(1)
        self.code("sync_memops", "cuPointerSetAttribute", byref(one), 6, block)
        self.code("sync_memops.read_only", "cuPointerSetAttribute", byref(one), 9, block)
        self.code("info.one", "cuMemGetInfo_v2", byref(size), None)

    def host(self) -> None:
        """Pinned, registered and pageable memory."""
        d = self.driver
        pinned = d.pinned(10000, 0)
        self.pointer("pinned", pinned + 100, pinned)
        flags, device = c_uint(), c_uint64()
        for value in (0, 1, 2, 3, 4):
            block = d.pinned(4096, value)
            self.code(f"flags.{value}", "cuMemHostGetFlags", byref(flags), block)
            self.answers[f"flags.{value}.value"] = flags.value
            self.code(f"mapped.{value}", "cuMemHostGetDevicePointer_v2", byref(device), block, 0)
            self.answers[f"mapped.{value}.same"] = device.value == block
        pointer = c_void_p()
        self.code("pinned.zero", "cuMemHostAlloc", byref(pointer), 0, 0)
        self.code("pinned.flags", "cuMemHostAlloc", byref(pointer), 8, 64)
        self.code("pinned.free.null", "cuMemFreeHost", 0)
        self.code("pinned.free.unknown", "cuMemFreeHost", 0x1234000)
        self.code("pinned.free.inside", "cuMemFreeHost", pinned + 8)
        area = mmap.mmap(-1, 1 << 20)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self.pointer("pageable", start, start)
        self.code("register", "cuMemHostRegister_v2", start, 1 << 16, 0)
        for name in ("type", "host_pointer", "managed", "ordinal", "mapped"):
            number = next(key for key, value in ATTRIBUTES.items() if value == name)
            data = (ctypes.c_ubyte * 16)(*[0xAA] * 16)
            result = d.lib.cuPointerGetAttribute(data, c_int(number), c_uint64(start + 100))
            self.answers[f"registered.{name}"] = [result, self.shown(name, bytes(data), start)]
        self.code("register.twice", "cuMemHostRegister_v2", start, 1 << 16, 0)
        self.code("register.overlap", "cuMemHostRegister_v2", start + 4096, 1 << 16, 0)
        self.code("unregister.inside", "cuMemHostUnregister", start + 8)
        self.code("unregister", "cuMemHostUnregister", start)
        self.code("unregister.twice", "cuMemHostUnregister", start)
        self.code("register.null", "cuMemHostRegister_v2", 0, 4096, 0)

    def pooled(self) -> None:
        """Stream-ordered memory."""
        d = self.driver
        address = c_uint64()
        self.code("pool.alloc", "cuMemAllocAsync", byref(address), 5000, None)
        self.pointer("pool", address.value + 8, address.value)
        self.code("pool.zero", "cuMemAllocAsync", byref(address), 0, None)
        self.code("pool.free.null", "cuMemFreeAsync", 0, None)
        self.code("pool.free.unknown", "cuMemFreeAsync", 0x1234000, None)
        self.code("pool.free", "cuMemFreeAsync", address.value, None)
        self.code("pool.free.twice", "cuMemFreeAsync", address.value, None)
        block = d.alloc(4096)
        self.code("pool.free.of_plain", "cuMemFreeAsync", block, None)
        value = c_uint64()
        pool = c_void_p()
        d.call("cuDeviceGetDefaultMemPool", byref(pool), 0)
        for attribute in range(1, 9):
            self.code(
                f"pool.attribute.{attribute}",
                "cuMemPoolGetAttribute",
                pool,
                attribute,
                byref(value),
            )
        self.code("pool.destroy_default", "cuMemPoolDestroy", pool)

    def virtual(self) -> None:
        """Virtual memory management."""
        prop = Prop(1, 0, 1, 0)
        size = c_size_t()
        self.code("granularity", "cuMemGetAllocationGranularity", byref(size), byref(prop), 0)
        unit = size.value
        self.answers["granularity.value"] = unit
        base, handle = c_uint64(), c_uint64()
        self.code("reserve", "cuMemAddressReserve", byref(base), unit * 4, 0, 0, 0)
        self.pointer("reserved", base.value + 5, base.value)
        self.code("create", "cuMemCreate", byref(handle), unit, byref(prop), 0)
        self.code("create.odd", "cuMemCreate", byref(c_uint64()), unit + 1, byref(prop), 0)
        self.code("map", "cuMemMap", base.value + unit, unit, 0, handle.value, 0)
        self.code("map.twice", "cuMemMap", base.value + unit, unit, 0, handle.value, 0)
        self.code("map.outside", "cuMemMap", 0x1234000, unit, 0, handle.value, 0)
        self.pointer("mapped_only", base.value + unit + 5, base.value)
        self.code("access", "cuMemSetAccess", base.value + unit, unit, byref(Access(1, 0, 3)), 1)
        self.pointer("mapped", base.value + unit + 5, base.value)
        start = c_uint64()
        self.code(
            "mapped.range",
            "cuMemGetAddressRange_v2",
            byref(start),
            byref(size),
            base.value + unit + 5,
        )
        self.answers["mapped.range.value"] = [start.value - base.value, size.value]
        self.code("mapped.free", "cuMemFree_v2", base.value + unit)
        self.code("address_free.mapped", "cuMemAddressFree", base.value, unit * 4)
        self.code("unmap.unmapped", "cuMemUnmap", base.value, unit)
        self.code("unmap", "cuMemUnmap", base.value + unit, unit)
        self.code("unmap.twice", "cuMemUnmap", base.value + unit, unit)
        self.code("release", "cuMemRelease", handle.value)
        self.code("address_free.part", "cuMemAddressFree", base.value, unit)
        self.code("address_free", "cuMemAddressFree", base.value, unit * 4)

    def copies(self) -> None:
        """Errors of copies and memsets."""
        d = self.driver
        block = d.alloc(8192)
        host = ctypes.create_string_buffer(1 << 16)
        here = ctypes.addressof(host)
        self.code("copy.zero", "cuMemcpyHtoD_v2", block, here, 0)
        self.code("copy.zero.unknown", "cuMemcpyHtoD_v2", 0x1234000, here, 0)
        self.code("copy.unknown", "cuMemcpyHtoD_v2", 0x1234000, here, 8)
        self.code("copy.null", "cuMemcpyHtoD_v2", block, 0, 8)
        self.code("copy.back.null", "cuMemcpyDtoH_v2", 0, block, 8)
        self.code("copy.device.unknown", "cuMemcpyDtoD_v2", block, 0x1234000, 8)
        self.code("copy.unified.host", "cuMemcpy", here, here + 4096, 100)
        self.code("memset.zero", "cuMemsetD8_v2", block, 0, 0)
        self.code("memset.unknown", "cuMemsetD8_v2", 0x1234000, 0, 8)
        self.code("memset.unaligned", "cuMemsetD32_v2", block + 1, 0, 1)
        self.code("memset.rows.pitch", "cuMemsetD2D8_v2", block, 8, 0, 16, 4)
        self.code("memset.rows.one", "cuMemsetD2D8_v2", block, 0, 0, 16, 1)
        copy = Memcpy2D(src_type=1, src_host=here, src_pitch=64, dst_type=2, dst_device=block)
        copy.dst_pitch, copy.width, copy.height = 64, 64, 4
        self.code("box", "cuMemcpy2D_v2", byref(copy))
        copy.dst_pitch = 32
        self.code("box.pitch", "cuMemcpy2D_v2", byref(copy))
        copy.dst_pitch, copy.width = 64, 0
        self.code("box.empty", "cuMemcpy2D_v2", byref(copy))
        copy.width, copy.height, copy.src_pitch, copy.dst_pitch = 64, 1, 0, 0
        self.code("box.row", "cuMemcpy2D_v2", byref(copy))


if __name__ == "__main__":
    probe = Probe()
    probe.run()
    print(json.dumps(probe.answers))
