"""Occupancy against the machine model that docs/softgpu.md gives."""

from __future__ import annotations

from ctypes import byref, c_int, c_size_t, c_void_p

import pytest

from tests.softgpu.driver import SCALE, Driver


@pytest.mark.parametrize(
    ("threads", "shared", "blocks"),
    [
        (1024, 0, 2),  # 2048 threads
        (1, 0, 32),  # blocks
        (33, 0, 32),
        (96, 0, 21),
        (128, 48 * 1024, 4),  # 228 KiB, of which every block takes 1 KiB more than it asks for
        (128, 113 * 1024, 2),
        (128, 114 * 1024, 1),
        (1025, 0, 0),
    ],
)
def test_blocks_of_a_multiprocessor(driver: Driver, threads: int, shared: int, blocks: int) -> None:
    function = driver.function(driver.module(SCALE), "scale")
    out = c_int()
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
        byref(out), c_void_p(function), threads, c_size_t(shared)
    )
    assert out.value == blocks


def test_the_best_block(driver: Driver) -> None:
    function = driver.function(driver.module(SCALE), "scale")
    grid, block, processors = c_int(), c_int(), c_int()
    driver.cuOccupancyMaxPotentialBlockSize(
        byref(grid), byref(block), c_void_p(function), None, c_size_t(0), 0
    )
    driver.cuDeviceGetAttribute(byref(processors), 16, 0)
    assert (block.value, grid.value) == (1024, 2 * processors.value)


def test_shared_memory_that_is_left(driver: Driver) -> None:
    function = driver.function(driver.module(SCALE), "scale")
    out = c_size_t()
    driver.cuOccupancyAvailableDynamicSMemPerBlock(byref(out), c_void_p(function), 2, 128)
    assert out.value == 113 * 1024
