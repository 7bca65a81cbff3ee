"""vGPUs, GPUs, sessions and operations of a real hostd on this machine."""

from __future__ import annotations

import json
import os
import pty
import pwd
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import HELLO, Daemon, environment, eventually, gpupool, say
from tests.fakes.native import GPU_UUID

POOL = '[pool]\ncdi_dir = "{}/cdi"'


@dataclass
class Here:
    """A hostd, and the command that asks it."""

    daemon: Daemon

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`gpupool WORDS`."""
        return subprocess.run(
            self.command(*words),
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [*gpupool(*words), "--admin-socket", str(self.daemon.admin_socket)]

    @property
    def variables(self) -> dict[str, str]:
        """The environment."""
        folder = self.daemon.folder
        return environment(self.daemon.native, folder, XDG_CONFIG_HOME=str(folder / "config"))

    def json(self, *words: str) -> dict[str, Any]:
        """What it prints with --json."""
        done = self.call(*words, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer.pop("from") == f"hostd at {self.daemon.admin_socket}"
        return answer

    def refused(self, *words: str) -> str:
        """Why."""
        done = self.call(*words)
        assert (done.returncode, done.stdout) == (3, ""), done.stderr
        assert done.stderr.startswith(f"gpupool {' '.join(words[:2])}: ")
        return done.stderr


@pytest.fixture
def here(daemon: Daemon) -> Here:
    """With a GPU that can be made native."""
    daemon.more = {"GPUPOOL_SOFTGPU_FAKE": "stay"}
    daemon.start(POOL.format(daemon.folder))
    return Here(daemon)


def test_a_vgpu_from_its_making_to_its_end(here: Here) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    words = ("--compute", "30", "--memory", "256", "--mode", "reserved", "--user", me)
    (made,) = here.json("vgpu", "create", "trainer", *words)["vgpus"]
    assert made == {
        "id": made["id"],
        "name": "trainer",
        "mode": "reserved",
        "policy": "elastic",
        "compute_percent": 30,
        "memory_mib": 256,
        "priority": 5,
        "state": "ready",
        "gpu": GPU_UUID,
        "node": "",
        "tenant": "",
        "memory_used_mib": 0,
        "sessions": 0,
        "users": [os.geteuid()],
    }
    assert here.json("vgpu", "show", "trainer")["vgpu"] == made
    assert here.json("vgpu", "list") == {"vgpus": [made], "waiting": []}
    listed = here.call("vgpu", "list")
    assert listed.stderr == f"from hostd at {here.daemon.admin_socket}\n"
    header, row = listed.stdout.splitlines()
    assert "TENANT" not in header
    assert me in row.split()
    assert row.split()[:4] == ["trainer", "30%", "256", "MiB"]
    facts = dict(
        line.split(maxsplit=1) for line in here.call("vgpu", "show", "trainer").stdout.splitlines()
    )
    assert (facts["memory"], facts["users"], facts["gpu"]) == ("256 MiB", me, GPU_UUID)
    assert "tenant" not in facts
    (gpu,) = here.json("gpu", "list")["gpus"]
    assert (gpu["compute_free_percent"], gpu["pool"], gpu["healthy"]) == (70, "pooled", True)
    resized = here.call("vgpu", "resize", "trainer", "--compute", "50", "--policy", "hard")
    assert resized.returncode == 0, resized.stderr
    assert "vGPU trainer: compute 50%, memory 256 MiB, hard, priority 5" in resized.stdout
    deleted = here.call("vgpu", "delete", "trainer")
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert here.json("vgpu", "list")["vgpus"] == []
    assert "no vGPUs" in here.call("vgpu", "list").stderr


def test_refusals(here: Here) -> None:
    assert "nobody" in here.refused("vgpu", "show", "nobody")
    assert "70000" in here.refused(
        "vgpu", "create", "big", "--memory", "70000", "--mode", "reserved"
    )
    assert "name a controller" in here.refused(
        "vgpu", "create", "a", "--node", "x", "--label", "a=b"
    )
    assert "--node and --label" in here.refused(
        "vgpu", "create", "a", "--node", "x", "--label", "a=b"
    )
    assert "one vGPU at a time" in here.refused("vgpu", "create", "a", "b")
    assert "there is no GPU GPU-1" in here.refused("gpu", "pool", "GPU-1", "native")
    assert "there is no session 99" in here.refused("session", "end", "99")
    assert "they have numbers" in here.refused("session", "end", "x")
    assert "there is no operation 7" in here.refused("operation", "show", "7")


def test_wrong_command_lines(here: Here) -> None:
    for words, text in (
        (("vgpu", "resize", "a"), "name --compute, --memory, --policy or --priority"),
        (("vgpu", "create", "a", "--priority", "10"), "--priority"),
        (("vgpu", "create", "a", "--label", "b"), "allowed is KEY=VALUE"),
        (("vgpu", "create", "a", "--user", "no-such-user"), "this machine has none"),
        (("gpu", "pool", "GPU-1", "elsewhere"), "not one of"),
        (("gpu", "pool", "GPU-1", "native", "--deadline", "soon"), "allowed is a time"),
        (("gpu", "pool", "GPU-1", "pooled", "--for", "vfio"), "--for belongs to native"),
        (("node", "list"), "both"),
    ):
        done = here.call(*words, *(["--controller", "https://x"] if words[0] == "node" else []))
        assert (done.returncode, done.stdout) == (2, ""), words
        assert text in done.stderr


def test_sessions(here: Here) -> None:
    answer = say(here.daemon.unix, replace(HELLO, compute_percent=25, memory_mib=128).encode())
    number = str(answer.welcome.session_id)
    (session,) = here.json("session", "list")["sessions"]
    assert session["id"] == number
    assert (session["program"], session["gpu"], session["state"]) == ("fake", GPU_UUID, "running")
    assert here.call("session", "list").stdout.splitlines()[1].split()[:2] == [number, "fake"]
    (anonymous,) = here.json("vgpu", "list")["vgpus"]
    assert (anonymous["name"], anonymous["compute_percent"]) == ("", 25)
    assert here.call("session", "end", number).returncode == 0
    eventually(lambda: not here.daemon.sessions(), "the session ends")
    answer.close()


def test_a_gpu_goes_to_the_other_pool_and_back(here: Here) -> None:
    done = here.call("gpu", "pool", GPU_UUID, "native")
    assert done.returncode == 0, done.stderr
    assert f"{GPU_UUID} is native" in done.stdout
    assert "100%" in done.stderr
    (gpu,) = here.json("gpu", "list")["gpus"]
    assert (gpu["pool"], gpu["note"]) == ("native", f"gpupool.dev/gpu={GPU_UUID}")
    assert here.json("gpu", "pool", GPU_UUID, "pooled")["operation"]["state"] == "succeeded"
    (first, second) = here.json("operation", "list")["operations"]
    assert [first["goal"], second["goal"]] == ["native", "pooled"]
    assert here.json("operation", "show", first["id"], "--wait")["operation"] == first
    assert "succeeded" in here.call("operation", "show", second["id"]).stdout


def test_a_terminal_gets_a_bar(here: Here) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        here.command("gpu", "pool", GPU_UUID, "native"),
        env={**here.variables, "TERM": "xterm-256color"},
        stdout=subprocess.PIPE,
        stderr=its,
    ) as moving:
        os.close(its)
        out, _ = moving.communicate(timeout=60)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert moving.returncode == 0, shown
    assert b"is native" in out
    assert "\u2501" in shown  # of Rich's bar
    assert "100%" in shown


def test_a_drain_can_be_left_alone_watched_and_cancelled(here: Here) -> None:
    answer = say(here.daemon.unix, HELLO.encode())
    begun = here.call("gpu", "pool", GPU_UUID, "native", "--no-wait")
    assert begun.returncode == 0
    assert "operation 1 has begun" in begun.stdout
    with subprocess.Popen(
        here.command("operation", "show", "1", "--wait"),
        env=here.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        assert "draining" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, out) == (130, "")
    assert "operation 1 goes on" in err
    assert here.json("operation", "show", "1")["operation"]["state"] == "running"
    with subprocess.Popen(
        here.command("operation", "show", "1", "--wait"),
        env=here.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        watching.stderr.readline()
        cancelled = here.call("operation", "cancel", "1")
        assert cancelled.returncode == 0, cancelled.stderr
        assert "operation 1 is cancelled" in cancelled.stdout
        _, err = watching.communicate(timeout=30)
    assert watching.returncode == 1
    assert "operation 1 (gpu-pool of" in err
    answer.close()


def test_who_watches_an_operation_sits_out_a_restart_of_hostd(here: Here) -> None:
    answer = say(here.daemon.unix, HELLO.encode())
    assert here.call("gpu", "pool", GPU_UUID, "native", "--no-wait").returncode == 0
    with subprocess.Popen(
        here.command("operation", "show", "1", "--wait", "--json"),
        env=here.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stderr is not None
        assert "draining" in watching.stderr.readline()
        here.daemon.stop(kill=True)
        assert "no answer, trying again" in watching.stderr.readline()
        here.daemon.start(POOL.format(here.daemon.folder))
        answer.close()
        for session in here.daemon.sessions():
            here.call("session", "end", str(session["id"]), "--kill")
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert json.loads(out)["operation"]["state"] == "succeeded"


def test_without_a_hostd(native: Path, short_path: Path) -> None:
    variables = environment(native, short_path, XDG_CONFIG_HOME=str(short_path))
    for words, code, text in (
        (("vgpu", "list"), 1, "no hostd is running on this machine"),
        (("vgpu", "list", "--admin-socket", "/nowhere"), 1, "/nowhere: No such file"),
        (("node", "list"), 2, "none is named: give --controller URL"),
        (("events",), 2, "none is named: give --controller URL"),
    ):
        done = subprocess.run(
            gpupool(*words), env=variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert text in done.stderr


def test_completion_of_names(here: Here) -> None:
    here.json("vgpu", "create", "trainer", "--compute", "1")
    socket = here.daemon.admin_socket
    for line, expected in (
        (f"gpupool vgpu show --admin-socket {socket} tr", ["trainer"]),
        (f"gpupool gpu pool --admin-socket {socket} ", [GPU_UUID]),
        ("gpupool vgpu show --admin-socket /nowhere tr", []),
        ("gpupool run --vgpu tr", ["trainer"]),  # of this user's own hostd, which it is
    ):
        done = subprocess.run(
            gpupool(),
            env={
                **here.variables,
                "_GPUPOOL_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == expected
