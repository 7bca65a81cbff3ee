"""Copies and fills, in one, two and three dimensions, and to arrays."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from tests.softgpu.driver import INVALID_VALUE, Driver

HOST, DEVICE, ARRAY = 1, 2, 3


class Copy3D(ctypes.Structure):
    """CUDA_MEMCPY3D of cuda.h."""

    _fields_ = [
        *((f"src{name}", c_size_t) for name in ("X", "Y", "Z", "LOD")),
        ("srcType", c_uint),
        ("srcHost", c_void_p),
        ("srcDevice", c_uint64),
        ("srcArray", c_void_p),
        ("reserved0", c_void_p),
        ("srcPitch", c_size_t),
        ("srcHeight", c_size_t),
        *((f"dst{name}", c_size_t) for name in ("X", "Y", "Z", "LOD")),
        ("dstType", c_uint),
        ("dstHost", c_void_p),
        ("dstDevice", c_uint64),
        ("dstArray", c_void_p),
        ("reserved1", c_void_p),
        ("dstPitch", c_size_t),
        ("dstHeight", c_size_t),
        *((name, c_size_t) for name in ("Width", "Height", "Depth")),
    ]


class ArrayDescriptor(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR of cuda.h."""

    _fields_ = [("Width", c_size_t), ("Height", c_size_t), ("Format", c_uint), ("Channels", c_uint)]


def test_there_and_back_and_across(driver: Driver) -> None:
    data = bytes(range(256)) * 100
    first = driver.upload(data)
    second = driver.allocate(len(data))
    driver.cuMemcpyDtoD_v2(c_uint64(second + 3), c_uint64(first), c_size_t(1000))
    assert driver.download(second, 1010) == bytes(3) + data[:1000] + bytes(7)
    driver.cuMemcpy(c_uint64(second), c_uint64(first), c_size_t(len(data)))
    assert driver.download(second, len(data)) == data


def test_a_copy_past_the_end_is_refused(driver: Driver) -> None:
    address = driver.allocate(1000)
    buffer = ctypes.create_string_buffer(2000)
    assert driver.result.cuMemcpyDtoH_v2(buffer, c_uint64(address), c_size_t(1001)) == INVALID_VALUE
    assert (
        driver.result.cuMemcpyHtoD_v2(c_uint64(address + 1), buffer, c_size_t(1000))
        == INVALID_VALUE
    )
    assert driver.result.cuMemcpyHtoD_v2(c_uint64(0x99), buffer, c_size_t(4)) == INVALID_VALUE
    driver.cuMemcpyHtoD_v2(c_uint64(address), buffer, c_size_t(0))


def test_a_pageable_source_may_change_after_the_call(driver: Driver) -> None:
    """Even when the stream is busy: the driver has copied it."""
    flag = driver.upload(bytes(4))
    target = driver.allocate(8)
    stream = driver.handle("cuStreamCreate", c_uint(1))
    driver.cuStreamWaitValue32_v2(c_void_p(stream), c_uint64(flag), c_uint(1), c_uint(0))
    source = ctypes.create_string_buffer(b"before!", 8)
    driver.cuMemcpyHtoDAsync_v2(c_uint64(target), source, c_size_t(8), c_void_p(stream))
    source.value = b"after!!"
    other = driver.handle("cuStreamCreate", c_uint(1))
    driver.cuStreamWriteValue32_v2(c_void_p(other), c_uint64(flag), c_uint(1), c_uint(0))
    driver.cuStreamSynchronize(c_void_p(stream))
    assert driver.download(target, 8) == b"before!\0"


def test_a_box_out_of_a_volume(driver: Driver) -> None:
    volume = np.arange(6 * 7 * 8, dtype=np.uint8).reshape(6, 7, 8)
    address = driver.upload(volume.tobytes())
    out = np.zeros((2, 3, 10), np.uint8)
    copy = Copy3D(
        srcX=1, srcY=2, srcZ=3, srcType=DEVICE, srcDevice=address, srcPitch=8, srcHeight=7,
        dstX=4, dstType=HOST, dstHost=out.ctypes.data, dstPitch=10, dstHeight=3,
        Width=5, Height=3, Depth=2,
    )  # fmt: skip
    driver.cuMemcpy3D_v2(byref(copy))
    assert (out[:, :, 4:9] == volume[3:5, 2:5, 1:6]).all()
    assert (out[:, :, :4] == 0).all()
    assert (out[:, :, 9] == 0).all()
    copy.srcZ = 5  # the second plane would lie beyond the allocation
    assert driver.result.cuMemcpy3D_v2(byref(copy)) == INVALID_VALUE


def test_arrays_hold_rows(driver: Driver) -> None:
    array = driver.handle("cuArrayCreate_v2", byref(ArrayDescriptor(16, 4, 0x20, 1)))
    image = np.arange(64, dtype=np.float32).reshape(4, 16)
    copy = Copy3D(
        srcType=HOST, srcHost=image.ctypes.data, srcPitch=64, dstType=ARRAY, dstArray=array,
        Width=64, Height=4, Depth=1,
    )  # fmt: skip
    driver.cuMemcpy3D_v2(byref(copy))
    row = np.zeros(16, np.float32)
    back = Copy3D(
        srcType=ARRAY, srcArray=array, srcY=2, dstType=HOST, dstHost=row.ctypes.data, dstPitch=64,
        Width=64, Height=1, Depth=1,
    )  # fmt: skip
    driver.cuMemcpy3D_v2(byref(back))
    assert (row == image[2]).all()
    back.srcY = 4
    assert driver.result.cuMemcpy3D_v2(byref(back)) == INVALID_VALUE
    driver.cuArrayDestroy(c_void_p(array))
    assert driver.result.cuArrayDestroy(c_void_p(array)) == 400


def test_fills(driver: Driver) -> None:
    address = driver.allocate(1024)
    driver.cuMemsetD32_v2(c_uint64(address), c_uint(0x01020304), c_size_t(4))
    assert driver.download(address, 20) == bytes([4, 3, 2, 1]) * 4 + bytes(4)
    driver.cuMemsetD2D16_v2(
        c_uint64(address), c_size_t(64), ctypes.c_ushort(0xFFFF), c_size_t(3), c_size_t(2)
    )
    assert driver.download(address + 64, 8) == b"\xff" * 6 + bytes(2)
    assert (
        driver.result.cuMemsetD16_v2(c_uint64(address + 1), ctypes.c_ushort(0), c_size_t(1))
        == INVALID_VALUE
    )
    assert (
        driver.result.cuMemsetD8_v2(c_uint64(address), ctypes.c_ubyte(0), c_size_t(1025))
        == INVALID_VALUE
    )
