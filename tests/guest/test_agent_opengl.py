"""OpenGL by the guest agent: what it starts and writes, and what a shell's programs make of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpupool.guest import package
from gpupool.guest.agent.failure import NO_RUNTIME, AgentError
from gpupool.guest.agent.main import main
from gpupool.guest.agent.opengl import OpenGl
from tests.conftest import Host, native_dir
from tests.opengl.generated import answer
from tests.opengl.test_direct import VENDOR
from tests.opengl.test_generated import CLEAR
from tests.opengl.ways import native, need_egl
from tests.tree import ROOT

EGL = "libEGL_gpupool.so"
SHELLS = [name for name in ("sh", "dash", "bash", "busybox") if shutil.which(name)]


@pytest.fixture
def root() -> Iterator[Path]:
    """What the agent takes for its machine: the name of a socket is short."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        (Path(name) / "tmp").mkdir()
        yield Path(name)


@contextmanager
def agent(root: Path, way: str, libraries: Path) -> Iterator[OpenGl]:
    """Its part for OpenGL after one step; its relay ends with the block."""
    one = OpenGl(libraries, root / "guest.toml", root, way)
    try:
        one.step()
        yield one
    finally:
        one.end()


def shell_file(root: Path) -> Path:
    """What login shells read."""
    return root / "etc" / "profile.d" / "gpupool-opengl.sh"


def in_shell(root: Path, text: str, shell: str = "sh") -> list[str]:
    """Lines that a program of Python text prints in a shell that has read the file."""
    words = [shutil.which(shell) or shell, *(["sh"] if shell == "busybox" else [])]
    script = f'. {shell_file(root)} && exec "$@"'
    done = subprocess.run(
        [*words, "-euc", script, shell, sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "GPUPOOL_GUEST_CONFIG": str(root / "guest.toml"),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def libraries_of(host: Host) -> Path:
    """The build's; skips the test where OpenGL cannot be."""
    need_egl()
    folder = host.native / "lib" / "guest"
    if not (folder / EGL).exists():
        pytest.skip(f"{folder / EGL} is not built")
    return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_programs_of_a_shell_draw_with_gpupools_egl(host: Host, root: Path, shell: str) -> None:
    (root / "guest.toml").write_text(f'endpoint = "unix:{host.folder}/hostd.sock"\n')
    with agent(root, "direct", libraries_of(host)):
        drawn, vendor = in_shell(root, CLEAR + VENDOR, shell)
    assert json.loads(drawn) == answer(native(), CLEAR)
    assert "gpupool" in vendor.lower()


NAMES = ("GALLIUM_DRIVER", "VTEST_SOCKET_NAME", "__EGL_VENDOR_LIBRARY_FILENAMES")
SHOW = f"import os; print(*[os.environ.get(name) for name in {NAMES}], sep='\\n')"


def test_what_one_agent_has_set_another_takes_back(root: Path) -> None:
    """Drawing with what virgl's sets is for a machine of its own: tests/vm/test_opengl.py."""
    libraries = native_dir() / "lib" / "guest"
    if not (libraries / EGL).exists():
        pytest.skip(f"{libraries / EGL} is not built")
    described = root / "etc" / "gpupool" / "10_gpupool.json"
    dialled = ["virpipe", str(root / "run" / "gpupool" / "opengl")]
    with agent(root, "direct", libraries):
        assert described.exists()
        *same, vendors = in_shell(root, SHOW)
        assert same == dialled
        assert vendors.split(":")[0] == str(described)
        assert vendors.endswith("/50_mesa.json")  # windows
    with agent(root, "virgl", libraries):
        assert in_shell(root, SHOW) == [*dialled, "None"]
    assert not described.exists()


def test_off_takes_back_what_another_agent_has_set(root: Path) -> None:
    with agent(root, "virgl", native_dir() / "lib" / "guest"):
        assert shell_file(root).exists()
    shutil.rmtree(root / "run")
    with agent(root, "off", native_dir() / "lib" / "guest") as one:
        assert not shell_file(root).exists()
        assert one.step() == ""
    assert not (root / "run").exists()  # no relay has begun


def test_a_package_without_gpupools_egl(root: Path) -> None:
    (root / "lib").mkdir()
    shutil.copy(native_dir() / "lib" / "guest" / "gpupool-opengl", root / "lib")
    with (
        pytest.raises(
            AgentError, match=r"direct: libEGL_gpupool.so is not in .* package"
        ) as caught,
        agent(root, "direct", root / "lib"),
    ):
        pass
    assert caught.value.code == NO_RUNTIME
    assert not shell_file(root).exists()


def test_nothing_is_left_when_it_is_uninstalled(root: Path) -> None:
    libraries = native_dir() / "lib" / "guest"
    if not (libraries / EGL).exists():
        pytest.skip(f"{libraries / EGL} is not built")
    with agent(root, "direct", libraries) as one:
        assert one.uninstall()
    assert not [each for each in (root / "etc").rglob("*") if each.is_file()]


def test_there_are_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--opengl", "mesa"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(way in said for way in ("virgl", "direct", "off"))


def test_the_package_has_both_paths(tmp_path: Path) -> None:
    libraries = native_dir() / "lib" / "guest"
    if not (libraries / EGL).exists():
        pytest.skip(f"{libraries / EGL} is not built")
    archive = tmp_path / "guest.tar.gz"
    package.make(archive, libraries)
    with tarfile.open(archive) as content:
        modes = {one.name.rpartition("/")[2]: one.mode for one in content}
    assert (modes["gpupool-opengl"], modes[EGL]) == (0o755, 0o644)
