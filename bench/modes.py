"""The ways a program reaches the GPU.

A new one is a line here and, for a new kind of endpoint, one in bench/host.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """How the long-living process of this mode is started."""

    name: str
    transport: str = ""  # of the guest; empty: the GPU's own driver, without gpupool
    round_trip_us: int = 0  # added between the two ends
    what: str = ""


NATIVE = "native"
MODES = {
    each.name: each
    for each in (
        Mode(NATIVE, what="the GPU's own driver (software GPU: its library loaded directly)"),
        Mode("shm", "shm", what="shared memory"),
        Mode("stream", "vsock", what="the stream transport of vsock, over a unix socket"),
        Mode("window", "window", what="a VM's window, without the VM: bells over a unix socket"),
        Mode("tcp", "tcp", what="TCP, loopback"),
        Mode("tls", "tls", what="TCP with TLS 1.3, loopback"),
        Mode("tcp+50us", "tcp", 50, what="TCP with 50 us added to a round trip"),
        Mode("tcp+500us", "tcp", 500, what="TCP with 500 us added to a round trip"),
    )
}
