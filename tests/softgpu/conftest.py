"""The library, and a context for every test: a fault in one test is no fault in the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_uint, c_void_p
from pathlib import Path

import pytest

from tests.softgpu.driver import Driver

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def library() -> Path:
    """The built library."""
    native = Path(os.environ.get("GPUPOOL_NATIVE_DIR", ROOT / "build" / "native"))
    path = native / "lib" / "host" / "libgpupool-softgpu.so"
    if not path.exists():
        pytest.skip(f"{path} is not built: run ./run build")
    return path


@pytest.fixture(scope="session")
def process_driver(library: Path) -> Driver:
    """The library, loaded and initialised once."""
    driver = Driver(library)
    driver.cuInit(0)
    return driver


@pytest.fixture
def driver(process_driver: Driver) -> Iterator[Driver]:
    """The driver with a fresh context current."""
    context = process_driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    before = free_memory(process_driver)
    yield process_driver
    process_driver.cuCtxDestroy_v2(c_void_p(context))
    context = process_driver.handle("cuCtxCreate_v2", c_uint(0), 0)
    after = free_memory(process_driver)
    process_driver.cuCtxDestroy_v2(c_void_p(context))
    assert after == before, "a destroyed context has left memory behind"


def free_memory(driver: Driver) -> int:
    """Free bytes of the current context's device."""
    available, total = c_size_t(), c_size_t()
    driver.cuMemGetInfo_v2(byref(available), byref(total))
    return available.value
