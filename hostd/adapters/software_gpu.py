"""GpuSource port: the software GPU.

Asked in a process of its own (`software_gpu_probe`), so that hostd never loads a CUDA library and a
crash in one costs a note, not the daemon.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gpupool.hostd.core.gpu import Card, Gpu, Inventory

_PROBE = Path(__file__).with_name("software_gpu_probe.py")
_PROBE_TIMEOUT_S = 20


class SoftwareGpus:
    """Implements `ports.GpuSource`."""

    def __init__(self, library: Path | None, environment: Mapping[str, str] = os.environ) -> None:
        self._library = library
        # The software GPU's own settings, e.g. how many devices it shows. Workers get the same.
        self._environment = {
            key: value for key, value in environment.items() if key.startswith("GPUPOOL_SOFTGPU_")
        }

    def discover(self) -> Inventory:
        """The devices the library shows; notes say why there are none."""
        if self._library is None:
            return Inventory(
                (),
                "",
                "",
                ("the software GPU (libgpupool-softgpu.so) is not built or not installed",),
            )
        try:
            done = subprocess.run(  # noqa: S603 (our own file)
                [sys.executable, "-I", str(_PROBE), str(self._library)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Inventory((), "", "", (f"the software GPU cannot be asked: {error}",))
        if done.returncode != 0:
            why = done.stderr.strip().splitlines()[-1:] or [f"probe ended with {done.returncode}"]
            return Inventory((), "", "", (f"the software GPU does not start: {why[0]}",))
        found = json.loads(done.stdout)
        gpus = tuple(
            Gpu(source="software", index=index, card=Card(**facts.pop("card")), **facts)
            for index, facts in enumerate(found["devices"])
        )
        version = found["cuda_version"]
        return Inventory(gpus, str(self._library), "software", cuda_version=version)
