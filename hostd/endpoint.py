"""Where clients dial: `unix:/path`, `tls://host:port`, `tcp://host:port` or `vsock://cid:port`,
parsed once.
"""

from __future__ import annotations

from dataclasses import dataclass

VSOCK_ANY = 0xFFFF_FFFF  # VMADDR_CID_ANY, vsock(7): listen for every virtual machine
_UNIX_PATH_BYTES = 107  # sun_path without its terminator, unix(7)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint: `path` is set, or `host` and `port`, or `cid` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0
    cid: int | None = None  # of AF_VSOCK; 2 is the host, VSOCK_ANY everybody
    tls: bool = False  # TCP with TLS

    @property
    def is_unix(self) -> bool:
        """True for a unix socket."""
        return bool(self.path)

    @property
    def transports(self) -> tuple[str, ...]:
        """What can be spoken there, the usual one first."""
        if (
            self.is_unix
        ):  # vsock: hypervisors and relays bring a guest's connections to a unix socket
            return ("shm", "tcp", "vsock")
        if self.cid is not None:
            return ("vsock",)
        return ("tls",) if self.tls else ("tcp",)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        if self.cid is not None:
            return f"vsock://{'any' if self.cid == VSOCK_ANY else self.cid}:{self.port}"
        scheme = "tls" if self.tls else "tcp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Raises ValueError with a text that says what is allowed."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/") or path.endswith("/") or "\0" in path:
                raise ValueError(
                    f"{text!r} must name a socket by absolute path, like "
                    "unix:/run/gpupool/hostd.sock"
                )
            if len(path.encode()) > _UNIX_PATH_BYTES:
                raise ValueError(
                    f"{text!r} is too long: a socket path has at most {_UNIX_PATH_BYTES} bytes"
                )
            return cls(path=path)
        if text.startswith(("tcp://", "tls://")):
            host, colon, port = text[len("tcp://") :].rpartition(":")
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            elif ":" in host:
                host = ""
            if host and colon and port.isascii() and port.isdigit() and int(port) <= 65535:
                return cls(host=host, port=int(port), tls=text.startswith("tls:"))
        if text.startswith("vsock://"):
            cid, _, port = text.removeprefix("vsock://").partition(":")
            number = str(VSOCK_ANY) if cid == "any" else cid
            if _is_number(number, VSOCK_ANY) and _is_number(port, VSOCK_ANY - 1):
                return cls(cid=int(number), port=int(port))
        raise ValueError(
            f"{text!r} is no endpoint; write unix:/path/to/socket, tls://host:port "
            "(tls://[::1]:9177 for IPv6), tcp://host:port where no TLS is wanted, or "
            "vsock://cid:port (vsock://any:9177 to listen, "
            "vsock://2:9177 from inside a virtual machine)"
        )


def _is_number(text: str, highest: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= highest
