"""How well compute shares are kept, and what they cost, by clients on one GPU.

    gpupool bench --shares [--gpu nvidia] [--window-s 10] [--kinds small,long] [--percents 25,75]

Starts a hostd of its own, with two vGPUs that are resized while their clients run. A share that was
achieved is a client's rate in one window over the rate of the same client alone on the GPU. That is
taken once it is steady, before and after the windows beside others.
Prints Markdown; --json writes the figures, too. docs/shares.md says what is promised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.bench.clock import SmClock
from gpupool.bench.host import Host, HostError, helper, hostd
from gpupool.bench.shares_report import Figures, Row, as_json, as_markdown

KINDS = ("small", "long", "graphs", "gemm", "two_clients")
PERCENTS = (1, 5, 10, 25, 50, 75)
POLICIES = ("hard", "elastic")
EXTRAS = ("alone", "pair", "three", "eight", "latency", "resize")
_ANSWER_S = 60.0
_USED_NS = struct.Struct("<32xQ")
_SETTLE_S = 0.4
_STEADY = 0.02  # as a part of the rate
_STEADY_S = 0.25
_STEADY_WITHIN_S = 8.0
_LEAST_SOLO_S = 1.0
_LEAST_WAITS = 2
_RESIZED_S = 0.1  # from when on a new share counts


class Client:
    """A process that works (workloads/shares_client.py)."""

    def __init__(self, host: Host, kind: str, steps: int, variables: dict[str, str]) -> None:
        self.kind = kind
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-m", "gpupool.bench.workloads.shares_client", kind, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **host.environment("shm"), **variables},
        )
        self.line()

    def line(self) -> str:
        """The next line it says. Raises HostError when there is none in time."""
        out = self._process.stdout
        if out is None or not select.select([out], [], [], _ANSWER_S)[0]:
            raise HostError(f"a client ({self.kind}) says nothing")
        text = out.readline().decode().strip()
        if not text:
            raise HostError(f"a client ({self.kind}) ended with {self._process.wait(_ANSWER_S)}")
        return text

    def ask(self) -> dict[str, float]:
        """How far it is."""
        if self._process.stdin is None:
            raise HostError("a client without input")
        self._process.stdin.write(b"?\n")
        self._process.stdin.flush()
        told = json.loads(self.line())
        if not told["lives"]:
            raise HostError(f"the work of a client ({self.kind}) has ended")
        self.waits_us: list[float] = told["waits_us"]
        return {"done": told["done"], "at_s": told["at_s"]}

    def end(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class _Window:
    """What was seen in one: pieces of work a second, the clock, and what the arbiter charged."""

    rate: float
    neighbour: float
    mhz: float
    charged_percent: float


def rates(clients: Sequence[Client], window_s: float) -> list[float]:
    """Pieces of work a second of each, in one window. It goes on until each has done something: a
    machine with too few processors for all shows a small rate and not none. Raises HostError.
    """
    before = [client.ask() for client in clients]
    end = time.monotonic() + window_s + _ANSWER_S
    while True:
        time.sleep(window_s)
        after = [client.ask() for client in clients]
        pairs = zip(clients, before, after, strict=True)
        idle = [client.kind for client, early, late in pairs if late["done"] == early["done"]]
        if not idle:
            break
        if time.monotonic() > end:
            raise HostError(f"a client ({idle[0]}) got nothing done within {_ANSWER_S:g} s")
    return [
        (late["done"] - early["done"]) / (late["at_s"] - early["at_s"])
        for early, late in zip(before, after, strict=True)
    ]


class Bench:
    """One run."""

    def __init__(self, host: Host, clock: SmClock, steps: int, window_s: float) -> None:
        self.figures = Figures()
        self.window_s = window_s
        self._host, self._clock, self._steps = host, clock, steps
        self._solo: dict[str, float] = {}
        self._shares: dict[str, int] = {}

    def admin(self, method: str, **parameters: object) -> dict[str, Any]:
        """What hostd answers to a request (hostd/api/admin.py). Raises HostError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self._host.folder / "admin.sock"))
            connection.sendall(json.dumps({"method": method, **parameters}).encode() + b"\n")
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
        if not answer["ok"]:
            raise HostError(f"{method} {parameters}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def charged_s(self) -> dict[str, float]:
        """For how long each vGPU with a name and a session has been charged: `used_ns` of a lease
        page (hostd/pages/lease_page.hpp).
        """
        found: dict[str, float] = {}
        for session in self.admin("status")["sessions"]:
            for page in self._host.folder.glob(f"state/gpus/*/{session['id']}.lease"):
                found[session["vgpu"]] = _USED_NS.unpack_from(page.read_bytes())[0] / 1e9
        return found

    def set_shares(self, **wanted: tuple[int, str]) -> None:
        """vGPUs by name: percent and policy. Made, or resized: those that shrink first."""
        for name, (percent, policy) in sorted(
            wanted.items(), key=lambda each: each[1][0] - self._shares.get(each[0], 0)
        ):
            if name in self._shares:
                self.admin("vgpu_resize", vgpu=name, compute_percent=percent, policy=policy)
            else:
                self.admin("vgpu_create", name=name, compute_percent=percent, policy=policy)
            self._shares[name] = percent

    @contextlib.contextmanager
    def clients(self, *wanted: tuple[str, dict[str, str]]) -> Iterator[list[Client]]:
        """Clients, kind and variables, which work until the end of the block."""
        started: list[Client] = []
        try:
            for kind, variables in wanted:
                started.append(Client(self._host, kind, self._steps, variables))
            time.sleep(_SETTLE_S)
            yield started
        finally:
            for client in started:
                client.end()

    def solo_of(self, client: Client) -> float:
        """The rate of a client that is alone on the GPU, once it no longer changes."""
        end = time.monotonic() + _STEADY_WITHIN_S
        (before,), (now,) = rates([client], _STEADY_S), rates([client], _STEADY_S)
        while abs(now - before) > _STEADY * before:
            if time.monotonic() > end:
                self.figures.remarks.append(f"{client.kind}: its rate alone is not steady")
                break
            before = now
            (now,) = rates([client], _STEADY_S)
        return rates([client], max(_LEAST_SOLO_S, self.window_s / 4))[0]

    def solo(self, kind: str) -> float:
        """The rate of one client alone, without a share."""
        if kind not in self._solo:
            with self.clients((kind, {})) as clients:
                self._solo[kind] = self.solo_of(clients[0])
        return self._solo[kind]

    def shares(self, kind: str, percents: Sequence[int], policies: Sequence[str]) -> None:
        """Achieved shares beside a saturating neighbour."""
        first = "small" if kind == "two_clients" else kind
        ours = {"GPUPOOL_VGPU": "a"}
        # Alone and elastic: without leases.
        self.set_shares(a=(50, "elastic"), b=(50, "elastic"))
        with self.clients((first, ours)) as clients:
            with self._clock.watched() as alone_mhz:
                before = self.solo_of(clients[0])
            self._solo.setdefault(first, before)
            others = [("small", ours)] if kind == "two_clients" else []
            found: list[tuple[str, int, _Window]] = []
            with self.clients(*others, ("small", {"GPUPOOL_VGPU": "b"})) as beside:
                for policy in policies:
                    for percent in percents:
                        self.set_shares(a=(percent, policy), b=(100 - percent, "elastic"))
                        time.sleep(2 * _RESIZED_S)
                        found.append((policy, percent, self._look([*clients, *beside])))
            self.set_shares(a=(50, "elastic"))
            after = self.solo_of(clients[0])
        if abs(after - before) > _STEADY * before:
            self.figures.remarks.append(
                f"{kind}: alone {before:.1f} pieces of work a second before, {after:.1f} after"
            )
        for policy, percent, window in found:
            most = min(2.0, percent / 2)
            self._add(
                Row(
                    f"{kind}, {policy}",
                    percent,
                    window.rate / ((before + after) / 2) * 100,
                    percent - most,
                    percent + most if policy == "hard" else 100.0,
                    window.neighbour / self.solo("small") * 100,
                    window.mhz / alone_mhz[0] if alone_mhz[0] else 1.0,
                    window.charged_percent,
                )
            )

    def _look(self, clients: Sequence[Client]) -> _Window:
        """One window; the last client is the neighbour of vGPU `a`."""
        before, begin_s = self.charged_s(), time.monotonic()
        with self._clock.watched() as mhz:
            *rate, neighbour = rates(clients, self.window_s)
        charged_s = self.charged_s().get("a", 0.0) - before.get("a", 0.0)
        took_s = time.monotonic() - begin_s
        return _Window(sum(rate), neighbour, mhz[0], charged_s / took_s * 100)

    def _add(self, row: Row) -> None:
        self.figures.rows.append(row)
        tell(f"{row.what} {row.quota} %: {row.achieved:.2f}")

    def alone(self) -> None:
        """A hard share without any neighbour."""
        solo = self.solo("small")
        self.set_shares(a=(25, "hard"))
        with self.clients(("small", {"GPUPOOL_VGPU": "a"})) as clients:
            (found,) = rates(clients, self.window_s)
        share = found / solo * 100
        self.figures.rows.append(Row("small, hard, alone", 25, share, 23, 27))

    def pair(self) -> None:
        """Two elastic tenants: how much of one's rate alone they have in sum."""
        solo = self.solo("small")
        self.set_shares(a=(50, "elastic"), b=(50, "elastic"))
        with self.clients(
            ("small", {"GPUPOOL_VGPU": "a"}), ("small", {"GPUPOOL_VGPU": "b"})
        ) as clients:
            found = rates(clients, self.window_s / 2)
        self.figures.others["two elastic tenants in sum, % of one"] = sum(found) / solo * 100

    def three(self) -> None:
        """Three tenants that want all they can get; then two of them change places."""
        solo = self.solo("small")
        self.set_shares(a=(50, "elastic"), b=(30, "elastic"), c=(20, "elastic"))
        names = ("a", "b", "c")
        with self.clients(*[("small", {"GPUPOOL_VGPU": name}) for name in names]) as clients:
            for quotas in ((50, 30, 20), (20, 30, 50)):
                wanted = dict(zip(names, quotas, strict=True))
                self.set_shares(**{name: (quota, "elastic") for name, quota in wanted.items()})
                time.sleep(_RESIZED_S)
                found = rates(clients, self.window_s / 2)
                for name, rate in zip(names, found, strict=True):
                    quota, share = wanted[name], rate / solo * 100
                    what = "small, elastic, one of 50/30/20" + (
                        "" if quotas[0] == 50 else ", a and c having changed places while they run"
                    )
                    self.figures.rows.append(Row(f"{what}: {name}", quota, share, quota - 2, 100))
        self.set_shares(c=(0, "elastic"))

    def eight(self) -> None:
        """Eight clients with and without shares."""
        solo = self.solo("small")
        for name, variables in (
            ("with 12 % each", {"GPUPOOL_COMPUTE_PERCENT": "12"}),
            ("without shares", dict[str, str]()),
        ):
            self.set_shares(a=(0, "elastic"), b=(0, "elastic"))
            with self.clients(*[("small", variables)] * 8) as clients:
                found = rates(clients, self.window_s / 2)
            self.figures.others[f"eight clients {name} in sum, % of one"] = sum(found) / solo * 100

    def latency(self) -> None:
        """Of a client with a fifth of the GPU's load."""
        self.set_shares(a=(50, "elastic"), b=(50, "elastic"))
        for what, light, busy in (
            ("alone", {}, None),
            ("beside a saturating one, no shares", {}, {}),
            ("beside a saturating one, 50/50", {"GPUPOOL_VGPU": "a"}, {"GPUPOOL_VGPU": "b"}),
        ):
            wanted: list[tuple[str, dict[str, str]]] = [("light", light)]
            if busy is not None:
                wanted.append(("small", busy))
            with self.clients(*wanted) as clients:
                clients[0].ask()
                waits: list[float] = []
                end = time.monotonic() + self.window_s + _ANSWER_S
                while len(waits) < _LEAST_WAITS and time.monotonic() < end:
                    time.sleep(self.window_s)
                    clients[0].ask()
                    waits = sorted([*waits, *clients[0].waits_us])
            if len(waits) < _LEAST_WAITS:
                self.figures.notes.append(f"latency {what}: too few pieces of work")
                continue
            self.figures.others[f"2 ms of work {what}, p50 us"] = statistics.median(waits)
            p99 = waits[min(len(waits) - 1, int(len(waits) * 0.99))]
            self.figures.others[f"2 ms of work {what}, p99 us"] = p99

    def resize(self) -> None:
        """The second after a resize, less its first 100 ms."""
        solo = self.solo("small")
        self.set_shares(a=(25, "hard"), b=(75, "elastic"))
        with self.clients(
            ("small", {"GPUPOOL_VGPU": "a"}), ("small", {"GPUPOOL_VGPU": "b"})
        ) as clients:
            self.set_shares(a=(60, "hard"), b=(40, "elastic"))
            time.sleep(_RESIZED_S)
            found = rates(clients[:1], 1.0)[0] / solo * 100
        self.figures.rows.append(Row("small, hard, second after a resize", 60, found, 57, 63))


def tell(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def measure(bench: Bench, arguments: argparse.Namespace) -> None:
    """Everything that was asked for; what cannot be measured becomes a note."""
    for kind in arguments.kinds.split(",") if arguments.kinds else ():
        try:
            bench.shares(
                kind,
                [int(each) for each in arguments.percents.split(",")],
                arguments.policies.split(","),
            )
        except HostError as error:
            bench.figures.notes.append(f"{kind}: {error}")
    for name in arguments.extras.split(",") if arguments.extras else ():
        try:
            getattr(bench, name)()
        except HostError as error:
            bench.figures.notes.append(f"{name}: {error}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `gpupool bench` has not got already."""
    parser.add_argument(
        "--window-s", type=float, default=10.0, metavar="S", help="default: %(default)s"
    )
    parser.add_argument(
        "--kinds", default=",".join(KINDS), metavar="K,...", help="default: %(default)s"
    )
    parser.add_argument(
        "--percents",
        default=",".join(map(str, PERCENTS)),
        metavar="P,...",
        help="quotas; default: %(default)s",
    )
    parser.add_argument(
        "--policies",
        default=",".join(POLICIES),
        metavar="P,...",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--extras", default=",".join(EXTRAS), metavar="E,...", help="default: %(default)s"
    )


def main() -> int:
    """`python -m bench.shares`: the same as `gpupool bench --shares`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.shares",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", default="auto", choices=("auto", "nvidia", "software"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    add_arguments(parser)
    return run(parser.parse_args())


def unknown(arguments: argparse.Namespace) -> str:
    """What of the lists there is not; empty: all is known."""
    for option, known in (("kinds", KINDS), ("policies", POLICIES), ("extras", EXTRAS)):
        said = [one for one in getattr(arguments, option).split(",") if one]
        if wrong := [one for one in said if one not in known]:
            return f"--{option} {','.join(wrong)}: there are {', '.join(known)}"
    if not all(one.isdigit() and 1 <= int(one) <= 99 for one in arguments.percents.split(",")):
        return f"--percents {arguments.percents}: allowed are numbers from 1 to 99"
    return ""


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables; 1 when a share was not kept or something could not be measured, 2 when it
    was asked for wrongly.
    """
    if problem := unknown(arguments):
        print(problem, file=sys.stderr)
        return 2
    os.environ.setdefault("GPUPOOL_BENCH_LOOPS", str(helper("libgpupool-bench-loops.so")))
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-bench-")))
        host = stack.enter_context(hostd(place / "hostd", arguments.gpu))
        steps = _calibrate(host)
        nvidia = arguments.gpu != "software" and Path("/dev/nvidiactl").exists()
        clock = SmClock(nvidia=nvidia)
        bench = Bench(host, clock, steps, arguments.window_s)
        measure(bench, arguments)
    if arguments.json:
        found = as_json(bench.figures) | {"window_s": arguments.window_s, "steps": steps}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(as_markdown(bench.figures))
    good = all(row.verdict != "**NOT**" for row in bench.figures.rows) and not bench.figures.notes
    return 0 if good else 1


def _calibrate(host: Host) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.bench.workloads.shares_client", "calibrate", "0"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=_ANSWER_S,
        env={**os.environ, **host.environment("shm")},
    )
    steps: int = json.loads(done.stdout)["steps"]
    return steps


if __name__ == "__main__":
    sys.exit(main())
