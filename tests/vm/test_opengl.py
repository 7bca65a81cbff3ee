"""OpenGL in a real guest: Mesa there, the renderer on the host, the agent's relay between them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.test_opengl import CLEAR
from tests.tree import ROOT
from tests.vm.house import AGENT, House, open_house
from tests.vm.kernel import Kernel

VARIABLES = {"GALLIUM_DRIVER": "virpipe", "LIBGL_ALWAYS_SOFTWARE": "1", "PYTHONPATH": str(ROOT)}
FROM_SHELL = ". /etc/profile.d/gpupool-opengl.sh; echo $GALLIUM_DRIVER $VTEST_SOCKET_NAME"


@pytest.fixture(scope="module")
def house(guest_kernel: Kernel) -> Iterator[House]:
    pytest.importorskip("moderngl")
    with open_house(guest_kernel) as one:
        if not (one.host.native / "libexec" / "gpupool-renderer").exists():
            pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")
        yield one


def test_a_guest_draws_on_the_hosts_gpu(house: House) -> None:
    domain = house.prepare("draws")
    machine = house.boot(domain)
    machine.wait_ready()
    house.install(machine)
    agent = machine.begin([AGENT], {})
    house.wait(
        lambda: machine.run(["test", "-S", "/run/gpupool/opengl"]).code == 0, "the relay to listen"
    )
    shown = machine.run(["/bin/sh", "-c", FROM_SHELL]).out.split()
    assert shown == ["virpipe", "/run/gpupool/opengl"]
    done = machine.run([sys.executable, "-c", CLEAR], VARIABLES)
    assert done.out == "virgl 12288 {64} {128}\n", machine.explain(f"{done.err}\n{house.host.log}")
    assert "kind=opengl" in house.host.log
    assert "transport=vsock" in house.host.log
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
