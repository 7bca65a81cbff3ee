"""A folder of native files for tests that need none of the real ones.

Layout of CMake's build folder: the fake worker, a software GPU of eight functions, a guest library
that only carries the marker symbol.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SOFTWARE_GPU = r"""
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return getenv("GPUPOOL_SOFTGPU_BROKEN") ? 999 : flags; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, "Fake GPU", size);
  return device;
}
int cuDeviceGetUuid_v2(unsigned char* uuid, int device) { memset(uuid, 0xab, 16); return device; }
int cuDeviceTotalMem_v2(unsigned long* bytes, int device) { *bytes = 1ul << 30; return device; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetPCIBusId(char* text, int size, int device) {
  strncpy(text, "0000:0a:00.0", size);
  return device;
}
int cuDeviceGetAttribute(int* value, int which, int device) {
  *value = which == 75 ? 9 : 0;
  return device;
}
"""
_GUEST = "int gpupool_guest_runtime = 1;\n"
GPU_UUID = "GPU-abababab-abab-abab-abab-abababababab"


def build(folder: Path) -> Path:
    """Fills the folder and returns it."""
    for place, source in (
        ("lib/host/libgpupool-softgpu.so", _SOFTWARE_GPU),
        ("lib/guest/libcuda.so.1", _GUEST),
    ):
        target = folder / place
        target.parent.mkdir(parents=True)
        command = ["g++", "-x", "c", "-", "-shared", "-fPIC", "-o", str(target)]
        subprocess.run(command, input=source, text=True, check=True, timeout=60)
    (folder / "libexec").mkdir()
    worker = folder / "libexec" / "gpupool-worker"
    worker.write_text(
        f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.fakes.worker_program import main; sys.exit(main())\n",
        encoding="utf-8",
    )
    worker.chmod(0o755)
    for name, code in (("gpupool-tls", 14), ("gpupool-arbiter", 0)):
        program = folder / "libexec" / name
        program.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
        program.chmod(0o755)
    return folder
