"""Sessions opened and closed again and again leave nothing: not on the host, not in a program."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpupool.hostd.adapters.cgroups import own_group
from tests.conftest import Host
from tests.e2e.observe import stat_fields

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10
WARM_UP = 10  # sessions after which caches have their size
MOST_GROWTH_KIB = 3072  # of hostd: what a leak of 3 KiB a session would be after a thousand

# Forks a child for each session: loading Python a thousand times would measure Python. Every other
# child leaves without ending anything. Prints the device's free memory in the first and the last.
SESSIONS = """
import ctypes, os, sys
from ctypes import byref, c_size_t, c_uint64, c_void_p
lib = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(lib, name)(*arguments)
    assert code == 0, (name, code)
def session(number, tell):
    context, memory, pinned = c_void_p(), c_uint64(), c_void_p()
    free, total = c_size_t(), c_size_t()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuMemGetInfo_v2", byref(free), byref(total))
    call("cuMemAlloc_v2", byref(memory), c_size_t(1 << 20))
    call("cuMemAllocHost_v2", byref(pinned), c_size_t(1 << 20))
    call("cuMemcpyHtoD_v2", memory, pinned, c_size_t(1 << 20))
    if number % 2:
        call("cuMemFree_v2", memory)
        call("cuMemFreeHost", pinned)
    if tell:
        print(free.value >> 20, flush=True)
count = int(sys.argv[1])
for number in range(count):
    child = os.fork()
    if child == 0:
        session(number, number in (0, count - 1))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, number
"""

# A program whose cuInit is refused keeps nothing of it.
REFUSALS = """
import ctypes, os, sys
lib = ctypes.CDLL("libcuda.so.1")
def held():
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), len(maps.readlines())
for number in range(int(sys.argv[1])):
    assert lib.cuInit(0) != 0
    if number == 9:
        before = held()
after = held()
assert after[0] == before[0], (before, after)
assert after[1] <= before[1] + 2, (before, after)  # the heap may have been split meanwhile
print("nothing")
"""


def is_empty(group: Path) -> bool:
    """Whether a cgroup is left over. One that is just being removed, by any hostd here, is not."""
    try:
        return (group / "cgroup.procs").read_text() == ""
    except OSError:
        return False


def held_by(host: Host) -> Counter[str]:
    """What hostd and its sessions have of this machine."""
    assert host.process is not None
    pid = host.process.pid
    processes = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    children = [each for each in processes if (stat_fields(each) or "00")[1] == str(pid)]
    group = own_group()
    groups = list(group.glob("gpupool-*")) if group is not None else []
    mine = [each for each in groups if is_empty(each)]
    return Counter(
        {
            "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
            "processes and zombies": len(children),
            "shared memory": len(list(Path("/dev/shm").iterdir())),  # noqa: S108 (looked at)
            "session records": len(list((host.folder / "state" / "sessions").iterdir())),
            "files": sum(1 for _ in host.folder.rglob("*")),
            "empty cgroups": len(mine),
        }
    )


def resident_kib(host: Host) -> int:
    """hostd's memory."""
    assert host.process is not None
    words = Path(f"/proc/{host.process.pid}/statm").read_text().split()
    return int(words[1]) * PAGE_KIB


def open_and_close(host: Host, transport: str, count: int) -> list[int]:
    """That many sessions; free device memory in the first and the last, MiB."""
    text = [sys.executable, "-c", SESSIONS, str(count)]
    done = host.run(transport, *text, timeout_s=60 + 3 * count)
    assert done.returncode == 0, f"{done.stderr}\n{host.log[-3000:]}"
    host.wait_until(lambda: not host.sessions(), "all sessions to end")
    return [int(word) for word in done.stdout.split()]


def check(host: Host, transport: str, count: int) -> None:
    """Compares before and after."""
    open_and_close(host, transport, WARM_UP)
    before, memory = held_by(host), resident_kib(host)
    free = open_and_close(host, transport, count)
    assert abs(free[0] - free[1]) < 64
    more = {
        name: value - before[name]
        for name, value in held_by(host).items()
        # Others on this machine use these too; a leak of ours is one for each session.
        if value - before[name] > (10 if name in ("shared memory", "empty cgroups") else 0)
    }
    assert not more
    assert resident_kib(host) - memory < MOST_GROWTH_KIB


def test_fifty_sessions_leave_nothing(own_host: Host, transport: str) -> None:
    check(own_host, transport, 50)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_a_thousand_sessions_leave_nothing(own_host: Host, transport: str) -> None:
    check(own_host, transport, 1000)


def test_refused_sessions_leave_nothing_in_the_program(own_host: Host, transport: str) -> None:
    own_host.stop()  # nobody listens
    done = own_host.run(transport, sys.executable, "-c", REFUSALS, "200", timeout_s=120)
    assert done.stdout == "nothing\n", done.stderr[-3000:]
