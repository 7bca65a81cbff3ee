"""Loading a module of PTX that the driver has compiled before, finding its kernels, unloading."""

from __future__ import annotations

from ctypes import c_uint, c_uint64

from gpupool.bench.workloads.base import MODULE, Result, Running, Setting, Workload, digest
from gpupool.bench.workloads.cuda import PTX, arguments, ready

_KERNELS = 40


def _image(kernels: int) -> bytes:
    """The bench's PTX with many more kernels, each another."""
    header, _, body = PTX.decode().partition(".visible .entry work")
    texts = [
        ".visible .entry work"
        + body.replace("(.param", f"_{number}(.param", 1).replace(
            "0f3F800000", f"0f{40 + number:02X}800000"
        )
        for number in range(kernels)
    ]
    return (header + "\n".join(texts)).encode() + b"\0"


def _load(setting: Setting) -> Running:
    driver = ready()
    kernels = 4 if setting.small else _KERNELS
    image = _image(kernels)

    def step() -> None:
        module = driver.module(image)
        for number in range(kernels):
            driver.function(module, f"work_{number}")
        driver.call("cuModuleUnload", module)

    def result() -> Result:
        module = driver.module(image)
        data = driver.alloc(4 * 32)
        kept = (c_uint64(data), c_uint(3))
        found = b""
        for number in range(kernels):
            kernel = driver.function(module, f"work_{number}")
            driver.call(
                *("cuLaunchKernel", kernel, c_uint(1), c_uint(1), c_uint(1)),
                *(c_uint(32), c_uint(1), c_uint(1), c_uint(0), None, arguments(kept), None),
            )
            found += bytes(driver.download(data, 4 * 32))
        driver.free(data)
        driver.call("cuModuleUnload", module)
        return digest(found)

    return Running(step, driver.wait, result)


WORKLOADS = (Workload("module_load_40_kernels", MODULE, _load, native_first=True),)
