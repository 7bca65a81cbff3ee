"""Tells systemd how far we are (sd_notify(3)); a no-op when nobody asked."""

from __future__ import annotations

import logging
import os
import socket

from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")


def notify(state: str) -> None:
    """Sends `READY=1`, `STOPPING=1`, `STATUS=...` to NOTIFY_SOCKET if that is set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(state.encode())
    except OSError as error:
        log.warning("systemd not notified", extra=fields({"error": str(error), "state": state}))
