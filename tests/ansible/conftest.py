"""A machine of its own for each test module, and a wheel with all that it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import wheels
from tests.ansible import machine
from tests.conftest import end_host, make_host, native_dir
from tests.e2e.control_plane import Plane, eventually


@dataclass(frozen=True)
class Wheels:
    """What a machine without a network installs."""

    gpupool: Path
    house: Path  # folder with the wheels of everything that gpupool needs

    @property
    def pip_arguments(self) -> list[str]:
        """How pip finds them."""
        return ["--no-index", "--find-links", str(self.house)]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """The checkout's wheel, and those of the packages that its extras need."""
    if lacking := machine.missing():
        pytest.skip(lacking)
    native = native_dir()
    if not (native / "lib" / "guest" / "libcuda.so.1").exists():
        pytest.skip(f"{native} has no libcuda.so.1: run ./run build")
    folder = tmp_path_factory.mktemp("wheels")
    wheel = wheels.pack(native, folder)
    house = folder / "house"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--dest",
            house,
            f"{wheel}[controller,network]",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return Wheels(wheel, house)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Machine]:
    """The machine."""
    one = machine.start(tmp_path_factory.mktemp("machine"))
    yield one
    one.end()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """One controller, and the node n1 with labels that somebody made up."""
    folder = tmp_path_factory.mktemp("plane")
    one = Plane(folder, f"sqlite:///{folder}/controller.db")
    try:
        replica = one.replica()
        token = one.token("n1")
        section = (
            f'[controller]\nurl = "tcp://127.0.0.1:{replica.nodes_port}"\n'
            f'token_file = "{token}"\nnode_name = "n1"\n'
            'labels = ["zone=a", "evil={{ 6 * 7 }}"]\n'
        )
        (folder / "n1").mkdir(mode=0o755)
        one.hosts.append(make_host(folder / "n1", gpu="software", more=section))
        eventually(lambda: one.node_state("n1") == "ready", "the node", 60)
        yield one
    finally:
        for host in one.hosts:
            end_host(host)
        one.end()
