"""Runs in a test's guest and starts the programs that the test asks for. Standard library only.

The other end is tests/vm/machine.py, over a virtio-serial port; one JSON object a line.
In: {"id", "command", "environment"} starts, {"id", "input"} writes to its standard input,
{"id", "signal"} signals it.
Out: {"ready": seconds since the kernel started}, {"id", "out"} and {"id", "err"} for each line that
it writes, {"id", "code"} when it has ended and all its lines are said.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import IO, Any

NAME = "org.gpupool.test"


def find_port() -> str:
    """The device of our virtio-serial port: udev, which would name it, does not run here."""
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == NAME:
            return "/dev/" + port.name
    raise SystemExit(f"this machine has no virtio-serial port {NAME}")


class Programs:
    """What runs, by the id that the test gave it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lock = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def say(self, **message: object) -> None:
        """One line to the test, whole: a virtio-serial port takes part of a long write."""
        data = json.dumps(message).encode() + b"\n"
        with self.lock:
            while data:
                data = data[os.write(self.port, data) :]

    def start(self, number: int, command: list[str], environment: dict[str, str]) -> None:
        """Starts a program and the threads that report of it."""
        try:
            program = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(os.environ, **environment),
                start_new_session=True,
            )
        except OSError as problem:
            self.say(id=number, err=f"{command[0]}: {problem}")
            self.say(id=number, code=127)
            return
        self.running[number] = program
        threading.Thread(target=self.follow, args=(number, program), daemon=True).start()

    def follow(self, number: int, program: subprocess.Popen[bytes]) -> None:
        """Reports its lines and its end."""
        threads = [
            threading.Thread(target=self.pass_on, args=(number, name, stream), daemon=True)
            for name, stream in (("out", program.stdout), ("err", program.stderr))
            if stream is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.say(id=number, code=program.wait())

    def pass_on(self, number: int, name: str, stream: IO[bytes]) -> None:
        """Each line of one of its outputs."""
        for line in stream:
            text = line.decode(errors="replace")
            self.say(**{"id": number, name: text})

    def obey(self, message: dict[str, Any]) -> None:
        """Does what one line from the test asks for."""
        number = message["id"]
        if "command" in message:
            self.start(number, message["command"], message["environment"])
        elif "signal" in message:
            os.kill(self.running[number].pid, message["signal"])
        else:
            stdin = self.running[number].stdin
            assert stdin is not None
            stdin.write(message["input"].encode())
            stdin.flush()


def main() -> None:
    """Until the machine ends."""
    port = os.open(find_port(), os.O_RDWR)
    programs = Programs(port)
    programs.say(ready=float(Path("/proc/uptime").read_text().split()[0]))
    rest = b""
    while True:
        data = os.read(port, 65536)
        if not data:
            raise SystemExit("the test has gone")
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                programs.obey(json.loads(line))
            except (OSError, KeyError) as problem:  # it has ended meanwhile; the test sees its code
                print("inside:", repr(problem), flush=True)


main()
