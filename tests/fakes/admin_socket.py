"""A stand-in for hostd's admin socket: says what it was told to, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any


class AdminSocket:
    """Serves until closed, one connection at a time."""

    def __init__(self, path: Path) -> None:
        """Listens at once."""
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.refusals: dict[str, str] = {}  # method -> what is said against it
        self.results: dict[str, dict[str, Any]] = {"status": {"admin_socket": str(path)}}
        self.raw: bytes | None = None  # said instead of any answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def methods(self) -> list[str]:
        """What was asked, in order."""
        return [str(one["method"]) for one in self.asked]

    def close(self) -> None:
        """Ends it; its socket goes."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(10)
                line = connection.makefile("rb").readline()
                if line:
                    connection.sendall(self._answer(json.loads(line)))

    def _answer(self, request: dict[str, Any]) -> bytes:
        self.asked.append(request)
        if self.raw is not None:
            return self.raw
        refusal = self.refusals.get(request["method"])
        result = self.results.get(request["method"], {})
        answer = {"ok": False, "error": refusal} if refusal else {"ok": True, "result": result}
        return json.dumps(answer).encode() + b"\n"
