"""`gpupool run --endpoint rdma://host:port`: the program's side of a connection over UCX.

A process of its own (gpupool-ucx, see ucx/main.cpp) accepts what the program dials and carries it
to the host's relay, so that no UCX gets into the program. It ends with us.
"""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from types import TracebackType

from gpupool.hostd.adapters import native_files
from gpupool.hostd.endpoint import Endpoint

_READY_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 5.0


class RelayError(RuntimeError):
    """There is no relay. The text says why and what to do."""


def program() -> Path:
    """Where gpupool-ucx is. Raises RelayError."""
    worker = native_files.locate().worker
    path = None if worker is None else worker.parent / "gpupool-ucx"
    if path is None or not path.is_file():
        raise RelayError(
            "rdma:// needs gpupool-ucx, which is built only where UCX is (Debian: libucx-dev)"
        )
    return path


class Relay:
    """A running relay towards `address` (rdma://host:port); ends with the `with` block."""

    def __init__(self, address: str) -> None:
        """Starts it. Raises RelayError."""
        try:
            far = Endpoint.parse("tcp://" + address.removeprefix("rdma://"))
        except ValueError as error:
            raise RelayError(f"{address!r} is no endpoint; write rdma://host:port") from error
        host = f"[{far.host}]" if ":" in far.host else far.host
        words = ["--parent", str(os.getpid()), "dial", f"{host}:{far.port}", "on", "127.0.0.1:0"]
        command = [str(program()), *words]
        readable, writable = os.pipe()
        with os.fdopen(readable, encoding="utf-8") as output:
            # In a session of its own: what the terminal's keys end is the program.
            self._process = subprocess.Popen(  # noqa: S603 (our own program)
                command, stdin=subprocess.DEVNULL, stdout=writable, start_new_session=True
            )
            os.close(writable)
            ready, _, _ = select.select([output], [], [], _READY_TIMEOUT_S)
            line = output.readline().split() if ready else []
        if line[:1] != ["ready"]:
            self._end()
            raise RelayError("gpupool-ucx did not start; its own line, if any, is above")
        self.endpoint = Endpoint.parse(f"tcp://{line[1]}")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
