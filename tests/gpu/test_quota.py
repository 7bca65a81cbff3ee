"""Memory quotas on an NVIDIA GPU: small ones are of use, PyTorch meets its end where it should, and
what the card really holds stays near what is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, Host
from tests.guest.test_quota import PROGRAM

pytestmark = pytest.mark.gpu

MIB = 1 << 20

# Blocks of 64 MiB until there is no more, with PyTorch's cache as it is. Then a quarter stays free
# for code: a kernel's is loaded when it is first used, and without memory for it the launch fails,
# as on a card.
TORCH = """
import json, sys, torch
told = {}
def note(what, value):
    told[what] = value
    print(what, value / 2**20 if isinstance(value, int) else value, file=sys.stderr)
room = lambda: torch.cuda.mem_get_info()[0]
free, total = torch.cuda.mem_get_info()
note("free", free)
note("total", total)
note("device_total", torch.cuda.get_device_properties(0).total_memory)
held = []
try:
    while len(held) < 1000:
        held.append(torch.empty(64 << 20, dtype=torch.uint8, device="cuda"))
except torch.cuda.OutOfMemoryError as error:
    note("said", str(error))
told["count"] = len(held)
note("left", room())
del held[:16]
torch.cuda.empty_cache()
note("emptied", room())
again = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
note("taken", room())
again.fill_(3)
note("filled", room())
matrix = torch.ones(64, 64, device="cuda")
told["product"] = float((matrix @ matrix)[0, 0])
note("multiplied", room())
told["sum"] = int(again[::1 << 20].sum())
note("summed", room())
print(json.dumps(told))
"""

# Pools that keep what they had, one after the other; each could hold the whole quota.
GREEDY = """
import sys
most = c_uint64(2**64 - 1)
for _ in range(16):
    one = c_void_p()
    ok(driver.cuMemPoolCreate(byref(one), byref(pool_props)))
    ok(driver.cuMemPoolSetAttribute(one, 4, byref(most)))  # the release threshold
    pools.append(one)
got = 0
for one in pools:
    address = c_uint64()
    result = driver.cuMemAllocFromPoolAsync(byref(address), c_size_t(48 * MIB), one, None)
    got += result == 0
    if result == 0:
        ok(driver.cuMemFreeAsync(address, None))
    else:
        print(got, result, state(), file=sys.stderr)
    ok(driver.cuStreamSynchronize(None))
    room()
print(got, flush=True)
sys.stdin.read()
"""


def card_used_bytes() -> int:
    """What the card's driver says is in use, by everybody."""
    text = (
        "import pynvml as n; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); "
        "print(n.nvmlDeviceGetMemoryInfo(h).used)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


def test_a_small_quota_is_of_use(nvidia_host: Host) -> None:
    """64 MiB, though a context takes several hundred."""
    del nvidia_host  # for its skip
    text = PROGRAM + "same(info(), (64 * MIB, 64 * MIB)); same(plain(64 * MIB)[0], 0); print('ok')"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpupool.cli", "run", "--memory", "64", "--"),
            *(sys.executable, "-c", text),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.stdout.strip() == "ok", done.stdout + done.stderr


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_pytorch_ends_at_its_quota(
    nvidia_host: Host, framework_python: str, transport: str
) -> None:
    done = nvidia_host.run(
        transport, framework_python, "-c", TORCH, timeout_s=300, GPUPOOL_MEMORY_MIB="2048"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(done.stderr)
    assert told["total"] == told["device_total"] == 2048 * MIB
    # Code images are all that a fresh PyTorch has.
    assert 1984 * MIB <= told["free"] <= 2048 * MIB
    assert told["count"] == told["free"] // (64 * MIB)
    assert told["left"] < 64 * MIB
    assert told["emptied"] == told["left"] + 1024 * MIB
    # What these kernels' code takes is charged, and is some tens of MiB.
    assert told["summed"] < told["filled"] <= told["emptied"] - 512 * MIB
    assert told["sum"] == 3 * 512
    assert told["product"] == 64.0
    assert "2.00 GiB" in told["said"]


def test_pools_cannot_hold_more_than_the_quota(nvidia_host: Host) -> None:
    """Whatever their release threshold: above the quota there are 32 MiB and the context."""
    plain = nvidia_host.start_client(
        "shm",
        sys.executable,
        "-c",
        PROGRAM + "print(0, flush=True); import sys; sys.stdin.read()",
        GPUPOOL_MEMORY_MIB="64",
    )
    assert plain.stdout is not None
    assert plain.stdout.readline().strip() == "0"
    with_context = card_used_bytes()
    plain.communicate(timeout=60)
    greedy = nvidia_host.start_client(
        "shm", sys.executable, "-c", PROGRAM + GREEDY, GPUPOOL_MEMORY_MIB="64"
    )
    assert greedy.stdout is not None
    first = greedy.stdout.readline().strip()
    held = card_used_bytes() - with_context
    _, errors = greedy.communicate(timeout=60)
    assert first == "16", errors  # all of them had their turn
    assert held <= (64 + 32 + 8) * MIB, held // MIB


def test_the_same_ways_as_on_the_software_gpu(nvidia_host: Host) -> None:
    """All of tests/guest/test_quota.py, on the card."""
    del nvidia_host  # for its skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "tests/guest/test_quota.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
        env=dict(os.environ, GPUPOOL_TEST_GPU="nvidia"),
    )
    # hostd's log is not what one needs here, and it is long.
    told = [line for line in done.stdout.splitlines() if "level=" not in line]
    assert done.returncode == 0, "\n".join(told)[-20000:] + done.stderr[-2000:]
