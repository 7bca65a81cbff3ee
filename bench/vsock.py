"""What gpupool-vsock costs: a round trip and throughput of a guest's connection against a plain
unix socket to the same service, in turns.

    python -m bench.vsock [--rounds 20]

The guest is no VM but a process that does what QEMU and a guest's driver do
(bench/native/vsock_front.hpp): rings of 128 entries, buffers of 4 KiB and packets of 64 KiB as
Linux 6.1 has them, asleep until it is called. A real guest adds its own exits and interrupts to
that. Prints medians and the best of the rounds; docs/performance.md has figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpupool.bench.host import HostError, helper
from gpupool.hostd.adapters import native_files

CID = 42
WAYS = ("plain", "relay")
_TIMEOUT_S = 300.0
_START_TIMEOUT_S = 10.0

Round = dict[str, dict[str, float]]


@contextlib.contextmanager
def relay(folder: Path) -> Iterator[None]:
    """gpupool-vsock for a VM's folder, in the sandbox that hostd gives it."""
    program = native_files.locate().root / "libexec" / "gpupool-vsock"
    if not program.is_file():
        raise HostError(f"{program} was not found; build everything: ./run build")
    words = ["--sandbox-calls", "yes", "--log-json", "no", "--log-priorities", "no"]
    process = subprocess.Popen(  # noqa: S603 (our own program)
        [str(program), "--folder", str(folder), "--cid", str(CID), *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end_s = time.monotonic() + _START_TIMEOUT_S
        while not (folder / "vhost").exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise HostError(f"gpupool-vsock does not start (exit code {process.poll()})")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(_START_TIMEOUT_S)


def measure(rounds: int) -> list[Round]:
    """What each round found: way -> round_trip_us, up_gb_s, down_gb_s."""
    guest = helper("gpupool-bench-vsock-guest")
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as name, relay(Path(name)):
        done = subprocess.run(  # noqa: S603 (our own program)
            [str(guest), name, str(CID), str(rounds)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    found: list[Round] = json.loads(done.stdout)
    return found


def main() -> None:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = measure(parser.parse_args().rounds)
    print(f"{len(rounds)} rounds, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for figure, best in (("round_trip_us", min), ("up_gb_s", max), ("down_gb_s", max)):
        middle = {way: statistics.median(one[way][figure] for one in rounds) for way in WAYS}
        top = {way: best(one[way][figure] for one in rounds) for way in WAYS}
        ratio = statistics.median(one["relay"][figure] / one["plain"][figure] for one in rounds)
        print(
            f"{figure:>14}: plain {middle['plain']:8.2f}  relay {middle['relay']:8.2f}"
            f"  median ratio {ratio:.2f}; best: plain {top['plain']:.2f}  relay {top['relay']:.2f}"
        )


if __name__ == "__main__":
    main()
