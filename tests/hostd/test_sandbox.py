"""Which sandbox a machine and a configuration give; and what the machine is asked."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.hostd.adapters import sandbox_facts
from gpupool.hostd.adapters.cache_folders import make_cache_folder
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.core.sandbox import Account, SandboxFacts, SandboxSettings, plan

FULL = SandboxFacts(root=True, seccomp=True, landlock=7, cgroup=True, home="/root")
SETTINGS = SandboxSettings()


def test_root_gives_every_session_a_user() -> None:
    made = plan(SETTINGS, FULL)
    assert made.missing == ()
    assert made.words(3) == ("user 1900000003", "seccomp", "landlock 7", "cgroup")
    assert "--threads" in made.arguments(3, "")
    assert made.user(3) != made.user(4)
    # One tenant's compiled code must not reach another's.
    assert made.cache(3) == "/var/cache/gpupool/1900000003"
    assert made.cache(4) == "/var/cache/gpupool/1900000004"
    assert "--cache-folder" not in made.arguments(3, "")
    words = made.arguments(3, "/c")
    assert words[words.index("--cache-folder") + 1] == "/c"


def test_an_ordinary_user_keeps_its_own() -> None:
    made = plan(SETTINGS, replace(FULL, root=False, home="/home/u"))
    assert made.user(3) is None
    assert made.words(3)[0] == "seccomp"
    assert "--user" not in made.arguments(3, "")
    assert made.cache(3) == made.cache(4) == "/home/u/.nv/ComputeCache"


def test_a_named_user() -> None:
    made = plan(SETTINGS, replace(FULL, account=Account("gpupool-worker", 998, 997, (997, 44))))
    assert made.words(3)[0] == "user gpupool-worker"
    arguments = made.arguments(3, "")
    assert arguments[arguments.index("--user") + 1] == "998"
    assert arguments[arguments.index("--groups") + 1] == "997,44"
    assert "--threads" not in arguments  # the kernel would count all sessions together


def test_tenants_that_share_a_user_share_code_only_when_told() -> None:
    shared = replace(FULL, account=Account("gpupool-worker", 998, 997))
    assert plan(SETTINGS, shared).cache(3) == ""
    settings = replace(SETTINGS, compile_cache="yes", cache_dir="/c")
    assert plan(settings, shared).cache(3) == "/c/shared"
    assert plan(replace(settings, worker_uid_base=0), FULL).cache(3) == "/c/shared"
    assert plan(replace(SETTINGS, compile_cache="no"), FULL).cache(3) == ""


def test_a_cache_folder_is_its_users_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    me = Account("", os.getuid(), os.getgid())
    folder = tmp_path / "cache" / "7"
    for _ in range(2):
        assert make_cache_folder(str(folder), me) == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o711
    (tmp_path / "cache" / "8").symlink_to(folder)
    (tmp_path / "cache" / "9").write_text("")
    for name in ("8", "9"):
        assert make_cache_folder(f"{tmp_path}/cache/{name}", me) == ""
    assert make_cache_folder(str(folder), replace(me, uid=me.uid + 1)) == ""
    assert caplog.text.count("compiled code is not kept") == 3
    assert make_cache_folder("", me) == ""


@pytest.mark.parametrize(
    ("settings", "facts", "expected"),
    [
        (SETTINGS, replace(FULL, seccomp=False), "no system call filter"),
        (SETTINGS, replace(FULL, landlock=0), "no Landlock"),
        (SETTINGS, replace(FULL, cgroup=False, cgroup_note="no cgroup: x"), "no cgroup: x"),
        (SETTINGS, replace(FULL, closed_devices=("/dev/nvidia0",)), "only root may open /dev/nvi"),
        (SETTINGS, replace(FULL, account=Account("root", 0, 0)), "run as root"),
        (replace(SETTINGS, worker_uid_base=0), FULL, "run as root"),
    ],
)
def test_what_is_missing_is_told(
    settings: SandboxSettings, facts: SandboxFacts, expected: str
) -> None:
    made = plan(settings, facts)
    assert len(made.missing) == 1
    assert expected in made.missing[0]


def test_what_was_not_asked_for_is_not_missing() -> None:
    settings = replace(SETTINGS, seccomp="off", landlock=False, cgroup=False)
    made = plan(settings, SandboxFacts(root=False))
    assert made.missing == ()
    assert made.words(1) == ()


def test_off() -> None:
    made = plan(replace(SETTINGS, mode="off"), FULL)
    assert made.words(1) == ()
    assert made.user(1) is None


def test_users_without_a_name_come_again_after_many_sessions() -> None:
    made = plan(SETTINGS, FULL)
    first, later = made.user(1), made.user(1 + (1 << 24))
    assert first == later
    assert made.user((1 << 24) - 1) == Account("", 1_900_000_000 + (1 << 24) - 1, 1_916_777_215)


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(PortError, match=r"useradd --system .* no-such-user"):
        sandbox_facts.gather(replace(SETTINGS, worker_user="no-such-user"), None, "", cgroup=False)


def test_a_program_that_does_not_answer(tmp_path: Path) -> None:
    program = tmp_path / "worker"
    program.write_text("#!/bin/sh\necho nonsense\n")
    program.chmod(0o755)
    with pytest.raises(PortError, match="--probe-sandbox failed"):
        sandbox_facts.probe(program)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make device files")
def test_device_files(tmp_path: Path) -> None:
    def device(name: str, mode: int, group: int) -> None:
        try:
            os.mknod(tmp_path / name, stat.S_IFCHR | mode, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("device files cannot be made here (CAP_MKNOD)")
        (tmp_path / name).chmod(mode)
        os.chown(tmp_path / name, 0, group)

    device("nvidia0", 0o666, 0)
    assert sandbox_facts.device_access(tmp_path) == ((), ())
    device("nvidia1", 0o660, 44)
    assert sandbox_facts.device_access(tmp_path) == ((44,), ())
    device("nvidia2", 0o600, 44)
    assert sandbox_facts.device_access(tmp_path) == ((44,), (str(tmp_path / "nvidia2"),))
