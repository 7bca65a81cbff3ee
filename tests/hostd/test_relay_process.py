"""Relays are started with their VM, found again, started again when they die, and end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpupool.hostd.adapters import native_files
from gpupool.hostd.adapters.cgroups import Groups
from gpupool.hostd.adapters.relay_process import RelayProcesses
from gpupool.hostd.adapters.worker_process import start_ticks
from gpupool.hostd.core.ports import PortError

UUID = "0b0c0d0e-0000-4000-8000-00000000000c"
WORDS = ("--sandbox-calls", "yes", "--log-json", "no")
# Locks its file and listens as a relay does, and does not mind SIGTERM.
STUBBORN = f"""#!{sys.executable}
import fcntl, os, signal, socket, sys, time
os.chdir(sys.argv[sys.argv.index("--folder") + 1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
place = os.open("relay.pid", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(place, fcntl.LOCK_EX)
os.pwrite(place, str(os.getpid()).encode(), 0)
vhost = socket.socket(socket.AF_UNIX)
vhost.bind("vhost")
vhost.listen()
os.chmod("vhost", 0o660)
time.sleep(60)
"""


async def until(condition: Callable[[], object], what: str) -> None:
    """Waits, with a bound."""
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within 20 s")


@dataclass
class Rig:
    """The folder of one VM."""

    folder: Path
    program: Path | None
    groups: Groups | None = None

    def relays(self) -> RelayProcesses:
        """As of a hostd that starts."""
        return RelayProcesses(self.program, WORDS, self.groups, end_s=1)

    async def up(self, relays: RelayProcesses) -> int:
        """Wants one and waits for it; its process."""
        relays.want(UUID, self.folder, 4096)
        await relays.ready(UUID, 20)
        await until(lambda: self.holder() == relays.pid(UUID), "it says who it is")
        return relays.pid(UUID)

    def holder(self) -> int:
        """Whom its file names."""
        try:
            return int((self.folder / "relay.pid").read_text() or 0)
        except FileNotFoundError:
            return 0

    def run(self, body: Callable[[RelayProcesses], Awaitable[None]]) -> None:
        """Runs a test; no relay is left after it."""

        async def all_of_it() -> None:
            relays = self.relays()
            try:
                await body(relays)
            finally:
                relays.stop()
                pid = self.holder()
                if pid and start_ticks(pid):
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda: not start_ticks(pid) or not relays.pid(UUID), "its end")

        asyncio.run(all_of_it())


@pytest.fixture
def rig() -> Iterator[Rig]:
    program = native_files.locate().relay
    if program is None:
        pytest.skip("gpupool-vsock is not built: run ./run build")
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        folder = Path(name) / UUID
        folder.mkdir()
        yield Rig(folder, program)


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[Rig]:
    program = tmp_path / "relay"
    program.write_text(STUBBORN)
    program.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        yield Rig(Path(name), program)


def test_it_comes_up_and_ends_with_its_vm(rig: Rig) -> None:
    async def body(relays: RelayProcesses) -> None:
        pid = await rig.up(relays)
        assert stat.S_IMODE((rig.folder / "vhost").stat().st_mode) == 0o660
        assert os.getsid(pid) == pid  # signals to hostd's group do not reach it
        relays.want(UUID, rig.folder, 4096)  # again
        assert relays.pid(UUID) == pid
        relays.end(UUID, rig.folder)
        assert relays.pid(UUID) == 0
        await until(lambda: start_ticks(pid) is None, "it ends")
        await asyncio.sleep(0.3)
        assert rig.holder() == pid  # and no other was started

    rig.run(body)


def test_it_and_its_connector_have_a_cgroup(rig: Rig, tmp_path: Path) -> None:
    groups = Groups(tmp_path, 64, 64)
    if not groups.usable:
        pytest.skip(groups.note)

    def theirs() -> list[int]:
        found = []
        for one in Path("/proc").glob("[0-9]*/cgroup"):
            with contextlib.suppress(OSError):
                if f"-vm-{UUID}" in one.read_text():
                    found.append(int(one.parent.name))
        return sorted(found)

    async def body(relays: RelayProcesses) -> None:
        pid = await rig.up(relays)
        assert pid in theirs()
        assert len(theirs()) == 2
        group = groups.create_relay(UUID, 0)  # is there, so that is where it is
        assert group is not None
        relays.end(UUID, rig.folder)
        await until(lambda: not group.exists(), "it goes with them")

    rig.groups = groups
    rig.run(body)


def test_a_cgroup_that_cannot_be_entered(rig: Rig, tmp_path: Path) -> None:
    class Closed(Groups):
        def create_relay(self, uuid: str, domain_mib: int) -> Path | None:
            return tmp_path / f"{uuid}-{domain_mib}"

    rig.groups = Closed(tmp_path, 64, 64)

    async def body(relays: RelayProcesses) -> None:
        assert await rig.up(relays)  # its machine needs it; the log says what it lacks

    rig.run(body)


def test_a_later_hostd_finds_it(rig: Rig) -> None:
    async def body(relays: RelayProcesses) -> None:
        pid = await rig.up(relays)
        relays.stop()
        later = rig.relays()
        assert await rig.up(later) == pid
        later.end(UUID, rig.folder)
        await until(lambda: start_ticks(pid) is None, "it ends, though another hostd began it")

    rig.run(body)


def test_a_later_hostd_ends_one_whose_vm_is_gone(rig: Rig) -> None:
    async def body(relays: RelayProcesses) -> None:
        pid = await rig.up(relays)
        relays.stop()
        rig.relays().end(UUID, rig.folder)
        await until(lambda: start_ticks(pid) is None, "it ends")

    rig.run(body)


def test_one_that_dies_is_started_again(rig: Rig) -> None:
    async def body(relays: RelayProcesses) -> None:
        first = await rig.up(relays)
        os.kill(first, signal.SIGKILL)
        await until(lambda: relays.pid(UUID) not in (0, first), "another one")
        await relays.ready(UUID, 20)
        await until(lambda: rig.holder() == relays.pid(UUID), "it has its place")

    rig.run(body)


def test_one_that_does_not_end_is_killed(stubborn: Rig) -> None:
    async def body(relays: RelayProcesses) -> None:
        pid = await stubborn.up(relays)
        relays.end(UUID, stubborn.folder)
        await until(lambda: start_ticks(pid) is None, "it is killed")

    stubborn.run(body)


def test_one_that_does_not_come_up(tmp_path: Path) -> None:
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\nexit 14\n")
    program.chmod(0o755)
    (tmp_path / "vhost").touch()  # what a dead one left is not taken for it

    async def body(relays: RelayProcesses) -> None:
        relays.want(UUID, tmp_path, 4096)
        with pytest.raises(PortError, match=r"did not come up within 0.3 s"):
            await relays.ready(UUID, 0.3)
        relays.end(UUID, tmp_path)

    Rig(tmp_path, program).run(body)


def test_without_the_program(tmp_path: Path) -> None:
    async def body(relays: RelayProcesses) -> None:
        with pytest.raises(PortError, match="gpupool-vsock is not built"):
            relays.want(UUID, tmp_path, 4096)

    Rig(tmp_path, None).run(body)


def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    async def body(relays: RelayProcesses) -> None:
        with pytest.raises(PortError, match="cannot start"):
            relays.want(UUID, tmp_path, 4096)
        assert relays.pid(UUID) == 0

    Rig(tmp_path, tmp_path / "nothing").run(body)
