"""The folder of a user's own hostd: where it is, and when it is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpupool.hostd import private
from gpupool.hostd.private import PrivateDirError


def test_the_named_folder_wins(tmp_path: Path) -> None:
    variables = {"GPUPOOL_RUNTIME_DIR": "/a/b", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert private.directory(variables) == Path("/a/b")
    with pytest.raises(PrivateDirError, match="absolute"):
        private.directory({"GPUPOOL_RUNTIME_DIR": "b"})


def test_the_users_runtime_folder(tmp_path: Path) -> None:
    assert private.directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "gpupool"


@pytest.mark.parametrize("runtime", ["", "relative", "/nowhere/at/all", "/proc/self/exe"])
def test_without_one(runtime: str) -> None:
    expected = Path(f"/tmp/gpupool-{os.getuid()}")  # noqa: S108 (only its name is compared)
    assert private.directory({"XDG_RUNTIME_DIR": runtime}) == expected


def test_never_the_systems() -> None:
    assert private.directory({"XDG_RUNTIME_DIR": "/run"}) != Path("/run/gpupool")
    for name in ("/run/gpupool", "/run/../run/gpupool/"):
        with pytest.raises(PrivateDirError, match="belongs to the system's hostd"):
            private.directory({"GPUPOOL_RUNTIME_DIR": name})


def test_made_closed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    previous = os.umask(0)
    try:
        private.prepare(folder)
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o700
    private.prepare(folder)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PrivateDirError, match="symbolic link"):
        private.prepare(tmp_path / "link")


def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    with pytest.raises(PrivateDirError, match="chmod 700"):
        private.prepare(tmp_path / "open")


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(PrivateDirError, match="belongs to user 12345"):
        private.prepare(tmp_path / "theirs")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrivateDirError, match="is no folder"):
        private.prepare(tmp_path / "file")
    with pytest.raises(PrivateDirError, match="cannot make"):
        private.prepare(tmp_path / "missing" / "folder")


def test_settings_are_what_two_runs_must_share() -> None:
    variables = {"GPUPOOL_SOFTGPU_DEVICES": "2", "GPUPOOL_GPU": "", "HOME": "/root"}
    assert private.settings("0.1.0", variables) == {
        "version": "0.1.0",
        "GPUPOOL_SOFTGPU_DEVICES": "2",
    }


def test_choices() -> None:
    assert private.gpu_choice({}) == "auto"
    assert private.gpu_choice({"GPUPOOL_GPU": "nvidia"}) == "nvidia"
    with pytest.raises(PrivateDirError, match="auto, nvidia, software"):
        private.gpu_choice({"GPUPOOL_GPU": "amd"})
    assert private.idle_timeout_s({}) == 60
    assert private.idle_timeout_s({"GPUPOOL_IDLE_TIMEOUT_S": "5"}) == 5
    for text in ("0", "-1", "x", "1.5", "100000"):
        with pytest.raises(PrivateDirError, match="number of seconds"):
            private.idle_timeout_s({"GPUPOOL_IDLE_TIMEOUT_S": text})
