"""A worker that speaks only the start of the protocol: for tests of hostd and the command line.

Takes the real worker's arguments, answers Welcome with the window, and then lives until its client
goes. Started by the two lines that `native.build` writes. GPUPOOL_SOFTGPU_FAKE says how it
misbehaves: `exit` ends at once with code 3, `mute` never answers, `stay` outlives its client.
"""

import argparse
import os
import re
import select
import socket
import sys

from gpupool.wire.hello import Welcome

_LIFE_S = 120  # no fake outlives its test run


def ordered(fd: int) -> list[str]:
    """Waits for the client of a worker started ahead of need, and returns its command line."""
    message, fds, _, _ = socket.recv_fds(socket.socket(fileno=fd), 65536, 128)
    if not message:
        sys.exit(0)
    words = message.decode().split("\0")[:-1]
    return [re.sub("@([0-9]+)", lambda place: str(fds[int(place[1])]), word) for word in words]


def main() -> int:
    """The fake worker's exit code."""
    if "--probe-sandbox" in sys.argv:
        print('{"seccomp": false, "landlock": 0}')
        return 0
    parser = argparse.ArgumentParser()
    for name in (
        "socket-fd",
        "window-fd",
        "client-pidfd",
        "exchange-fd",
        "usage-fd",
        "window-bytes",
        "session-id",
    ):
        parser.add_argument(f"--{name}", type=int)
    for name in ("compute-percent", "memory-mib"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in (
        "transport",
        "window-base",
        "library",
        "devices",
        "log-level",
        "protocol",
        "host-version",
    ):
        parser.add_argument(f"--{name}", required=True)
    words = sys.argv[1:]
    if "--order-fd" in words:
        words += ordered(int(words[words.index("--order-fd") + 1]))
    arguments, _ = parser.parse_known_args(words)  # the sandbox's are for a worker that enters one
    behaviour = os.environ.get("GPUPOOL_SOFTGPU_FAKE", "")
    if behaviour == "exit":
        return 3
    connection = socket.socket(fileno=arguments.socket_fd)
    if behaviour != "mute":
        devices = arguments.devices.split(",")
        welcome = Welcome(
            window_bytes=arguments.window_bytes,
            session_id=arguments.session_id,
            driver_version=13000,
            device_count=len(devices),
            host_version=arguments.host_version,
            text=" ".join(sys.argv[1:])[:200],
        )
        fds = [arguments.window_fd] if arguments.window_fd is not None else []
        socket.send_fds(connection, [welcome.encode()], fds)
    poller = select.poll()
    if behaviour != "stay":
        poller.register(connection, select.POLLRDHUP)
        if arguments.client_pidfd is not None:
            poller.register(arguments.client_pidfd, select.POLLIN)
    poller.poll(_LIFE_S * 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
