"""Programs in Kata containers use their container's vGPU, and no other's.

The hypervisor is stood in for by a process and its sockets (`tests/fakes/sandbox.py`), the vsock
device by a library in the client (bench/native/vsock.cpp); the rest is real: hostd, `gpupool kata`,
the hooks, the guest runtime, workers. The CDI file is all that tells the containers what they have.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from tests.conftest import Host, end_host, make_host
from tests.e2e.observe import STEPPER, step, wait_for_line
from tests.e2e.test_containers import PROGRAM, needs_crun, run_container
from tests.e2e.test_vms import MEMORY
from tests.fakes.sandbox import GO, RUST, Container, Sandbox

pytestmark = pytest.mark.softgpu
MEMORY_MIB = 256
# What NVML sees, before and after CUDA began.
NVML = """
import ctypes
nvml = ctypes.CDLL("libnvidia-ml.so.1")
name = ctypes.create_string_buffer(64)
handle, count = ctypes.c_void_p(), ctypes.c_uint()
print(nvml.nvmlInit_v2(), nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)), count.value)
"""


class Pods:
    """Sandboxes on one hostd."""

    def __init__(self, host: Host, device: Path) -> None:
        self.host = host
        self._device = device
        self._running: list[subprocess.Popen[str]] = []
        self._sandboxes: list[Sandbox] = []

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """Asks the admin socket."""
        return admin.call(self.host.folder / "admin.sock", method, **more)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`gpupool kata WORDS`."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "gpupool.cli", "kata", *words),
                *("--admin-socket", str(self.host.folder / "admin.sock")),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **self.host.environment},
        )

    def allow(self, name: str, *words: str, percent: int = 25) -> dict[str, Any]:
        """What a container with that device gets."""
        self.told(name, *words, percent=percent)
        content = json.loads((self.cdi / f"gpupool.dev-kata_{name}.json").read_text())
        edits: dict[str, Any] = content["devices"][0]["containerEdits"]
        return edits

    @property
    def cdi(self) -> Path:
        """The folder of CDI files."""
        return self.host.folder / "cdi"

    def told(self, name: str, *words: str, percent: int = 25) -> str:
        """What `gpupool kata allow` says."""
        size = ("--compute", str(percent), "--memory", f"{MEMORY_MIB}M")
        done = self.cli("allow", name, *size, "--cdi-folder", str(self.cdi), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sandbox(self, pod: str = "trainer-0", **more: Any) -> Sandbox:
        """One that runs."""
        one = Sandbox(self.host.folder / "vm", pod, **more)
        one.start()
        self._sandboxes.append(one)
        return one

    def variables(self, sandbox: Sandbox, edits: dict[str, Any] | None) -> dict[str, str]:
        """Of a program in a container with these edits; None: in one without a device."""
        link = sandbox.place / "port-9177"  # the name that the stand-in looks for
        if not link.is_symlink():
            link.symlink_to(f"{sandbox.vsock}_9177")
        inside = {"LD_PRELOAD": str(self._device), "VSOCK_FOLDER": str(sandbox.place)}
        if edits is None:
            return {**inside, "GPUPOOL_ENDPOINT": "vsock://2:9177", "GPUPOOL_TOKEN_FILE": ""}
        given = variables_of(edits)
        # There is no mount: the token is read where the container's folder comes from.
        for mount in edits["mounts"]:
            path = Path(given["GPUPOOL_TOKEN_FILE"])
            if mount["containerPath"] == str(path.parent):
                given["GPUPOOL_TOKEN_FILE"] = f"{mount['hostPath']}/{path.name}"
        return {**inside, **given}

    def run(
        self, sandbox: Sandbox, edits: dict[str, Any] | None, text: str = MEMORY, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """A program in it, to its end."""
        variables = {**self.variables(sandbox, edits), **more}
        return self.host.run("vsock", sys.executable, "-c", text, timeout_s=120, **variables)

    def running(self, sandbox: Sandbox, edits: dict[str, Any]) -> subprocess.Popen[str]:
        """A program in it that has its vGPU and answers."""
        variables = self.variables(sandbox, edits)
        one = self.host.start_client("vsock", sys.executable, "-c", STEPPER, **variables)
        self._running.append(one)
        wait_for_line(one, "running")
        assert step(one) == "1"
        return one

    def refused(
        self, sandbox: Sandbox, edits: dict[str, Any] | None, text: str, **more: str
    ) -> None:
        """A program in it gets nothing, and is told that."""
        done = self.run(sandbox, edits, **more)
        assert done.returncode != 0
        assert text in done.stderr, done.stderr

    def end(self) -> None:
        """All of them."""
        for one in self._running:
            if one.poll() is None:
                one.kill()
            with contextlib.suppress(ValueError):  # was waited for
                one.communicate(timeout=60)
        for sandbox in self._sandboxes:
            sandbox.stop()


def variables_of(edits: dict[str, Any]) -> dict[str, str]:
    """Of a container with these edits."""
    return dict(each.split("=", 1) for each in edits["env"])


@pytest.fixture
def pods(device: Path) -> Iterator[Pods]:
    with tempfile.TemporaryDirectory(prefix="gpupool-t-") as name:
        host = make_host(Path(name), more='[vm]\nrelay = "no"\n')
        one = Pods(host, device)
        yield one
        one.end()
        end_host(host)


def begun(container: Container, edits: dict[str, Any], when: str = GO) -> Container:
    """A container that has begun."""
    done = container.begin(edits, when)
    assert (done.returncode, done.stderr) == (0, "")
    return container


def test_a_container_has_its_devices_vgpu_with_its_limits(pods: Pods) -> None:
    edits = pods.allow("trainer")
    sandbox = pods.sandbox()
    one = begun(sandbox.container("train"), edits)
    begun(one, edits, RUST)  # the second of both hooks is no error
    for port in (9177, 9178):
        path = Path(f"{sandbox.vsock}_{port}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    done = pods.run(sandbox, edits)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(MEMORY_MIB), "2", "0"]  # CUDA_ERROR_OUT_OF_MEMORY
    program = pods.running(sandbox, edits)
    (session,) = pods.host.sessions()
    assert (session["vgpu"], session["transport"]) == ("trainer", "vsock")
    listed = pods.cli("list").stdout
    assert "research/trainer-0/train" in listed
    assert "cloud-hypervisor" in listed
    assert pods.call("vm_list")["vms"] == []  # it is no domain
    assert one.end(edits).returncode == 0
    program.communicate("go\n", timeout=60)
    assert program.returncode != 0  # its session has ended
    assert pods.call("vgpu_list")["vgpus"] == []
    assert not Path(f"{sandbox.vsock}_9177").exists()
    assert one.end(edits).returncode == 0  # again


def test_who_has_no_token_or_anothers_gets_nothing(pods: Pods) -> None:
    edits, others = pods.allow("trainer"), pods.allow("other")
    a, b = pods.sandbox(), pods.sandbox("other-0")
    begun(a.container("train"), edits)
    begun(b.container("main"), others)
    stolen = pods.variables(b, others)["GPUPOOL_TOKEN_FILE"]
    old = pods.host.folder / "old"
    shutil.copy(pods.variables(a, edits)["GPUPOOL_TOKEN_FILE"], old)
    old_token = {"GPUPOOL_TOKEN_FILE": str(old)}
    assert pods.run(a, edits, **old_token).returncode == 0
    pods.refused(a, None, "the client sent no token")  # a side-car of the same pod
    pods.refused(a, edits, "that no container of this sandbox has", GPUPOOL_TOKEN_FILE=stolen)
    pods.refused(a, edits, "inside a virtual machine", GPUPOOL_COMPUTE_PERCENT="90")
    pods.refused(a, edits, "has no vGPU 'other'", GPUPOOL_VGPU="other")
    (wrong := pods.host.folder / "wrong").write_text("x" * 48)
    pods.refused(a, edits, "that no container of this sandbox has", GPUPOOL_TOKEN_FILE=str(wrong))
    pods.call("kata_release", name="trainer")
    begun(a.container("train"), edits)  # made anew, with another token
    pods.refused(a, edits, "that no container of this sandbox has", **old_token)
    assert pods.run(a, edits).returncode == 0


def test_containers_of_one_pod_have_vgpus_of_their_own(pods: Pods) -> None:
    first, second = pods.allow("first"), pods.allow("second", percent=50)
    sandbox = pods.sandbox()
    a, b = begun(sandbox.container("a"), first), begun(sandbox.container("b"), second)
    ends, stays = pods.running(sandbox, first), pods.running(sandbox, second)
    shares = {one["vgpu"]: one["compute_percent"] for one in pods.host.sessions()}
    assert shares == {"first": 25, "second": 50}
    assert len({one["owner"] for one in pods.host.sessions()}) == 2
    assert a.end(first).returncode == 0
    ends.communicate("go\n", timeout=60)
    assert ends.returncode != 0
    assert step(stays) == "2"  # the sandbox's door stays open for the other one
    assert pods.run(sandbox, second).returncode == 0
    assert b.end(second).returncode == 0


def test_two_pods_never_see_each_other(pods: Pods) -> None:
    first, second = pods.allow("first"), pods.allow("second")
    a, b = pods.sandbox("a"), pods.sandbox("b")
    begun(a.container("main"), first)
    begun(b.container("main"), second)
    pods.running(a, first)
    pods.running(b, second)
    sessions = pods.host.sessions()
    users = {session["isolation"][0] for session in sessions}
    assert len(users) == 2 or "user" not in users.pop()
    assert len({session["owner"] for session in sessions}) == 2
    a.stop()
    pods.host.wait_until(
        lambda: [one["vgpu"] for one in pods.host.sessions()] == ["second"], "the first one's end"
    )


def test_a_sandbox_that_is_gone_leaves_nothing_and_its_place_is_used_again(pods: Pods) -> None:
    edits = pods.allow("trainer")
    sandbox = pods.sandbox()
    begun(sandbox.container("train"), edits)
    token = Path(pods.variables(sandbox, edits)["GPUPOOL_TOKEN_FILE"]).read_bytes()
    program = pods.running(sandbox, edits)
    sandbox.stop()  # killed: no hook tells of it
    pods.host.wait_until(lambda: not pods.host.sessions(), "the end of its session")
    program.communicate("go\n", timeout=60)
    assert program.returncode != 0
    assert pods.call("kata_list")["devices"][0]["use"] is None
    assert Path(pods.variables(sandbox, edits)["GPUPOOL_TOKEN_FILE"]).read_bytes() != token
    # The same folder, with a socket of ours that a crash has left.
    Path(f"{sandbox.vsock}_9177").unlink(missing_ok=True)
    sandbox.start()
    begun(sandbox.container("train"), edits)
    assert pods.run(sandbox, edits).returncode == 0


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_hostd_restarts_while_a_sandbox_lives(pods: Pods, kill: bool) -> None:
    lives, dies = pods.allow("lives"), pods.allow("dies")
    a, b = pods.sandbox("a"), pods.sandbox("b")
    begun(a.container("main"), lives)
    begun(b.container("main"), dies)
    one = pods.running(a, lives)
    process = pods.host.process
    assert process is not None
    process.kill() if kill else process.terminate()
    process.wait(timeout=20)
    assert step(one) == "2"
    b.stop()  # while no hostd is there
    pods.host.start()
    assert step(one) == "3"
    uses = {each["name"]: each["use"] for each in pods.call("kata_list")["devices"]}
    assert uses["dies"] is None
    assert uses["lives"]["container"]["pod"] == "a"
    assert pods.run(a, lives).returncode == 0
    assert [vgpu["name"] for vgpu in pods.call("vgpu_list")["vgpus"]] == ["lives"]
    a.stop()
    pods.host.wait_until(lambda: not pods.host.sessions(), "the end of its session")


def test_a_hook_says_what_is_wrong(pods: Pods) -> None:
    words = ("--namespace", "research", "--pod", "trainer-*", "--json")
    assert '"changed": true' in pods.told("trainer", *words, "--check")
    assert pods.call("kata_list")["devices"] == []
    edits = pods.allow("trainer", *words)
    assert '"changed": false' in pods.told("trainer", *words)
    assert '"changed": true' in pods.told("trainer", *words, "--policy", "hard", "--check")
    sandbox, other = pods.sandbox(), pods.sandbox("web-0")
    done = other.container("main").begin(edits)
    assert done.returncode == 1
    assert "device trainer is for pod 'trainer-*', and pod 'web-0' asks for it" in done.stderr
    begun(sandbox.container("train"), edits)
    second = pods.sandbox("trainer-1").container("train").begin(edits)
    assert second.returncode == 1
    assert "used by container research/trainer-0/train" in second.stderr
    restarted = begun(sandbox.container("train"), edits)  # the same one of the pod, made anew
    assert pods.run(sandbox, edits).returncode == 0
    in_use = pods.cli("disallow", "trainer", "--cdi-folder", str(pods.host.folder / "cdi"))
    assert in_use.returncode == 3
    assert "is used by container research/trainer-0/train" in in_use.stderr
    assert restarted.end(edits).returncode == 0
    assert pods.cli("release", "trainer").returncode == 3
    gone = pods.cli("disallow", "trainer", "--cdi-folder", str(pods.host.folder / "cdi"))
    assert gone.returncode == 0, gone.stderr
    assert not list((pods.host.folder / "cdi").iterdir())
    assert not (pods.host.folder / "kata" / "trainer").exists()
    unknown = sandbox.container("train").begin(edits)
    assert "nobody on this host has allowed a Kata device 'trainer'" in unknown.stderr


@needs_crun
def test_the_edits_are_enough_for_a_container(pods: Pods, tmp_path: Path) -> None:
    """A real container, with the edits' mounts and variables and the stand-in for the device."""
    edits = pods.allow("trainer")
    sandbox = pods.sandbox()
    one = begun(sandbox.container("train", uid=1000), edits)
    stand_in = {
        name: value
        for name, value in pods.variables(sandbox, edits).items()
        if name in ("LD_PRELOAD", "VSOCK_FOLDER")
    }
    places = [str(sandbox.place), stand_in["LD_PRELOAD"]]
    inside = {
        "env": [*edits["env"], *(f"{name}={value}" for name, value in stand_in.items())],
        "mounts": [
            *edits["mounts"],
            *({"hostPath": one, "containerPath": one, "options": ["bind"]} for one in places),
        ],
    }
    read = ("cat", variables_of(edits)["GPUPOOL_TOKEN_FILE"])
    code, token = run_container(tmp_path / "owner", inside, *read, user=1000)
    assert (code, len(token)) == (0, 49), token
    code, output = run_container(tmp_path / "other", inside, *read, user=1001)
    assert code != 0
    assert "Permission denied" in output
    write = ("sh", "-c", f"echo x > {read[1]}")
    code, output = run_container(tmp_path / "writes", inside, *write)
    assert code != 0
    assert "Read-only file system" in output
    assert one.end(edits).returncode == 0
    begun(sandbox.container("train", uid=0), edits)
    code, output = run_container(tmp_path / "with", inside, sys.executable, "-c", PROGRAM)
    assert (code, output.splitlines()[-1:]) == (0, [f"total {MEMORY_MIB}"]), output


def test_nvml_in_a_container_is_its_own(pods: Pods) -> None:
    edits = pods.allow("trainer")
    sandbox = pods.sandbox()
    begun(sandbox.container("train"), edits)
    done = pods.run(sandbox, edits, NVML)
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
    without = pods.run(sandbox, None, NVML)
    assert without.stdout.split()[0] != "0"


def test_the_agents_channel_takes_the_same_tokens(pods: Pods) -> None:
    edits = pods.allow("trainer")
    sandbox = pods.sandbox()
    begun(sandbox.container("train"), edits)
    token = Path(pods.variables(sandbox, edits)["GPUPOOL_TOKEN_FILE"]).read_text().strip()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(f"{sandbox.vsock}_9178")
        lines = connection.makefile("rb")

        def ask(**more: Any) -> dict[str, Any]:
            connection.sendall(json.dumps({"method": "terms", **more}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(lines.readline())
            return answer

        assert [one["name"] for one in ask(token=token)["vgpus"]] == ["trainer"]
        for wrong in ({}, {"token": "x"}, {"token": 3}, {"token": None}):
            answer = ask(**wrong)
            assert not answer["ok"]
            assert "only a container that was given a CDI device" in answer["error"]
