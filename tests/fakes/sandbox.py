"""A sandbox as Kata has it on the host: a hypervisor's process, its folder, containers' bundles.

The process does nothing; what hostd sees is its command line, its sockets and its end. Kata's
runtime is stood in for by `begin` and `end`, which run the hooks of a CDI file as it does.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WAIT = "import sys; print('up', flush=True); sys.stdin.read()"
# createRuntime, or createContainer: kata_hooks/gpupool-kata.
GO, RUST = "createRuntime", "createContainer"


@dataclass
class Sandbox:
    """One pod, on Cloud Hypervisor unless `words` say otherwise."""

    folder: Path  # of all sandboxes
    pod: str = "trainer-0"
    namespace: str = "research"
    words: tuple[str, ...] = ()  # argv behind the program's name, for another hypervisor
    program: str = "cloud-hypervisor"
    id: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    process: subprocess.Popen[bytes] | None = None
    _socket: socket.socket | None = None

    @property
    def place(self) -> Path:
        """Its hypervisor's folder."""
        return self.folder / self.id[:16]  # a socket's path has 107 bytes at most

    @property
    def vsock(self) -> Path:
        """Base path of its sockets."""
        return self.place / "clh.sock"

    @property
    def pid(self) -> int:
        """Of its hypervisor."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Its hypervisor runs and listens."""
        self.place.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._listen()
        words = self.words or ("--api-socket", str(self.place / "clh-api.sock"))
        self.process = subprocess.Popen(
            [self.program, "-c", _WAIT, *words],
            executable=sys.executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def _listen(self) -> None:
        self.vsock.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.vsock))
        self._socket.listen(1)

    def stop(self) -> None:
        """The hypervisor ends; its folder stays, as after a crash."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def container(self, name: str, uid: int = 0, **annotations: str) -> Container:
        """A new container, not begun yet."""
        return Container(self, name, uid, annotations)


@dataclass
class Container:
    """One of a pod's."""

    sandbox: Sandbox
    name: str
    uid: int
    annotations: dict[str, str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def bundle(self) -> Path:
        """Of its runtime's."""
        return self.sandbox.place / "bundles" / self.id

    def begin(self, edits: dict[str, Any], when: str = GO) -> subprocess.CompletedProcess[str]:
        """What Kata does before the container runs."""
        self.bundle.mkdir(parents=True, exist_ok=True)
        annotations = self.annotations or {
            "io.kubernetes.cri.sandbox-id": self.sandbox.id,
            "io.kubernetes.cri.sandbox-namespace": self.sandbox.namespace,
            "io.kubernetes.cri.sandbox-name": self.sandbox.pod,
            "io.kubernetes.cri.container-name": self.name,
        }
        spec = {"process": {"user": {"uid": self.uid}}, "annotations": annotations}
        (self.bundle / "config.json").write_text(json.dumps(spec))
        return self._run(edits, when, self.id)

    def end(self, edits: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """What Kata's Go runtime does after it: the id is the sandbox's."""
        return self._run(edits, "poststop", self.sandbox.id)

    def _run(self, edits: dict[str, Any], when: str, name: str) -> subprocess.CompletedProcess[str]:
        state = {"ociVersion": "1.0.2", "id": name, "pid": self.sandbox.pid}
        (hook,) = (one for one in edits["hooks"] if one["hookName"] == when)
        return subprocess.run(
            hook["args"],
            executable=hook["path"],
            env=dict(each.split("=", 1) for each in hook.get("env", ())),
            input=json.dumps({**state, "bundle": str(self.bundle)}),
            capture_output=True,
            text=True,
            check=False,
            timeout=hook["timeout"],
        )
