"""What can go wrong, with the exit code that says so (sysexits.h, where one fits)."""

from __future__ import annotations

UNREACHABLE = 69  # no channel to the host, or nobody answers there
NO_RUNTIME = 72  # our libcuda.so.1 is not where it should be, or programs do not find it
NOT_WORKING = 74  # everything is in place, and a program still gets no vGPU
REFUSED = 76  # the host says no, or something that this agent does not understand
NOT_ALLOWED = 77  # files below /etc cannot be written
DRIVER_PRESENT = 78  # a real NVIDIA driver is installed


class AgentError(Exception):
    """Something to tell the administrator: a sentence that says what to do, and an exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
