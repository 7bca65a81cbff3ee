"""A GPU leaves the pool and comes back while programs run: real sessions on two software GPUs.

A software GPU has no card to give away: its CDI device is a name only. All else is as on a card.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from tests.conftest import Host, end_host, make_host
from tests.e2e.observe import gone
from tests.e2e.test_ahead import waiting

pytestmark = pytest.mark.softgpu

# Says how many GPUs it has, then counts on its first one until its stdin ends.
PROGRAM = """
import ctypes, select, sys
from tests.e2e.client import *
counter = Counter()
count = ctypes.c_int()
assert counter.driver.lib.cuDeviceGetCount(ctypes.byref(count)) == 0
print(count.value, flush=True)
rounds = 0
while rounds == 0 or not select.select([sys.stdin], [], [], 0.02)[0]:
    assert counter.add() == 0
    rounds += 1
    assert counter.value() == rounds, counter.value()
print("well", flush=True)
"""


@pytest.fixture
def pair() -> Iterator[Host]:
    """A hostd with two software GPUs."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        folder = Path(name)
        more = f'[pool]\ncdi_dir = "{folder}/cdi"\n'
        one = make_host(folder, gpu="software", more=more, devices=2, memory_mib=256, threads=2)
        yield one
        if one.process is not None and one.process.poll() is None:
            end_host(one)


def call(host: Host, method: str, **arguments: Any) -> dict[str, Any]:
    """Asks its admin socket."""
    return admin.call(host.folder / "admin.sock", method, **arguments)


def gpus(host: Host) -> list[dict[str, Any]]:
    """What `gpu_list` says."""
    found: list[dict[str, Any]] = call(host, "gpu_list")["gpus"]
    return found


def switch(host: Host, uuid: str, pool: str, **more: Any) -> dict[str, Any]:
    """`gpupool gpu pool`: the operation as it began."""
    begun: dict[str, Any] = call(host, "gpu_pool", uuid=uuid, pool=pool, **more)["operation"]
    return begun


def operation(host: Host, number: int) -> dict[str, Any]:
    """As it is now."""
    found: dict[str, Any] = call(host, "operation_show", operation=number)["operation"]
    return found


def wait_for_end(host: Host, begun: dict[str, Any]) -> dict[str, Any]:
    """An operation that has ended."""
    host.wait_until(lambda: operation(host, begun["id"])["ended"], "the operation to end")
    return operation(host, begun["id"])


def start(host: Host, transport: str) -> tuple[subprocess.Popen[str], int]:
    """A program that uses its vGPUs, and how many it has."""
    client = host.start_client(transport, sys.executable, "-c", PROGRAM)
    assert client.stdout is not None
    line = client.stdout.readline()
    assert line.strip().isdigit(), (line, client.communicate(timeout=30))
    return client, int(line)


def finish(client: subprocess.Popen[str]) -> None:
    """It ends by itself, and well."""
    output, errors = client.communicate("x\n", timeout=60)
    assert (client.returncode, output) == (0, "well\n"), errors


def specification(host: Host, uuid: str) -> Path:
    """The file of its CDI device."""
    return host.folder / "cdi" / f"gpupool.dev-gpu_{uuid}.json"


def test_a_second_gpu_goes_native_and_back_under_load(pair: Host, transport: str) -> None:
    first, second = (one["uuid"] for one in gpus(pair))
    old, count = start(pair, transport)
    assert count == 2
    begun = switch(pair, second, "native")
    pair.wait_until(
        lambda: "waits for session" in operation(pair, begun["id"])["progress"], "the wait"
    )
    assert gpus(pair)[1]["state"] == "draining"
    new, count = start(pair, transport)  # has the others
    assert count == 1
    assert operation(pair, begun["id"])["state"] == "running"
    finish(old)
    ended = wait_for_end(pair, begun)
    assert (ended["state"], ended["percent"]) == ("succeeded", 100)
    shown = gpus(pair)[1]
    assert (shown["pool"], shown["state"], shown["sessions"]) == ("native", "native", [])
    assert shown["cdi"] == f"gpupool.dev/gpu={second}"
    content = json.loads(specification(pair, second).read_text())
    assert content["devices"][0]["name"] == second
    assert [session["devices"] for session in pair.sessions()] == [[first]]
    back = wait_for_end(pair, switch(pair, second, "pooled"))
    assert back["state"] == "succeeded"
    assert not specification(pair, second).exists()
    third, count = start(pair, transport)
    assert count == 2
    finish(third)
    finish(new)


