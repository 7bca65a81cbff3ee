"""A CUDA program of a tenant, over the limited endpoint of a real hostd."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gpupool.cli import admin
from tests.conftest import native_dir
from tests.fakes.daemon import eventually
from tests.network.machine import Machine
from tests.network.test_limits import FREELY, MBIT, NETWORK

BYTES = 1 << 20
PROGRAM = f"""
import ctypes, time
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *words):
    assert getattr(cuda, name)(*words) == 0, name
context, place = ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
call("cuMemAlloc_v2", ctypes.byref(place), {BYTES})
data = bytes(range(256)) * ({BYTES} // 256)
begin = time.monotonic()
call("cuMemcpyHtoD_v2", place, data, {BYTES})
back = ctypes.create_string_buffer({BYTES})
call("cuMemcpyDtoH_v2", back, place, {BYTES})
print(time.monotonic() - begin, back.raw == data)
"""


def test_its_copies_keep_to_the_tenants_rate(own: Machine) -> None:
    native = native_dir()
    if not (native / "lib" / "guest" / "libcuda.so.1").exists():
        pytest.skip(f"{native} has no libcuda.so.1: run ./run build")
    own.apply(NETWORK)
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # workers of other users find their cache below it
        (folder / "hostd.toml").write_text(
            f'gpu = "software"\nstate_dir = "{folder}/state"\nvgpu_dir = "{folder}/kept"\n'
            f'admin_socket = "{folder}/admin.sock"\n[sandbox]\ncache_dir = "{folder}/cache"\n'
            '[[endpoint]]\nlisten = "tcp://10.77.0.1:9177"\ninsecure = true\n'
            f'token_file = "{folder}/token"\n'
        )
        variables = {**os.environ, "GPUPOOL_NATIVE_DIR": str(native)}
        inside = own.inside()[:2]  # its network alone
        words = ["gpupool.cli", "hostd", "--config", str(folder / "hostd.toml")]
        with (folder / "log").open("w") as log:
            hostd = subprocess.Popen(
                [*inside, sys.executable, "-m", *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=variables,
            )
        try:
            eventually(lambda: answers(folder, hostd), "hostd answers", 60)
            done = subprocess.run(
                [*own.inside("acme"), sys.executable, "-c", PROGRAM],
                capture_output=True,
                text=True,
                timeout=120,
                env={
                    **variables,
                    "LD_LIBRARY_PATH": str(native / "lib" / "guest"),
                    "GPUPOOL_ENDPOINT": "tcp://10.77.0.1:9177",
                    "GPUPOOL_TOKEN_FILE": str(folder / "token"),
                },
            )
            assert done.returncode == 0, done.stderr + (folder / "log").read_text()[-3000:]
            took_s, right = done.stdout.split()
            assert right == "True"
            # There and back, with what passes freely in each direction.
            assert float(took_s) >= 0.9 * 2 * (BYTES - FREELY) / (MBIT * 125_000)
            flows = own.flows()
            assert flows["acme", "to"] >= BYTES
            assert flows["acme", "from"] >= BYTES
            eventually(
                lambda: not admin.call(folder / "admin.sock", "status")["sessions"], "its end"
            )
        finally:
            hostd.terminate()
            try:
                hostd.wait(timeout=20)
            finally:
                hostd.kill()


def answers(folder: Path, hostd: subprocess.Popen[bytes]) -> bool:
    """Whether hostd can be asked."""
    assert hostd.poll() is None, (folder / "log").read_text()
    try:
        return bool(admin.call(folder / "admin.sock", "status"))
    except admin.UnreachableError:
        return False
