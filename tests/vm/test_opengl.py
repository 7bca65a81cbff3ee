"""OpenGL in a real guest: Mesa there, the renderer on the host, the agent's relay between them."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.test_opengl import CLEAR
from tests.opengl.generated import answer
from tests.opengl.test_direct import VENDOR
from tests.opengl.test_generated import CLEAR as CLEAR_BY_EGL
from tests.opengl.ways import native
from tests.tree import ROOT
from tests.vm.house import AGENT, House, open_house
from tests.vm.kernel import Kernel
from tests.vm.machine import Machine

VARIABLES = {"GALLIUM_DRIVER": "virpipe", "LIBGL_ALWAYS_SOFTWARE": "1", "PYTHONPATH": str(ROOT)}
FROM_SHELL = ". /etc/profile.d/gpupool-opengl.sh; echo $GALLIUM_DRIVER $VTEST_SOCKET_NAME"


@pytest.fixture(scope="module")
def house(guest_kernel: Kernel) -> Iterator[House]:
    pytest.importorskip("moderngl")
    with open_house(guest_kernel) as one:
        if not (one.host.native / "libexec" / "gpupool-renderer").exists():
            pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")
        yield one


@pytest.fixture(scope="module")
def machine(house: House) -> Machine:
    """A guest with a vGPU and the guest package."""
    one = house.boot(house.prepare("draws", window_mib=128))
    one.wait_ready()
    house.install(one)
    return one


@contextmanager
def agent(house: House, machine: Machine, *options: str) -> Iterator[None]:
    """As a service, for the block; its relay listens and its file for shells is there."""
    socket, file = "/run/gpupool/opengl", "/etc/profile.d/gpupool-opengl.sh"
    machine.run(["rm", "-f", socket, file])
    one = machine.begin([AGENT, *options], {})
    there = ["/bin/sh", "-c", f"[ -S {socket} ] && [ -e {file} ]"]
    house.wait(lambda: machine.run(there).code == 0, "the relay to listen")
    shown = machine.run(["/bin/sh", "-c", FROM_SHELL]).out.split()
    assert shown == ["virpipe", socket]
    yield
    one.signal(signal.SIGTERM)
    assert one.wait() == 0


@pytest.mark.parametrize(("options", "transport"), [((), "window"), (("--no-window",), "vsock")])
def test_a_guest_draws_on_the_hosts_gpu(
    house: House, machine: Machine, options: tuple[str, ...], transport: str
) -> None:
    before = len(house.host.log)
    with agent(house, machine, *options):
        done = machine.run([sys.executable, "-c", CLEAR], VARIABLES)
    said = house.host.log[before:]
    assert done.out == "virgl 12288 {64} {128}\n", machine.explain(f"{done.err}\n{said}")
    assert "kind=opengl" in said
    assert f"transport={transport}" in said


def test_a_guest_draws_with_gpupools_own_egl(house: House, machine: Machine) -> None:
    """What a login shell starts; the pixels are those that this machine draws itself."""
    if not (house.host.native / "lib" / "guest" / "libEGL_gpupool.so").exists():
        pytest.skip("libEGL_gpupool.so is not built")
    with agent(house, machine, "--opengl", "direct"):
        words = [
            "/bin/sh",
            "-c",
            '. /etc/profile; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            CLEAR_BY_EGL + VENDOR,
        ]
        done = machine.run(words, {"PYTHONPATH": str(ROOT)})
    assert done.code == 0, machine.explain(f"{done.err}\n{house.host.log}")
    drawn, vendor = (json.loads(line) for line in done.out.splitlines())
    assert drawn == answer(native(), CLEAR_BY_EGL)
    assert "gpupool" in vendor.lower()
