"""`pip install .` as a user does it: a clean environment, an isolated build, no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.demo.compile import HERE, CompileError, compile_host, compile_ptx
from tests.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
# What would lead an installed gpupool back to the checkout or to a hostd of this user.
LEAKS = ("PYTHONPATH", "VIRTUAL_ENV", "GPUPOOL_", "LD_LIBRARY_PATH")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh virtual environment with gpupool in it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    environment = dict(os.environ)
    if shutil.which("ccache"):
        environment["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    done = subprocess.run(
        [python, "-m", "pip", "install", ROOT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "venv" / "bin"


@pytest.fixture
def environment(installed: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Nothing of the checkout, and a runtime folder of its own, so that hostd is a new one too."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEAKS)}
    kept["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    kept["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    (tmp_path / "run").mkdir(mode=0o700)
    yield kept
    admin = tmp_path / "run" / "gpupool" / "admin.sock"
    if admin.exists():
        run(installed, kept, tmp_path, "stop", "--hostd", "--admin-socket", str(admin))


def run(
    installed: Path, environment: dict[str, str], folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """The installed `gpupool`, outside the checkout."""
    return subprocess.run(
        [installed / "gpupool", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_explains_itself(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(installed, environment, tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "gpupool run" in done.stdout


def test_doctor_finds_its_own_programs(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(installed, environment, tmp_path, "doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    own = found["gpupool's own programs"]
    assert own["state"] == "ok", own
    assert str(installed.parent) in own["found"]


def test_a_program_computes_on_a_vgpu(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    try:
        compile_ptx(HERE / "kernels.cu", tmp_path / "kernels.ptx")
        guest = next(installed.parent.glob("lib/python3*/site-packages/gpupool/native/guest"))
        compile_host(tmp_path / "host", guest)
    except CompileError as error:
        pytest.skip(f"no compiler for CUDA C++: {error}")
    words = ["run", "--", str(tmp_path / "host"), str(tmp_path / "kernels.ptx")]
    done = run(installed, environment, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["right"] is True


def test_no_source_is_installed(installed: Path) -> None:
    package = next(installed.parent.glob("lib/python3*/site-packages/gpupool"))
    sources = [name for name in package.rglob("*") if name.suffix in {".cpp", ".hpp"}]
    assert not sources


def test_what_virtual_machines_need_is_installed(installed: Path) -> None:
    package = next(installed.parent.glob("lib/python3*/site-packages/gpupool"))
    assert (package / "qemu_hooks" / "qemu").is_file()
    assert (package / "kata_hooks" / "gpupool-kata").is_file()
    templates = {name.parent.name for name in package.rglob("*.j2")}
    # Of those for C++ (cuda, nvml) the build has made what is needed.
    assert templates == {name.name for name in (ROOT / "templates").iterdir()} - {"cuda", "nvml"}


def test_the_bench_finds_its_parts(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    words = ("--small", "--gpu", "software", "--modes", "native,stream,tcp+500us", "launch")
    python = str(installed / "python")
    done = run(
        installed, environment, tmp_path, "bench", "--rounds", "2", "--python", python, *words
    )
    assert done.returncode == 0, done.stderr
    assert "| launch | launch-bound |" in done.stdout
