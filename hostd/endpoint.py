"""Where clients dial: `unix:/path` or `tcp://host:port`, parsed once."""

from __future__ import annotations

from dataclasses import dataclass

_UNIX_PATH_BYTES = 107  # sun_path without its terminator, unix(7)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint. Either `path` is set, or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_unix(self) -> bool:
        """True for a unix socket."""
        return bool(self.path)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return (
            f"tcp://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"tcp://{self.host}:{self.port}"
        )

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
        if text.startswith("tcp://"):
            host, colon, port = text.removeprefix("tcp://").rpartition(":")
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            elif ":" in host:
                host = ""
            if host and colon and port.isascii() and port.isdigit() and int(port) <= 65535:
                return cls(host=host, port=int(port))
        raise ValueError(
            f"{text!r} is no endpoint; write unix:/path/to/socket or tcp://host:port "
            "(tcp://[::1]:9177 for IPv6)"
        )
