"""CardMemory port: device memory keeps what was there, and a card that leaves the pool has been
used by our tenants.

Cleared in a process of its own (`clear_memory_program`): hostd never loads a CUDA library, and when
that process has ended, nothing holds the card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gpupool.hostd.adapters.worker_process import cleaned_environment
from gpupool.hostd.core.ports import PortError

_PROGRAM = Path(__file__).with_name("clear_memory_program.py")
_TIMEOUT_S = 120.0  # a driver without persistence starts for seconds; 80 GB then take less than one
_SLACK_BYTES = 256 << 20  # free memory that may be too scattered to be taken


class CudaMemory:
    """Implements `pool_ports.CardMemory`."""

    def clear(self, library: str, uuid: str) -> int:
        """Writes zeros over it. Raises PortError."""
        command = [sys.executable, "-I", str(_PROGRAM), library, uuid]
        try:
            done = subprocess.run(  # noqa: S603 (our own file)
                command,
                env={**cleaned_environment(os.environ), "CUDA_VISIBLE_DEVICES": uuid},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PortError(f"the memory of GPU {uuid} is not cleared: {error}") from error
        if done.returncode != 0:
            why = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
            raise PortError(f"the memory of GPU {uuid} is not cleared: {why[0]}")
        found = json.loads(done.stdout)
        left_bytes = found["free_bytes"] - found["cleared_bytes"]
        if left_bytes > _SLACK_BYTES:
            raise PortError(
                f"{left_bytes >> 20} MiB of GPU {uuid} could not be cleared: somebody takes its "
                "memory meanwhile; `nvidia-smi` shows who"
            )
        return int(found["cleared_bytes"])
