"""vGPUs from the program's side: one that waits for room, one resized while it runs, one whose
hostd is killed, and where they are put.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.hostd.adapters import quota_page
from tests.conftest import Host, end_host, make_host
from tests.e2e.observe import ADD_ONCE, STEPPER, only_session, step, wait_for_line
from tests.e2e.test_ahead import waiting

# How many GPUs it has, and which. Its child has the same.
DEVICES = """
import ctypes, subprocess, sys
from tests.guest.cuda import Driver
driver = Driver()
count, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
driver.call("cuDeviceGetCount", ctypes.byref(count))
driver.call("cuDeviceGetUuid_v2", uuid, ctypes.c_int(0))
print(count.value, bytes(uuid).hex(), flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


class Clients:
    """Programs on one hostd, all ended with the test."""

    def __init__(self, host: Host, transport: str) -> None:
        self.host = host
        self.transport = transport
        self._all: list[subprocess.Popen[str]] = []

    def launch(self, text: str = STEPPER, **variables: str) -> subprocess.Popen[str]:
        """Starts one."""
        one = self.host.start_client(self.transport, sys.executable, "-c", text, **variables)
        self._all.append(one)
        return one

    def running(self, **variables: str) -> subprocess.Popen[str]:
        """One that has its vGPU and answers."""
        one = self.launch(**variables)
        wait_for_line(one, "running")
        assert step(one) == "1"
        return one

    def end(self) -> None:
        """All of them."""
        for one in self._all:
            if one.poll() is None:
                one.kill()
            with contextlib.suppress(ValueError):  # was waited for
                one.communicate(timeout=60)

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """Asks the admin socket."""
        return admin.call(self.host.folder / "admin.sock", method, **more)

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """Who waits for room."""
        found: list[dict[str, Any]] = self.call("vgpu_list")["waiting"]
        return found

    def until_waiting(self, count: int) -> None:
        """So many wait."""
        self.host.wait_until(lambda: len(self.waiting) == count, f"{count} clients to wait")

    def rows(self) -> dict[int, tuple[int, int, int]]:
        """Share, memory and policy of each vGPU, as the quota pages say."""
        pages = [
            quota_page.Page.from_buffer_copy(path.read_bytes())
            for path in (self.host.folder / "state" / "gpus").glob("*/quota")
        ]
        rows = [row for page in pages for row in page.vgpu if row.id]
        return {row.id: (row.compute_percent, row.memory_bytes >> 20, row.policy) for row in rows}


@pytest.fixture
def clients(own_host: Host, transport: str) -> Iterator[Clients]:
    one = Clients(own_host, transport)
    yield one
    one.end()


def test_a_client_waits_for_room_and_says_so_once(clients: Clients) -> None:
    holder = clients.running(GPUPOOL_COMPUTE_PERCENT="60")
    waits = clients.launch(ADD_ONCE, GPUPOOL_COMPUTE_PERCENT="50", GPUPOOL_WAIT_S="100")
    clients.until_waiting(1)
    assert step(holder) == "2"  # goes on
    clients.running()  # who asks for nothing does not wait
    assert waits.poll() is None
    holder.communicate(timeout=60)
    said, errors = waits.communicate(timeout=60)
    assert (waits.returncode, said) == (0, "1\n"), errors
    lines = [line for line in errors.splitlines() if "waiting for room" in line]
    assert len(lines) == 1, errors
    assert "for up to 100 s: place 1 of 1" in lines[0]
    assert clients.waiting == []


def test_a_client_that_would_not_wait_is_told_what_is_left(clients: Clients) -> None:
    clients.running(GPUPOOL_COMPUTE_PERCENT="60")
    refused = clients.launch(ADD_ONCE, GPUPOOL_COMPUTE_PERCENT="50")
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode != 0
    assert "50% compute was asked for; left is GPU-" in errors
    assert ": 40% and " in errors


def test_a_client_that_is_killed_while_it_waits_leaves_nothing(clients: Clients) -> None:
    holder = clients.running(GPUPOOL_COMPUTE_PERCENT="100")
    waits = [
        clients.launch(ADD_ONCE, GPUPOOL_COMPUTE_PERCENT="80", GPUPOOL_WAIT_S="100")
        for _ in range(2)
    ]
    clients.until_waiting(2)
    first = next(one for one in waits if one.pid == clients.waiting[0]["pid"])
    first.kill()
    clients.until_waiting(1)
    holder.communicate(timeout=60)
    other = next(one for one in waits if one is not first)
    said, errors = other.communicate(timeout=60)
    assert (other.returncode, said) == (0, "1\n"), errors
    clients.host.wait_until(lambda: clients.rows() == {}, "all rows to be free")


def test_an_on_demand_vgpu_is_there_while_it_is_used(clients: Clients) -> None:
    clients.call("vgpu_create", name="trainer", compute_percent=70, memory_mib=64)
    assert clients.rows() == {}
    one = clients.running(GPUPOOL_VGPU="trainer")
    two = clients.running(GPUPOOL_VGPU="trainer")
    assert clients.rows() == {1: (70, 64, 0)}
    shown = clients.call("vgpu_show", vgpu="trainer")["vgpu"]
    assert shown["sessions"] == [session["id"] for session in clients.host.sessions()]
    assert shown["used_mib"] >= 1
    for each in (one, two):
        each.communicate(timeout=60)
    clients.host.wait_until(lambda: clients.rows() == {}, "its row to be free")


def test_a_resize_restarts_nothing(clients: Clients) -> None:
    clients.call("vgpu_create", name="trainer", compute_percent=20, memory_mib=64)
    client = clients.running(GPUPOOL_VGPU="trainer")
    worker = only_session(clients.host)["worker_pid"]
    clients.call("vgpu_resize", vgpu="trainer", compute_percent=90, policy="hard", memory_mib=128)
    assert clients.rows() == {1: (90, 128, 1)}
    assert step(client) == "2"
    session = only_session(clients.host)
    assert session["worker_pid"] == worker
    assert (session["compute_percent"], session["policy"]) == (90, "hard")
    with pytest.raises(admin.AdminError, match="ask for 0 to 100"):
        clients.call("vgpu_resize", vgpu="trainer", compute_percent=101)
    assert clients.rows() == {1: (90, 128, 1)}


def test_a_killed_hostd_finds_all_again(clients: Clients) -> None:
    clients.call("vgpu_create", name="kept", compute_percent=30, mode="reserved")
    named = clients.running(GPUPOOL_VGPU="kept")
    own = clients.running(GPUPOOL_COMPUTE_PERCENT="40", GPUPOOL_MEMORY_MIB="64")
    before, rows = clients.call("vgpu_list")["vgpus"], clients.rows()
    assert clients.host.process is not None
    clients.host.process.kill()
    clients.host.process.wait(timeout=20)
    assert step(named) == "2"  # nobody needs hostd to compute
    clients.host.start()
    after = clients.call("vgpu_list")
    assert [one["id"] for one in after["vgpus"]] == [one["id"] for one in before]
    assert clients.rows() == rows
    assert after["gpus"][0]["left_percent"] == 30
    assert (step(named), step(own)) == ("3", "2")
    own.communicate(timeout=60)
    clients.host.wait_until(lambda: clients.rows() == {1: (30, 0, 0)}, "its row to be free")
    named.communicate(timeout=60)
    assert clients.rows() == {1: (30, 0, 0)}


@pytest.fixture
def pair(transport: str) -> Iterator[Clients]:
    """A hostd with two software GPUs."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), gpu="software", devices=2, memory_mib=256, threads=2)
        one = Clients(host, transport)
        yield one
        one.end()
        end_host(host)


def devices(clients: Clients, **variables: Any) -> list[str]:
    """What a program and its child say of their GPUs."""
    path = clients.host.folder / "devices.py"
    path.write_text(DEVICES)
    done = clients.host.run(clients.transport, sys.executable, str(path), **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.softgpu
def test_who_asks_is_on_the_gpu_with_room(pair: Clients) -> None:
    both = devices(pair)
    assert [line.split()[0] for line in both] == ["2", "2"]
    pair.host.wait_until(lambda: len(waiting(pair.host)) == 2, "workers to wait")
    before = set(waiting(pair.host))
    pair.running(GPUPOOL_COMPUTE_PERCENT="60")
    assert set(waiting(pair.host)) == before  # they have both GPUs, for who asks for nothing
    taken = only_session(pair.host)["devices"]
    found = devices(pair, GPUPOOL_COMPUTE_PERCENT="60", GPUPOOL_VGPU="~program")
    assert [line.split()[0] for line in found] == ["1", "1"]
    assert found[0] == found[1]  # one vGPU for both processes: two would not fit
    assert found[0].split()[1] not in [uuid.removeprefix("GPU-").replace("-", "") for uuid in taken]


# How much memory each of its devices has, what is left where all of it was taken, and a kernel's
# work on each.
MEMORY = """
import ctypes
from tests.guest.cuda import Driver
driver = Driver()
count = ctypes.c_int()
driver.call("cuDeviceGetCount", ctypes.byref(count))
for number in range(count.value):
    total, left, context = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(total), ctypes.c_int(number))
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(number))
    driver.call("cuCtxSetCurrent", context)
    pointer = ctypes.c_uint64()
    driver.call("cuMemAlloc_v2", ctypes.byref(pointer), total)
    driver.call("cuMemGetInfo_v2", ctypes.byref(left), ctypes.byref(ctypes.c_size_t()))
    driver.call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(7), ctypes.c_size_t(1 << 20))
    byte = ctypes.c_ubyte()
    driver.call("cuMemcpyDtoH_v2", ctypes.byref(byte), pointer, ctypes.c_size_t(1))
    print(total.value >> 20, left.value >> 20, byte.value, flush=True)
"""


@pytest.mark.softgpu
def test_a_program_has_two_vgpus_on_two_gpus(pair: Clients) -> None:
    """Each with its own memory and share; both are the neighbours' again when it has ended."""
    pair.call("vgpu_create", name="large", compute_percent=60, memory_mib=96)
    pair.call("vgpu_create", name="small", compute_percent=20, memory_mib=32)
    done = pair.host.run(pair.transport, sys.executable, "-c", MEMORY, GPUPOOL_VGPU="large,small")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["32 0 7", "96 0 7"]
    client = pair.running(GPUPOOL_VGPU="large,small")
    assert len(only_session(pair.host)["devices"]) == 2
    alone = pair.running(GPUPOOL_VGPU="small")
    for one in (client, alone):
        one.communicate(timeout=60)
    pair.host.wait_until(lambda: pair.rows() == {}, "nothing to be held")
