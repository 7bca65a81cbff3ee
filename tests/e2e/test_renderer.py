"""gpupool-renderer and clients of every sort: what it answers, what it charges, what it does not
let through, and how it ends.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.wire.hello import WelcomeStatus
from tests.conftest import Host, native_dir
from tests.e2e import vtest
from tests.e2e.observe import STEPPER, step, wait_for_line
from tests.e2e.vtest import Client

MIB = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def needed() -> None:
    """Skips where it is not built."""
    if not (native_dir() / "libexec" / "gpupool-renderer").exists():
        pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")


@pytest.fixture
def client(host: Host, transport: str) -> Iterator[Client]:
    """A session with a context."""
    with Client(host, transport) as one:
        yield one


def mine(host: Host) -> dict[str, Any]:
    """The one session of OpenGL."""
    (found,) = [one for one in host.sessions() if one["kind"] == "opengl"]
    return found


def used_mib(host: Host) -> int:
    """What all sessions use, as hostd counts it."""
    used = [int(one["memory_bytes"]) for s in host.sessions() for one in s["usage"]]
    return sum(used) // MIB


def test_data_go_to_a_texture_and_come_back(client: Client) -> None:
    pixels = bytes(range(256)) * 16
    memory = client.make(7, 32, 32)
    if memory is not None:
        memory[:] = pixels
        client.say(vtest.PUT2, 7, 0, 0, 0, 0, 32, 32, 1, len(pixels), 0)
        client.wait()
        memory[:] = bytes(len(pixels))
        client.say(vtest.GET2, 7, 0, 0, 0, 0, 32, 32, 1, len(pixels), 0)
        client.wait()
        assert memory[:] == pixels
    else:
        words = (7, 0, 0, 0, 0, 0, 0, 32, 32, 1, len(pixels))
        client.say(vtest.PUT, *words)
        client.raw(pixels)
        client.say(vtest.GET, *words)
        assert vtest.receive(client.stream, len(pixels)) == pixels


def test_a_session_says_what_it_is(host: Host, client: Client, transport: str) -> None:
    client.wait()
    session = mine(host)
    assert session["program"] == "by-hand"
    assert session["transport"] == transport
    shown = host.command("status").stdout
    assert "by-hand" in shown
    assert "opengl" in shown


def test_the_end_of_the_program_ends_the_session(host: Host, transport: str) -> None:
    with Client(host, transport) as one:
        one.wait()
        pid = int(str(mine(host)["worker_pid"]))
    host.wait_until(lambda: not host.sessions(), "the session to end")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


LIES: dict[str, Callable[[Client], None]] = {
    "an unknown command": lambda one: one.say(99),
    "a command that is too short": lambda one: one.say(vtest.CREATE, 1, 2, 3),
    "a second context": lambda one: one.raw(struct.pack("<II", 1, vtest.CREATE_RENDERER) + b"\0"),
    "no such resource": lambda one: one.say(vtest.GET2, 9, 0, 0, 0, 0, 1, 1, 1, 4, 0),
    "a buffer of 4 GiW": lambda one: one.say(vtest.SUBMIT, length=0xFFFF_FFFF),
    "a command beyond its buffer": lambda one: one.say(vtest.SUBMIT, 0x0007_0008, 0),
    "a resource made in a buffer": lambda one: one.say(vtest.SUBMIT, 48),
    "a command of no version": lambda one: one.say(vtest.SUBMIT, 200),
}
SHAPES = {
    "a target that is none": {"target": 9},
    "no width": {"width": 0},
    "levels of nothing": {"last_level": 31},
    "samples without number": {"samples": 5000},
    "a cube of five sides": {"target": 4, "layers": 5},
    "pixels without end": {"width": 1 << 31},
    "a buffer with a height": {"target": vtest.BUFFER, "height": 2},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_session(host: Host, client: Client, lie: str) -> None:
    client.wait()
    LIES[lie](client)
    assert client.ended()
    host.wait_until(lambda: not host.sessions(), "the session to end")
    assert "broke the protocol" in host.log


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_that_is_none_ends_the_session(client: Client, shape: str) -> None:
    words = {"width": 4, "height": 4, "bytes": 64, **SHAPES[shape]}
    width, height = words.pop("width"), words.pop("height")
    if client.shared:
        words["bytes"] = 0  # nothing to wait for
    client.make(3, width, height, **words)
    assert client.ended()


@pytest.mark.parametrize("box", [(1, 0, 4, 4), (0, 1, 4, 4), (0, 0, 5, 4), (0xFFFF_FFFF, 0, 2, 1)])
def test_a_box_beyond_its_texture_ends_the_session(
    client: Client, box: tuple[int, int, int, int]
) -> None:
    client.make(3, 4, 4)
    x, y, width, height = box
    if client.shared:
        client.say(vtest.GET2, 3, 0, x, y, 0, width, height, 1, 64, 0)
    else:
        client.say(vtest.GET, 3, 0, 0, 0, x, y, 0, width, height, 1, 64)
    assert client.ended()


def test_more_data_than_a_texture_has_ends_the_session(host: Host) -> None:
    with Client(host, "tcp") as one:
        one.make(3, 4, 4)
        one.say(vtest.PUT, 3, 0, 0, 0, 0, 0, 0, 4, 4, 1, 1 << 30)
        assert one.ended()


def test_shared_memory_cannot_be_cut_short(host: Host) -> None:
    with Client(host, "shm") as one:
        one.say(vtest.CREATE2, 3, vtest.TWO, vtest.RGBA8, vtest.SAMPLED, 4, 4, 1, 1, 0, 0, 64)
        fd = one.descriptor()
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        os.close(fd)


def test_resources_are_charged_and_given_back(host: Host, client: Client) -> None:
    before = used_mib(host)
    client.make(1, 1024, 1024)
    client.make(2, 512, 512, samples=4, bytes=0)
    client.make(3, 8 * MIB, target=vtest.BUFFER, format=vtest.R8, bind=vtest.VERTICES, bytes=4096)
    client.wait()
    assert used_mib(host) - before == 4 + 4 + 8
    for handle in (1, 2, 3):
        client.say(vtest.UNREF, handle)
    client.wait()
    assert used_mib(host) == before


def test_a_vgpu_that_is_full_is_out_of_memory(own_host: Host) -> None:
    with Client(own_host, "shm", memory_mib=64) as one:
        assert one.make(1, 2048, 2048) is not None  # 16 MiB
        assert one.make(2, 4096, 4096) is None  # 64 MiB
        assert one.make(3, 1024, 1024) is not None  # and it goes on
        one.make(4, 2048, 2048, samples=8, bytes=0)  # 128 MiB, and no way to say no
        assert one.ended()
        assert "the vGPU's memory is used up" in one.notice()
    with Client(own_host, "tcp", memory_mib=64) as one:
        one.make(2, 8192, 4096)  # 128 MiB
        assert one.ended()
    assert own_host.log.count("the vGPU's memory is used up") == 2


def test_a_renderer_that_is_killed_ends_one_session(host: Host, transport: str) -> None:
    with Client(host, transport) as other:
        other.wait()
        pid = int(str(mine(host)["worker_pid"]))
        with Client(host, transport) as one:
            one.wait()
            (killed,) = [s for s in host.sessions() if s["worker_pid"] != pid]
            os.kill(killed["worker_pid"], signal.SIGKILL)
            assert one.ended()
        other.wait()
        assert other.make(1, 64, 64) is not None or not other.shared


def test_a_client_that_never_hands_its_socket_over_keeps_nothing(own_host: Host) -> None:
    one = Client.__new__(Client)
    one.shared = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "_hand_over", lambda _: None)
        Client.__init__(one, own_host, context=False)
    assert one.welcome.status is WelcomeStatus.OK
    one.control.sendall(b"\0")  # without a descriptor
    own_host.wait_until(lambda: not own_host.sessions(), "the session to end")
    one.close()


def test_cuda_and_opengl_share_one_vgpu(own_host: Host) -> None:
    own_host.command("vgpu", "create", "both", "--compute", "50", "--memory", "256")
    cuda = own_host.start_client("shm", sys.executable, "-c", STEPPER, GPUPOOL_VGPU="both")
    try:
        wait_for_line(cuda, "running")
        assert step(cuda) == "1"
        with Client(own_host, "shm", vgpu="both") as one:
            assert one.make(1, 4096, 2048) is not None  # 32 MiB
            kinds = {s["kind"]: s for s in own_host.sessions()}
            assert {s["vgpu"] for s in kinds.values()} == {"both"}
            assert kinds["opengl"]["usage"][0]["memory_bytes"] == 32 * MIB
            assert kinds["cuda"]["usage"][0]["memory_bytes"] > 0
            assert one.make(2, 8192, 8192) is None  # 256 MiB, with what CUDA has too many
            for _ in range(50):
                one.say(vtest.SUBMIT, 0)
                one.wait()
            assert step(cuda) == "2"
    finally:
        cuda.kill()
        cuda.communicate(timeout=60)


def test_a_session_outlives_hostd(own_host: Host) -> None:
    with Client(own_host, "shm", vgpu="", memory_mib=128) as one:
        assert one.make(1, 1024, 1024) is not None
        own_host.stop()
        one.wait()
        assert one.make(2, 1024, 1024) is not None
        own_host.start()
        assert mine(own_host)["state"] == "running"
        assert used_mib(own_host) == 8
        one.say(vtest.UNREF, 1)
        one.wait()
        assert used_mib(own_host) == 4
    own_host.wait_until(lambda: not own_host.sessions(), "the session to end")


@pytest.mark.parametrize("capset", [1, 2])
def test_a_guest_is_told_enough_uniform_blocks_for_compute_shaders(
    client: Client, capset: int
) -> None:
    client.say(vtest.GET_CAPS if capset == 1 else vtest.GET_CAPS2)
    size, number = struct.unpack("<II", vtest.receive(client.stream, 8))
    assert number == capset
    caps = vtest.receive(client.stream, size - 1)
    (blocks,) = struct.unpack_from("<I", caps, 296)  # max_uniform_blocks
    assert blocks >= 14


def test_it_is_locked_in_as_a_worker_is(host: Host, client: Client) -> None:
    client.wait()
    session = mine(host)
    status = Path(f"/proc/{session['worker_pid']}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    isolation = " ".join(str(one) for one in session["isolation"])
    if "seccomp" in isolation:
        assert (facts["Seccomp"], facts["NoNewPrivs"]) == ("2", "1")
    if "user" in isolation:
        uids = facts["Uid"].split()
        assert "0" not in uids
        assert f"user {uids[0]}" in isolation
    assert facts["CapEff"] == "0" * 16 or "user" not in isolation