def test_a_drain_that_is_cancelled(pair: Host, transport: str) -> None:
    uuid = gpus(pair)[0]["uuid"]
    client, _ = start(pair, transport)
    begun = switch(pair, uuid, "native", deadline_s=3600)
    cancelled = call(pair, "operation_cancel", operation=begun["id"])["operation"]
    assert cancelled["state"] == "cancelled"
    assert {one["state"] for one in gpus(pair)} == {"pooled"}
    other, count = start(pair, transport)
    assert count == 2
    finish(other)
    finish(client)


def test_the_deadline_ends_only_the_sessions_on_that_gpu(pair: Host, transport: str) -> None:
    first, second = (one["uuid"] for one in gpus(pair))
    both, _ = start(pair, transport)
    worker = pair.sessions()[0]["worker_pid"]
    begun = switch(pair, second, "native", deadline_s=1)
    alone, count = start(pair, transport)
    assert count == 1
    assert wait_for_end(pair, begun)["state"] == "succeeded"
    assert gone(worker)
    # Its next launch fails. Told to end now it might do so before that.
    code = both.wait(timeout=60)
    output, errors = both.communicate(timeout=60)
    assert code != 0, (output, errors)
    assert [one["devices"] for one in pair.sessions()] == [[first]]
    finish(alone)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_hostd_restarts_while_it_drains_and_while_it_is_native(pair: Host, kill: bool) -> None:
    def restart() -> None:
        assert pair.process is not None
        if kill:
            pair.process.kill()
            pair.process.wait()
        else:
            pair.stop()
        pair.start()

    _, second = (one["uuid"] for one in gpus(pair))
    client, _ = start(pair, "shm")
    begun = switch(pair, second, "native")
    restart()
    assert operation(pair, begun["id"])["state"] == "running"
    assert gpus(pair)[1]["state"] == "draining"
    finish(client)
    assert wait_for_end(pair, begun)["state"] == "succeeded"
    specification(pair, second).unlink()
    restart()
    assert gpus(pair)[1]["state"] == "native"
    pair.wait_until(specification(pair, second).exists, "the CDI device to be there again")
    new, count = start(pair, "shm")
    assert count == 1
    finish(new)
    assert wait_for_end(pair, switch(pair, second, "pooled"))["state"] == "succeeded"


def test_hostd_is_killed_at_any_moment_of_a_switch(pair: Host) -> None:
    """Real processes and files; tests/hostd/test_pool_crashes.py does it at every single call."""
    first, second = (one["uuid"] for one in gpus(pair))
    other, _ = start(pair, "shm")  # on both; its sessions end by the deadline, the next one's go on
    wait_for_end(pair, switch(pair, second, "native", deadline_s=0))
    other.communicate(timeout=60)
    steady, count = start(pair, "shm")
    assert count == 1
    goal = "native"
    for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        goal = "pooled" if goal == "native" else "native"
        switch(pair, second, goal)
        time.sleep(delay_s)
        assert pair.process is not None
        pair.process.kill()
        pair.process.wait()
        pair.start()
        pair.wait_until(lambda: gpus(pair)[1]["state"] == goal, f"it to be {goal}")  # noqa: B023
        assert specification(pair, second).exists() is (goal == "native")
        assert not [one for one in call(pair, "operation_list")["operations"] if not one["ended"]]
    assert [one["devices"] for one in pair.sessions()] == [[first]]
    finish(steady)


