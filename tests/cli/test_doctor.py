"""`gpupool doctor` names what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from gpupool.cli.doctor import libvirt_hook
from tests.fakes.daemon import Daemon, environment, gpupool
from tests.tree import ROOT


def examine(native: Path, folder: Path, **more: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by name."""
    done = subprocess.run(
        gpupool("doctor", "--json"),
        env=environment(native, folder, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, {one["what"]: one for one in json.loads(done.stdout)}


def test_a_machine_that_has_everything(native: Path, short_path: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(native, tmp_path / "native")
    (whole / "libexec" / "gpupool-arbiter").touch()  # the fakes have none: nothing shares a GPU
    code, found = examine(whole, short_path)
    failed = [one for one in found.values() if one["state"] == "fail"]
    assert code == bool(failed)
    for what in ("kernel", "sealed shared memory", "process descriptors"):
        assert found[what]["state"] == "ok"
    assert found["gpupool's own programs"]["state"] == "ok"
    assert found["software GPU"]["found"].startswith("Fake GPU")
    assert found["hostd"]["found"].startswith("none is running")
    assert "locked memory (RLIMIT_MEMLOCK)" in found
    huge = found["huge pages for shared memory"]
    assert (huge["state"], huge["found"]) in {
        *(("ok", setting) for setting in ("advise", "within_size", "always", "force")),
        *(("info", setting) for setting in ("never", "deny")),
    }


def test_missing_native_files(tmp_path: Path, short_path: Path) -> None:
    code, found = examine(tmp_path, short_path)
    assert code == 1
    assert found["gpupool's own programs"]["state"] == "fail"
    assert "worker" in found["gpupool's own programs"]["found"]
    assert "GPUPOOL_NATIVE_DIR" in found["gpupool's own programs"]["advice"]


def test_an_installation_without_our_egl(native: Path, short_path: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(native, tmp_path / "native")
    (guest,) = (one.parent for one in whole.rglob("libcuda.so.1"))
    (guest / "10_gpupool.json").touch()
    _, found = examine(whole, short_path)
    about = found["OpenGL for programs, direct"]
    assert about["state"] == "info"
    assert about["found"] == "there is no libEGL_gpupool.so beside libcuda.so.1"
    (guest / "libEGL_gpupool.so").touch()
    _, found = examine(whole, short_path)
    assert found["OpenGL for programs, direct"]["state"] == "ok"


def test_a_broken_software_gpu(native: Path, short_path: Path) -> None:
    _, found = examine(native, short_path, GPUPOOL_SOFTGPU_BROKEN="1")
    assert found["software GPU"]["state"] in ("fail", "warn")  # warn where there is a card
    assert "cuInit returned 999" in found["software GPU"]["found"]


def test_an_open_folder(native: Path, short_path: Path) -> None:
    short_path.chmod(0o755)
    code, found = examine(native, short_path)
    assert code == 1
    assert "chmod 700" in found["this user's folder"]["found"]


def test_a_running_hostd(daemon: Daemon) -> None:
    daemon.start()
    _, found = examine(daemon.native, daemon.folder)
    assert found["hostd"]["state"] == "ok"
    assert "version 0.1.0" in found["hostd"]["found"]


@pytest.mark.parametrize("variable", ["GPUPOOL_GPU", "GPUPOOL_IDLE_TIMEOUT_S"])
def test_a_wrong_variable(native: Path, short_path: Path, variable: str) -> None:
    code, found = examine(native, short_path, **{variable: "x"})
    assert code == 1
    assert variable in found["this user's folder"]["found"]


def test_the_hook_of_libvirt(tmp_path: Path) -> None:
    def state() -> tuple[str, str]:
        (found,) = libvirt_hook(tmp_path)
        return found.state, found.found

    assert libvirt_hook(tmp_path / "none") == []
    assert state()[0] == "info"
    hook = tmp_path / "hooks" / "qemu.d" / "gpupool"
    hook.parent.mkdir(parents=True)
    (tmp_path / "hooks" / "qemu").write_text("#!/bin/sh\n")  # somebody else's
    assert state()[0] == "info"
    shutil.copy(ROOT / "qemu_hooks" / "qemu", hook)
    assert state() == ("ok", str(hook))
    hook.chmod(0o644)
    assert state()[0] == "warn"
    hook.write_text("# gpupool of yesterday")
    assert "another version" in state()[1]
