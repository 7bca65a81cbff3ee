"""Whether a program gets its vGPU: one is started that asks for it, as any other would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpupool.guest.agent.failure import NOT_WORKING, AgentError

_TIMEOUT_S = 120
_PROGRAM = """
import ctypes, sys
driver = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
result = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
if result:
    sys.exit(f"cuInit: error {result}")
print(count.value)
"""


def probe(guest_file: Path) -> int:
    """How many vGPUs a program sees. Raises AgentError."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GPUPOOL_") and name != "LD_LIBRARY_PATH"
    }
    environment["GPUPOOL_GUEST_CONFIG"] = str(guest_file)
    try:
        done = subprocess.run(  # noqa: S603 (this Python, our text)
            [sys.executable, "-I", "-c", _PROGRAM],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = f"a program that asks for its vGPU had no answer within {_TIMEOUT_S} s"
        raise AgentError(text, NOT_WORKING) from error
    if done.returncode == 0:
        return int(done.stdout)
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    text = said[0] if said[0].startswith("gpupool: ") else said[-1]
    raise AgentError(f"a program gets no vGPU: {text[:400]}", NOT_WORKING)