def command_lines(word: str) -> list[bytes]:
    """Of processes that have this word in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue  # it has ended
    return [line for line in found if word.encode() in line]


def test_its_arbiter_ends(pair: Host) -> None:
    if not (pair.native / "libexec" / "gpupool-arbiter").exists():
        pytest.skip("gpupool-arbiter is not built: run ./run build")
    folders = {one["uuid"]: f"{pair.folder}/state/gpus/{one['uuid']}" for one in gpus(pair)}
    client = pair.start_client("shm", sys.executable, "-c", PROGRAM, GPUPOOL_COMPUTE_PERCENT="25")
    assert client.stdout is not None
    client.stdout.readline()

    def arbiters() -> list[str]:
        return [uuid for uuid, folder in folders.items() if command_lines(folder)]

    pair.wait_until(lambda: len(arbiters()) == 1, "an arbiter, of the GPU that has the share")
    (uuid,) = arbiters()
    folder = folders[uuid]
    begun = switch(pair, uuid, "native")
    finish(client)
    assert wait_for_end(pair, begun)["state"] == "succeeded"
    assert not command_lines(folder)


def test_no_worker_that_waits_has_it(pair: Host) -> None:
    _, second = (one["uuid"] for one in gpus(pair))
    client, _ = start(pair, "shm")
    finish(client)
    pair.wait_until(lambda: call(pair, "status")["workers_waiting"] > 0, "workers to wait")
    begun = switch(pair, second, "native")
    assert wait_for_end(pair, begun)["state"] == "succeeded"
    deadline_s = time.monotonic() + 3  # longer than a new session's workers are held back
    while time.monotonic() < deadline_s:
        mine = [f"/proc/{pid}/cmdline" for pid in waiting(pair)]
        assert not [path for path in mine if second in Path(path).read_text()]
        time.sleep(0.2)


def test_refusals_say_why(pair: Host) -> None:
    uuid = gpus(pair)[0]["uuid"]
    for arguments, text in (
        ({"uuid": "GPU-x", "pool": "native"}, "there is no GPU GPU-x"),
        ({"uuid": uuid, "pool": "native", "kind": "vfio"}, "is a software GPU"),
        ({"uuid": uuid, "pool": "nonsense"}, 'pool: "native" or "pooled"'),
        ({"uuid": uuid, "pool": "native", "kind": "x"}, 'kind is "container" or "vfio"'),
        ({"uuid": uuid, "pool": "native", "deadline_s": -1}, "deadline_s is a whole number"),
        ({"uuid": uuid, "pool": "native", "force": 1}, "force is true or false"),
    ):
        with pytest.raises(admin.AdminError, match=text):
            call(pair, "gpu_pool", **arguments)
    for method in ("operation_show", "operation_cancel"):
        with pytest.raises(admin.AdminError, match="there is no operation 7"):
            call(pair, method, operation=7)
        with pytest.raises(admin.AdminError, match="named by its number"):
            call(pair, method)
    (pair.folder / "cdi").write_text("in the way")
    ended = wait_for_end(pair, switch(pair, uuid, "native"))
    assert ended["state"] == "failed"
    assert "pool.cdi_dir must be a folder" in ended["error"]
    (pair.folder / "cdi").unlink()
    pair.wait_until(lambda: gpus(pair)[0]["state"] == "pooled", "it to be pooled again")
    assert wait_for_end(pair, switch(pair, uuid, "native"))["state"] == "succeeded"


def test_the_command_line(pair: Host) -> None:
    uuid = gpus(pair)[1]["uuid"]
    done = pair.command("gpu", "pool", uuid, "native", "--deadline", "10s", check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(pair.command("operation", "list", "--json").stdout)["operations"]
    assert [one["state"] for one in shown] == ["succeeded"]
    done = pair.command("gpu", "pool", uuid, "native", "--for", "vfio", check=False)
    assert done.returncode == 3
    assert "bring it back to the pool first" in done.stderr
    done = pair.command("gpu", "pool", uuid, "pooled", "--json", check=False)
    assert done.returncode == 0, done.stderr
    assert gpus(pair)[1]["state"] == "pooled"
