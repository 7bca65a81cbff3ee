"""A process for each TLS connection (hostd/tls/main.cpp), which hostd and workers talk to in clear.

It has the accepted socket; the connection that goes on is one end of a socket pair. So neither
hostd nor a worker holds the key, and what a client can break by TLS is its own connection. It lives
as long as that and does not notice a restart of hostd.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
from collections import defaultdict
from pathlib import Path

from gpupool.hostd.adapters.worker_process import cleaned_environment
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.sandbox import Sandbox
from gpupool.hostd.log import RateLimit, fields

log = logging.getLogger("gpupool.hostd")

# hostd/tls/main.cpp
_EXITS = {
    10: "the client did not finish the handshake in time",
    11: "the client speaks no TLS; it must dial tls:// instead of tcp://",
    12: "the client speaks an older TLS than 1.3",
    13: "the handshake failed; the client's own message says why",
    14: "TLS could not be set up; the line before says why",
}


class TlsProcesses:
    """Terminates TLS for one endpoint. Must be used from the thread of the running event loop."""

    def __init__(
        self,
        program: Path | None,
        certificate: Path,
        key: Path,
        timeout_s: int,
        sandbox: Sandbox,
        *,
        json: bool,
    ) -> None:
        """`timeout_s`: for a handshake. Raises PortError when the program is not there."""
        if program is None:
            raise PortError(
                "gpupool-tls is not built or not installed; run `gpupool doctor` on the host"
            )
        self._command = [str(program), "--certificate", str(certificate), "--key", str(key)]
        self._command += ["--timeout-s", str(timeout_s), *sandbox.tls_arguments()]
        self._command += ["--log-json", "yes" if json else "no"]
        self._failures: defaultdict[int, RateLimit] = defaultdict(RateLimit)  # by exit code

    def open(self, connection: socket.socket, address: str) -> socket.socket:
        """The plain end of a new process's tunnel. Takes `connection` over. Raises PortError."""
        ours, theirs = socket.socketpair()
        try:
            with connection, theirs:
                fds = (connection.fileno(), theirs.fileno())
                child = subprocess.Popen(  # noqa: S603 (our own program)
                    [*self._command, "--socket-fd", str(fds[0]), "--plain-fd", str(fds[1])],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=fds,
                    env=cleaned_environment(os.environ),
                    cwd="/",
                    start_new_session=True,
                )
                pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            ours.close()
            raise PortError(f"{self._command[0]}: {error.strerror}") from error
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._ended(child.wait(), address)  # dead already: does not wait

        loop.add_reader(pidfd, gone)
        return ours

    def _ended(self, exit_code: int, address: str) -> None:
        if exit_code == 0:
            return
        write, left_out = self._failures[exit_code].admit(asyncio.get_running_loop().time())
        if left_out:
            log.warning("TLS failures not logged", extra=fields({"count": left_out}))
        if write:
            reason = _EXITS.get(exit_code, f"gpupool-tls ended with {exit_code}")
            log.warning(
                "TLS connection failed", extra=fields({"address": address, "reason": reason})
            )
