"""What the workers' sandbox costs: session start and launches with it and without, interleaved.

    python -m bench.sandbox [--gpu nvidia] [--rounds 20]

Starts two hostds of its own, one with `sandbox.mode = "auto"` and one with "off", and runs one
short client process a round on each. Prints medians; docs/security.md has figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpupool.bench.host import hostd

MODES = ("off", "auto")
_CLIENT_TIMEOUT_S = 120

# Prints milliseconds of cuInit (which opens the session), of the first context, and nanoseconds of
# one launch when 8192 are in flight at most, and of a launch that is waited for.
CLIENT = r"""
import ctypes, json, time
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    assert code == 0, (name, code)
start = time.perf_counter()
call("cuInit", 0)
ready = time.perf_counter()
context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
opened = time.perf_counter()
call("cuCtxSetCurrent", context)
text = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry empty() { ret; }\n\0"
call("cuModuleLoadData", ctypes.byref(module), text)
call("cuModuleGetFunction", ctypes.byref(function), module, b"empty")
launch, wait = cuda.cuLaunchKernel, cuda.cuCtxSynchronize
arguments = (function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
for _ in range(200):
    launch(*arguments)
wait()
count = 20000
begin = time.perf_counter()
for _ in range(count):
    launch(*arguments)
wait()
launched = time.perf_counter()
for _ in range(500):
    launch(*arguments)
    wait()
waited = time.perf_counter()
print(json.dumps({
    "cuInit, ms": (ready - start) * 1e3,
    "first context, ms": (opened - ready) * 1e3,
    "launch, us": (launched - begin) / count * 1e6,
    "launch and wait, us": (waited - launched) / 500 * 1e6,
}))
"""


def client(variables: dict[str, str]) -> dict[str, float]:
    """One client process; its figures."""
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", CLIENT],
        stdout=subprocess.PIPE,
        check=True,
        timeout=_CLIENT_TIMEOUT_S,
        env={**os.environ, **variables},
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.sandbox",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", default="auto", choices=("auto", "nvidia", "software"))
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    arguments = parser.parse_args()
    samples: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-bench-")))
        surroundings = {
            mode: stack.enter_context(
                hostd(place / mode, arguments.gpu, [f'sandbox.mode = "{mode}"'])
            ).environment("shm")
            for mode in MODES
        }
        for number in range(arguments.rounds):
            # In turn the first: what a round leaves behind favours nobody.
            for mode in MODES if number % 2 else reversed(MODES):
                for name, value in client(surroundings[mode]).items():
                    samples[mode].setdefault(name, []).append(value)
                time.sleep(0.05)  # the worker before ends meanwhile
    print(f"| median of {arguments.rounds} | without | with | more |\n|---|---|---|---|")
    for name in samples["off"]:
        without, within = (statistics.median(samples[mode][name]) for mode in MODES)
        print(f"| {name} | {without:.2f} | {within:.2f} | {within - without:+.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
