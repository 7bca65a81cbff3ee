"""`gpupool run --profile`: which calls waited, what they moved and how long they took.

Gathers the files of all processes of a run (cli/profile_file.py), prints one table and writes one
Chrome trace, which chrome://tracing and ui.perfetto.dev open.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from gpupool.cli import table
from gpupool.cli.profile_file import Counter, Event, Profile, ProfileError, read

VARIABLE = "GPUPOOL_PROFILE_DIR"


class Profiling:
    """One profiled run: a folder for its processes' files, and what is made of them."""

    def __init__(self, trace: Path, as_json: bool) -> None:
        """Opens the trace file now: a run must not end with nothing. Raises OSError."""
        self._trace = trace.absolute()
        self._as_json = as_json
        self._output = self._trace.open("w", encoding="utf-8")
        self._folder = Path(tempfile.mkdtemp(prefix="gpupool-profile-"))

    @property
    def variables(self) -> dict[str, str]:
        """What the program must find in its environment."""
        return {VARIABLE: str(self._folder)}

    def finish(self) -> None:
        """After the program: writes the trace and tells the figures on stderr."""
        profiles, problems = gather(self._folder)
        try:
            with self._output:
                write_trace(profiles, self._output)
            if self._as_json:
                told = json.dumps(report(profiles, problems, self._trace), indent=1)
            else:
                told = render(profiles, problems, self._trace)
            print(told, file=sys.stderr)
        except OSError as error:
            print(f"gpupool run: {self._trace}: {error.strerror}", file=sys.stderr)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def gather(folder: Path) -> tuple[list[Profile], list[str]]:
    """The profiles in a folder, and what is wrong with the files that are none."""
    profiles, problems = [], []
    for path in sorted(folder.glob("*.profile")):
        try:
            profiles.append(read(path))
        except (ProfileError, OSError) as error:
            problems.append(f"process {path.name.partition('-')[0]} left no profile: {error}")
    return profiles, problems


def totals(profiles: Sequence[Profile]) -> dict[str, Counter]:
    """All processes together; what waited longest comes first."""
    summed: dict[str, Counter] = {}
    for profile in profiles:
        for name, counter in profile.functions.items():
            summed[name] = summed.get(name, Counter()) + counter
    return dict(sorted(summed.items(), key=lambda item: (-item[1].waited_ns, -item[1].total_ns)))


def notes(profiles: Sequence[Profile], problems: Sequence[str]) -> list[str]:
    """What the reader of the figures must know of them."""
    found = list(problems)
    if not profiles and not problems:
        found.append("no process opened a session on a vGPU: nothing to tell")
    for one in profiles:
        who = f"process {one.pid} ({one.program})"
        if not one.ended:
            found.append(f"{who} ended without exit(), by a signal or _exit: counted up to there")
        if one.events_dropped:
            found.append(
                f"{who}: the trace has its newest {one.events_kept} calls, "
                f"{one.events_dropped} older ones are counted only"
            )
        if one.calls_left_out:
            found.append(f"{who}: {one.calls_left_out} calls of its threads found no room")
    return found


def report(
    profiles: Sequence[Profile], problems: Sequence[str], trace: Path | None
) -> dict[str, object]:
    """The figures for programs; times in nanoseconds."""
    return {
        "processes": [
            {
                "pid": one.pid,
                "program": one.program,
                "device": one.device,
                "transport": one.transport,
                "ended": one.ended,
                "messages": one.messages,
                "events_dropped": one.events_dropped,
                "calls_left_out": one.calls_left_out,
            }
            for one in profiles
        ],
        "functions": {name: asdict(counter) for name, counter in totals(profiles).items()},
        "notes": notes(profiles, problems),
        "trace": None if trace is None else str(trace),
    }


def render(profiles: Sequence[Profile], problems: Sequence[str], trace: Path) -> str:
    """The figures for people."""
    lines = [f"gpupool: {note}" for note in notes(profiles, problems)]
    if profiles:
        functions = totals(profiles)
        every = sum(functions.values(), Counter())
        rows = [_row(name, counter) for name, counter in functions.items()]
        header = ("function", "calls", "waited", "waiting ms", "total ms", "longest ms",
                  "to device", "from device")  # fmt: skip
        count = f"{len(profiles)} process" + ("es" if len(profiles) > 1 else "")
        places = ", ".join(sorted({f"{one.device} over {one.transport}" for one in profiles}))
        lines += [
            f"gpupool: {count} on {places}: {every.calls} calls, {every.waited_calls} of them "
            f"waited; {sum(one.messages for one in profiles)} messages",
            table.render(header, [*rows, _row("all", every)]),
            f"gpupool: trace for chrome://tracing or https://ui.perfetto.dev: {trace}",
        ]
    return "\n".join(lines)


def _row(name: str, counter: Counter) -> tuple[str, ...]:
    def milliseconds(ns: int) -> str:
        return f"{ns / 1e6:.3f}"

    return (
        name,
        str(counter.calls),
        str(counter.waited_calls),
        milliseconds(counter.waited_ns),
        milliseconds(counter.total_ns),
        milliseconds(counter.longest_ns),
        _size(counter.to_device_bytes),
        _size(counter.from_device_bytes),
    )


def _size(count: int) -> str:
    if count < 10_000:
        return f"{count} B" if count else "-"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 10_000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def write_trace(profiles: Sequence[Profile], output: TextIO) -> None:
    """Chrome's trace event format; one event a line. Raises OSError."""
    output.write('{"displayTimeUnit": "ns", "traceEvents": [')
    separator = "\n"
    for line in _trace_lines(profiles):
        output.write(separator + json.dumps(line, separators=(",", ":")))
        separator = ",\n"
    output.write("\n]}\n")


def _trace_lines(profiles: Sequence[Profile]) -> Iterator[dict[str, object]]:
    # Times count from the first call of all: as microseconds since boot they would lose digits.
    first_ns = min((event.start_ns for one in profiles for event in one.events()), default=0)
    for one in profiles:
        yield {"name": "process_name", "ph": "M", "pid": one.pid, "args": {"name": one.program}}
        for event in one.events():
            yield _trace_event(one.pid, event, first_ns)


def _trace_event(pid: int, event: Event, first_ns: int) -> dict[str, object]:
    arguments = {
        "waited_us": event.waited_ns / 1000,
        "to_device_bytes": event.to_device_bytes,
        "from_device_bytes": event.from_device_bytes,
    }
    return {
        "name": event.function,
        "cat": "waits" if event.waited_ns else "calls",
        "ph": "X",
        "pid": pid,
        "tid": event.thread,
        "ts": (event.start_ns - first_ns) / 1000,
        "dur": event.duration_ns / 1000,
        "args": {name: value for name, value in arguments.items() if value},
    }
