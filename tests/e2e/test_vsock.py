"""The stream transport over vsock: dialling, and a program's data through it.

Without a virtual machine there is nobody to dial: the vsock device is replaced in the client by a
unix socket, which is also how hypervisors with vsock in user space hand connections to hostd.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Host, end_host, make_host

PROGRAM = """
from tests.e2e.client import Counter
counter = Counter()
counter.add()
data = bytes(range(256)) * 40000
block = counter.driver.alloc(len(data))
counter.driver.upload(block, data)
print(counter.value(), counter.driver.download(block, len(data)) == data)
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """A hostd that serves one virtual machine at a unix socket."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        more = f'[[endpoint]]\nlisten = "unix:{name}/port-9177"\ntransports = ["vsock"]\n'
        host = make_host(Path(name), more=more)
        yield host
        end_host(host)


def test_data_goes_both_ways(machine: Host, device: Path) -> None:
    done = machine.run(
        "vsock",
        sys.executable,
        "-c",
        PROGRAM,
        LD_PRELOAD=str(device),
        VSOCK_FOLDER=str(machine.folder),
        GPUPOOL_ENDPOINT="vsock://2:9177",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "True"]
    assert "transport=vsock" in machine.log


def test_without_a_host_it_is_one_line(machine: Host) -> None:
    """This kernel has vsock or not; nobody listens either way, and the wait is bounded."""
    done = machine.run(
        "vsock",
        sys.executable,
        "-c",
        "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))",
        GPUPOOL_ENDPOINT="vsock://2:49178",
        timeout_s=60,
    )
    assert done.stdout.split() == ["100"]
    assert done.stderr.startswith("gpupool: ")
    assert "cannot reach vsock://2:49178" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("endpoint", ["vsock://2", "vsock://two:9177", "vsock://2:4294967295"])
def test_malformed_endpoints_are_named(machine: Host, endpoint: str) -> None:
    done = machine.run(
        "vsock",
        sys.executable,
        "-c",
        "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))",
        GPUPOOL_ENDPOINT=endpoint,
    )
    assert done.stdout.split() == ["100"]
    assert f"GPUPOOL_ENDPOINT is '{endpoint}'" in done.stderr
