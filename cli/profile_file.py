"""Reading what a profiled process writes: the other end of guest/runtime/profile_file.hpp.

The process may still run, or have been killed at any point: a number can be one call old, and what
makes no sense is a ProfileError. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

_MAGIC = 0x3130464F52505047  # "GPPROF01"
_HEADER = struct.Struct("<QIIQQQQQIIQ16s256s64s")
_NAME_BYTES = 64
_THREAD = struct.Struct("<QQ48x")
_COUNTER = struct.Struct("<7Q8x")
_EVENT = struct.Struct("<5QII")
_MOST_THREADS = 256
_MOST_FUNCTIONS = 65536
_MOST_EVENTS = 1 << 24


class ProfileError(ValueError):
    """Not a profile, or one that its process had no time to begin."""


@dataclass(frozen=True, slots=True)
class Counter:
    """All calls of one function."""

    calls: int = 0
    waited_calls: int = 0  # that had to wait for the worker or the GPU
    total_ns: int = 0
    waited_ns: int = 0
    longest_ns: int = 0
    to_device_bytes: int = 0
    from_device_bytes: int = 0

    def __add__(self, other: Counter) -> Counter:
        ours, theirs = astuple(self), astuple(other)
        summed = [a + b for a, b in zip(ours, theirs, strict=True)]
        summed[4] = max(self.longest_ns, other.longest_ns)
        return Counter(*summed)


@dataclass(frozen=True, slots=True)
class Event:
    """One call."""

    start_ns: int
    duration_ns: int
    waited_ns: int
    to_device_bytes: int
    from_device_bytes: int
    function: str
    thread: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One process."""

    pid: int
    program: str
    device: str
    transport: str
    ended: bool  # it came to its exit handlers
    messages: int
    events_kept: int
    events_dropped: int  # older ones that newer ones have replaced
    calls_left_out: int  # of threads that found no room
    functions: dict[str, Counter]
    path: Path

    def events(self) -> Iterator[Event]:
        """The kept calls, thread by thread. Raises ProfileError, OSError."""
        raw = self.path.read_bytes()
        layout = _Layout.of(raw)
        names = layout.names(raw)
        for start in layout.threads():
            recorded, _ = _THREAD.unpack_from(raw, start)
            for place in range(min(recorded, layout.event_capacity)):
                at = start + layout.events_offset + place * _EVENT.size
                begun, lasted, waited, to, back, function, thread = _EVENT.unpack_from(raw, at)
                if function < len(names):
                    yield Event(begun, lasted, waited, to, back, names[function], thread)


def read(path: Path) -> Profile:
    """One file. Raises ProfileError, OSError."""
    raw = path.read_bytes()
    layout = _Layout.of(raw)
    names = layout.names(raw)
    functions: dict[str, Counter] = {}
    messages = kept = dropped = 0
    for start in layout.threads():
        recorded, sent = _THREAD.unpack_from(raw, start)
        kept += min(recorded, layout.event_capacity)
        dropped += max(0, recorded - layout.event_capacity)
        messages = max(messages, sent)
        for number, name in enumerate(names):
            counter = Counter(
                *_COUNTER.unpack_from(raw, start + _THREAD.size + number * _COUNTER.size)
            )
            if counter.calls:
                functions[name] = functions.get(name, Counter()) + counter
    return Profile(
        pid=layout.pid,
        program=layout.program,
        device=layout.device,
        transport=layout.transport,
        ended=layout.ended,
        messages=messages,
        events_kept=kept,
        events_dropped=dropped,
        calls_left_out=layout.calls_left_out,
        functions=functions,
        path=path,
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The header, checked against the size of the file."""

    pid: int
    function_count: int
    names_offset: int
    threads_offset: int
    thread_bytes: int
    event_capacity: int
    thread_count: int
    ended: bool
    calls_left_out: int
    transport: str
    device: str
    program: str

    @classmethod
    def of(cls, raw: bytes) -> _Layout:
        if len(raw) < _HEADER.size:
            raise ProfileError("the file is too short")
        (magic, pid, functions, names, threads, thread_bytes, events, _opened, count, ended,
         left_out, transport, device, program) = _HEADER.unpack_from(raw)  # fmt: skip
        if magic != _MAGIC:
            raise ProfileError("not a profile, or of another version")
        if functions > _MOST_FUNCTIONS or count > _MOST_THREADS or not 0 < events <= _MOST_EVENTS:
            raise ProfileError("the header makes no sense")
        needed = _THREAD.size + functions * _COUNTER.size + events * _EVENT.size
        end = max(names + functions * _NAME_BYTES, threads + count * thread_bytes)
        if thread_bytes < needed or end > len(raw):
            raise ProfileError("the header does not fit the file")
        return cls(
            pid, functions, names, threads, thread_bytes, events, count, ended != 0, left_out,
            _text(transport), _text(device), _text(program),
        )  # fmt: skip

    @property
    def events_offset(self) -> int:
        """Of the events in a thread's part."""
        return _THREAD.size + self.function_count * _COUNTER.size

    def threads(self) -> Iterator[int]:
        """Where each thread's part starts."""
        for number in range(self.thread_count):
            yield self.threads_offset + number * self.thread_bytes

    def names(self, raw: bytes) -> list[str]:
        """The functions by number."""
        return [
            _text(raw[at : at + _NAME_BYTES])
            for at in range(
                self.names_offset,
                self.names_offset + self.function_count * _NAME_BYTES,
                _NAME_BYTES,
            )
        ]


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
