"""The nodes of `bench.control_plane`, alive: a process full of simulated ones, and what is waited
for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from gpupool.controller.core.identity import new_id
from gpupool.controller.core.ports import Tables
from gpupool.controller.core.token import Role, Token, digest, new_secret
from gpupool.controller.core.vgpu import State
from gpupool.controller.store.models import VgpuRow
from gpupool.controller.store.sql import SqlStore


class LiveNodes:
    """Those of one controller."""

    def __init__(self, store: SqlStore, folder: Path, port: int, nodes: int, gpus: int) -> None:
        self._store = store
        self._count = nodes
        self._last: dict[str, Any] = {}
        secret = new_secret()

        def work(tables: Tables) -> None:
            token = Token(new_id("token", tables.now_ms), "nodes", Role.NODE)
            tables.tokens.add(token, digest(secret))

        store.change(work)
        path = folder / "nodes.token"
        path.write_text(secret)
        command = [sys.executable, "-m", "gpupool.bench.simulated_nodes"]
        command += ["--target", f"127.0.0.1:{port}", "--nodes", str(nodes), "--gpus", str(gpus)]
        self._process = subprocess.Popen(  # noqa: S603  our own module
            [*command, "--token-file", str(path)], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._last = json.loads(line)

    @property
    def last(self) -> dict[str, Any]:
        """What they said last."""
        return self._last

    def until_consistent(self, timeout_s: float, since: float = 0.0) -> float:
        """Waits until every node has its stream, and every vGPU is known to be at its node; how
        long that took. `since`: what nodes said before that time does not count. Raises
        RuntimeError.
        """
        began_s = time.perf_counter()
        while True:
            fresh = self._last.get("at_s", 0.0) > since
            if fresh and self._last["connected"] == self._count and not self.not_ready():
                return time.perf_counter() - began_s
            if time.perf_counter() - began_s > timeout_s or self._process.poll() is not None:
                raise RuntimeError(
                    f"nodes: {self._last}, {self.not_ready()} vGPUs not ready after {timeout_s} s"
                )
            time.sleep(0.2)

    def not_ready(self) -> int:
        """So many reserved vGPUs have not been confirmed by their nodes."""
        with self._store.engine.connect() as connection:
            found = connection.execute(
                select(func.count()).select_from(VgpuRow).where(VgpuRow.state != State.READY.value)
            )
            return int(found.scalar_one())

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait(timeout=30)
