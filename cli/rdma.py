"""`gpupool run --endpoint rdma://host:port`: the program's side of a connection over UCX.

A process of its own (gpupool-ucx, see ucx/main.cpp) accepts what the program dials and carries it
to the host's relay, so that no UCX gets into the program. It ends with us.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpupool.cli.relay_process import RelayProcess
from gpupool.hostd.adapters import native_files
from gpupool.hostd.endpoint import Endpoint


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


class Relay(RelayProcess):
    """A running relay towards `address` (rdma://host:port); ends with the `with` block."""

    def __init__(self, address: str) -> None:
        """Starts it. Raises RelayError."""
        try:
            far = Endpoint.parse("tcp://" + address.removeprefix("rdma://"))
        except ValueError as error:
            raise RelayError(f"{address!r} is no endpoint; write rdma://host:port") from error
        host = f"[{far.host}]" if ":" in far.host else far.host
        words = ["--parent", str(os.getpid()), "dial", f"{host}:{far.port}", "on", "127.0.0.1:0"]
        super().__init__([str(program()), *words])
        if not self.said:
            raise RelayError("gpupool-ucx did not start; its own line, if any, is above")
        self.endpoint = Endpoint.parse(f"tcp://{self.said[1]}")
