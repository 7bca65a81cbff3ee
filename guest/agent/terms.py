"""What the host gives this virtual machine, and guest.toml, which programs read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpupool.guest.agent.failure import REFUSED, AgentError

# No quote, backslash or control character: it goes into guest.toml as it is.
_ENDPOINT = re.compile(r'(vsock://[0-9]{1,10}:[0-9]{1,10}|unix:/[^"\\\x00-\x1f\x7f]{1,106})')


@dataclass(frozen=True)
class Vgpu:
    """One of its vGPUs; a share of 0 is what others leave, memory of 0 the whole GPU's."""

    name: str
    compute_percent: int
    memory_mib: int
    policy: str

    def __str__(self) -> str:
        share = f"{self.compute_percent} % compute ({self.policy})"
        memory = f"{self.memory_mib} MiB" if self.memory_mib else "all memory"
        return "{}: {}, {}".format(self.name, share if self.compute_percent else "no share", memory)


@dataclass(frozen=True)
class Terms:
    """The host's answer to `terms`."""

    version: str
    endpoint: str
    vgpus: tuple[Vgpu, ...]
    window_bytes: int  # 0: none

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Terms:
        """Checks it. Raises AgentError."""
        window = answer.get("window")
        vgpus = _of(answer, "vgpus", list)
        if not all(isinstance(one, dict) for one in vgpus):
            raise AgentError("the host's answer: vgpus holds something else than objects", REFUSED)
        endpoint = _of(answer, "endpoint", str)
        if not _ENDPOINT.fullmatch(endpoint):
            raise AgentError(f"the host's answer: endpoint is {endpoint[:120]!r}", REFUSED)
        return cls(
            version=_of(answer, "version", str),
            endpoint=endpoint,
            vgpus=tuple(
                Vgpu(
                    _of(one, "name", str),
                    _of(one, "compute_percent", int),
                    _of(one, "memory_mib", int),
                    _of(one, "policy", str),
                )
                for one in vgpus
            ),
            window_bytes=_of(window, "bytes", int) if isinstance(window, dict) else 0,
        )

    def guest_file(self, window_socket: str = "") -> str:
        """Text of guest.toml; `window_socket`: where programs get the window, if there is one."""
        return (
            "# Written by gpupool's guest agent; it writes it anew. docs/vms.md\n"
            f'endpoint = "{self.endpoint}"\n'
            + (f'window_socket = "{window_socket}"\n' if window_socket else "")
        )


def _of(answer: dict[str, Any], key: str, kind: type) -> Any:
    value = answer.get(key)
    if type(value) is not kind:
        raise AgentError(f"the host's answer: {key} is {str(value)[:60]!r}", REFUSED)
    return value
