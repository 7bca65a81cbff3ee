"""cgroups in a folder that looks like the kernel's, and the machine's own where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.hostd.adapters import cgroups
from gpupool.hostd.adapters.cgroups import Groups, own_group

UUID = "0b0c0d0e-0000-4000-8000-00000000000c"


def proc(folder: Path, mount: Path, inside: str) -> Path:
    """A /proc/self of a process in that group."""
    folder.mkdir()
    (folder / "mountinfo").write_text(f"31 23 0:27 / {mount} rw,nosuid shared:9 - cgroup2 c rw\n")
    (folder / "cgroup").write_text(f"4:memory:/x\n0::{inside}\n")
    return folder


def test_where_a_process_is(tmp_path: Path) -> None:
    made = proc(tmp_path / "self", Path("/sys/fs/cgroup"), "/system.slice/gpupool-hostd.service")
    assert own_group(made) == Path("/sys/fs/cgroup/system.slice/gpupool-hostd.service")
    (made / "cgroup").write_text("4:memory:/x\n")
    assert own_group(made) is None
    assert own_group(tmp_path / "none") is None


def test_a_session_gets_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "unit" / "hostd"  # DelegateSubgroup=hostd
    own.mkdir(parents=True)
    monkeypatch.setattr(cgroups, "own_group", lambda: own)
    groups = Groups(tmp_path / "state", threads=7, memory_mib=3)
    assert groups.usable
    assert "cannot limit pids and memory" in groups.note  # a plain folder has no such files
    group = groups.create(5)
    assert group is not None
    assert group.parent == own.parent
    (group / "pids.max").touch()
    (group / "memory.max").touch()
    assert groups.create(5) == group
    assert (group / "pids.max").read_text() == "7"
    assert (group / "memory.max").read_text() == str(3 << 20)
    for name in ("pids.max", "memory.max"):
        (group / name).unlink()  # the kernel's own do not keep a folder from going
    groups.remove_empty()
    assert not group.exists()


def test_a_relay_gets_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "own_group", lambda: tmp_path)
    groups = Groups(tmp_path / "state", threads=7, memory_mib=3)
    group = groups.create_relay(UUID, 100)
    assert group is not None
    for name in ("pids.max", "memory.max"):
        (group / name).touch()
    groups.create_relay(UUID, 100)
    assert (group / "pids.max").read_text() == "8"
    assert (group / "memory.max").read_text() == str(612 << 20)
    groups.create_relay(UUID, 0)  # what the guest's memory is nobody has said
    assert (group / "memory.max").read_text() == "max"
    for name in ("pids.max", "memory.max"):
        (group / name).unlink()
    groups.remove_empty()  # a session has ended: not a relay's, which it may be about to enter
    assert group.exists()
    (group / "member").touch()
    assert not groups.remove_relay(UUID)
    (group / "member").unlink()
    assert groups.remove_relay(UUID)
    assert not group.exists()
    left = groups.create_relay(UUID, 0)
    assert left is not None
    Groups(tmp_path / "state", threads=7, memory_mib=3)
    assert not left.exists()


def test_none_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "own_group", lambda: None)
    groups = Groups(tmp_path, 1, 1)
    assert not groups.usable
    assert "no cgroup version 2" in groups.note
    assert groups.create(1) is None
    groups.remove_empty()
    monkeypatch.setattr(cgroups, "own_group", lambda: tmp_path / "missing")
    assert "delegate one" in Groups(tmp_path, 1, 1).note
