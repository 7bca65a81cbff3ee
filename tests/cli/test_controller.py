"""The command against a real controller: uvicorn in its own process, SQLite in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.fakes.daemon import ROOT, eventually, gpupool

pytest.importorskip("fastapi", reason="the controller's packages are not installed")

from gpupool.controller.core.node import SessionReport
from gpupool.controller.store.sql import Settings, SqlStore
from tests.controller.pool import FakeNode, Pool


@dataclass
class Controller:
    """One, and what a user of it has at hand."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> str:
        """Its URL."""
        return f"sqlite:///{self.folder}/controller.db"

    def start(self) -> None:
        """By `gpupool controller`; until it serves."""
        (self.folder / "controller.toml").write_text(
            f'listen = "127.0.0.1:{self.port}"\n[database]\nurl = "{self.database}"\n'
            f'[bootstrap]\ntoken_file = "{self.folder}/admin-token"\n'
        )
        with (self.folder / "controller.log").open("ab") as log:
            self.process = subprocess.Popen(
                gpupool("controller", "--config", str(self.folder / "controller.toml")),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=log,
            )
        eventually(lambda: self.call("tenant", "list").returncode == 0, "it serves", 60)

    def stop(self) -> None:
        """As systemd does."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=30)

    def call(self, *words: str, who: str = "admin-token") -> subprocess.CompletedProcess[str]:
        """`gpupool WORDS`, with a token of this folder."""
        return subprocess.run(
            self.command(*words, who=who),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def command(self, *words: str, who: str = "admin-token") -> list[str]:
        """The command line."""
        return [*gpupool(*words), "--token-file", str(self.folder / who)]

    @property
    def environment(self) -> dict[str, str]:
        """Names the controller."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "GPUPOOL_CONTROLLER": self.url,
            "XDG_CONFIG_HOME": str(self.folder),
        }

    def json(self, *words: str, who: str = "admin-token") -> dict[str, Any]:
        """What it prints with --json."""
        done = self.call(*words, "--json", who=who)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer.pop("from") == f"controller {self.url}"
        return answer

    def node(self, name: str, gpus: int) -> FakeNode:
        """A node that registers and does all it is told when it reports."""
        node = Pool(SqlStore(Settings(self.database))).node(name, gpus, rack="a")
        node.report()
        return node


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """A controller with the tenant acme, and its token acme.token."""
    one = Controller(tmp_path_factory.mktemp("controller"), free_port())
    try:
        one.start()
        assert one.call("tenant", "create", "acme", "--compute", "150").returncode == 0
        words = ("--role", "tenant", "--tenant", "acme", "--out", str(one.folder / "acme.token"))
        done = one.call("token", "create", "acme", *words)
        assert done.returncode == 0, done.stderr
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def node(controller: Controller) -> FakeNode:
    """Two GPUs."""
    return controller.node("gpu7", 2)


def test_a_vgpu_from_its_making_to_its_end(controller: Controller, node: FakeNode) -> None:
    words = ("--compute", "50", "--memory", "2G", "--mode", "reserved", "--policy", "hard")
    made = controller.json("vgpu", "create", "trainer", *words, who="acme.token")["vgpus"]
    assert [one["name"] for one in made] == ["trainer"]
    node.report()
    shown = controller.json("vgpu", "show", "trainer", who="acme.token")["vgpu"]
    assert shown == {
        "id": made[0]["id"],
        "name": "trainer",
        "mode": "reserved",
        "policy": "hard",
        "compute_percent": 50,
        "memory_mib": 2048,
        "priority": 5,
        "state": "ready",
        "gpu": shown["gpu"],
        "node": "gpu7",
        "tenant": "acme",
        "memory_used_mib": 0,
        "sessions": 0,
        "users": [],
    }
    assert shown["gpu"] in node.uuids
    resized = controller.call("vgpu", "resize", "trainer", "--compute", "20%")
    assert resized.returncode == 0, resized.stderr
    assert "vGPU trainer: compute 20%, memory 2048 MiB, hard" in resized.stdout
    listed = controller.call("vgpu", "list")
    assert listed.stderr == f"from controller {controller.url}\n"
    header, row = listed.stdout.splitlines()
    assert header.split()[0] == "NAME"
    assert row.split()[:3] == ["trainer", "20%", "2048"]
    with subprocess.Popen(
        controller.command("vgpu", "delete", "trainer"),
        env=controller.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as deleting:
        eventually(
            lambda: (node.report(), deleting.poll() is not None)[1], "the node says it is gone", 60
        )
        out, err = deleting.communicate(timeout=10)
    assert deleting.returncode == 0, err
    assert "deleted vGPU trainer" in out
    assert controller.json("vgpu", "list")["vgpus"] == []


def test_refusals_are_exit_code_3_and_say_why(controller: Controller, node: FakeNode) -> None:
    assert node.report()
    for words, text in (
        (("vgpu", "show", "nobody"), "there is no vGPU nobody that this token may see"),
        (("vgpu", "create", "big", "--compute", "200"), "from 0 to 100"),
        (
            ("vgpu", "create", "a", "--mode", "reserved", "--node", "gpu9"),
            "on another node than the one asked for",
        ),
        (("vgpu", "create", "a", "--gpu", "GPU-1"), "--user and --gpu are for a standalone hostd"),
        (("session", "end", "7"), "there is no session 7"),
        (("operation", "cancel", "7"), "There is no operation '7'"),
        (("token", "list"), "This needs a token of the role admin"),
        (("node", "list"), "This needs a token of the role admin or operator"),
    ):
        done = controller.call(*words, who="acme.token")
        assert (done.returncode, done.stdout) == (2 if "200" in words else 3, ""), words
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_over_the_quota(controller: Controller, node: FakeNode) -> None:
    words = ("--compute", "100", "--mode", "reserved")
    done = controller.call("vgpu", "create", "x", "y", *words, who="acme.token")
    assert (done.returncode, done.stdout) == (3, "")
    assert "quota of tenant 'acme'" in done.stderr
    assert node.report()


def test_nodes_and_gpus(controller: Controller, node: FakeNode) -> None:
    (one,) = controller.json("node", "list")["nodes"]
    assert (one["name"], one["state"], one["gpus"]) == ("gpu7", "ready", 2)
    assert one["labels"] == {"rack": "a"}
    assert controller.call("node", "cordon", "gpu7").returncode == 0
    assert controller.json("node", "list")["nodes"][0]["cordoned"] is True
    assert "cordoned" in controller.call("node", "list").stdout
    assert controller.call("node", "uncordon", "gpu7").returncode == 0
    gpus = controller.json("gpu", "list")["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == node.uuids
    assert gpus[0]["compute_free_percent"] == 100
    refused = controller.call("node", "remove", "gpu7")
    assert refused.returncode == 3


def test_a_gpu_goes_to_the_other_pool(controller: Controller, node: FakeNode) -> None:
    done = controller.json("gpu", "pool", node.uuids[1], "native", "--deadline", "5m", "--no-wait")
    operation = done["operation"]
    assert (operation["kind"], operation["state"]) == ("gpu.pool", "running")
    with subprocess.Popen(
        controller.command("operation", "show", operation["id"], "--wait", "--json"),
        env=controller.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        time.sleep(1)
        node.report()
        out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert json.loads(out)["operation"]["state"] == "succeeded"
    assert controller.json("gpu", "list")["gpus"][1]["pool"] == "native"
    ids = [one["id"] for one in controller.json("operation", "list")["operations"]]
    assert operation["id"] in ids
    back = controller.json("gpu", "pool", node.uuids[1], "pooled", "--no-wait")["operation"]
    node.report()
    assert controller.json("operation", "show", back["id"])["operation"]["state"] == "succeeded"
    again = controller.json("gpu", "pool", node.uuids[1], "native", "--no-wait")["operation"]
    cancelled = controller.json("operation", "cancel", again["id"])["operation"]
    assert (cancelled["state"], cancelled["error"]) == ("failed", "cancelled")
    node.report()
    assert controller.json("gpu", "list")["gpus"][1]["pool"] == "pooled"


def test_sessions(controller: Controller, node: FakeNode) -> None:
    words = ("--compute", "10", "--mode", "reserved")
    (vgpu,) = controller.json("vgpu", "create", "busy", *words, who="acme.token")["vgpus"]
    node.report()
    node.sessions.append(SessionReport("31", vgpu["id"], vgpu["gpu"], "python3", 1_000))
    node.report()
    (session,) = controller.json("session", "list", who="acme.token")["sessions"]
    assert (session["id"], session["program"], session["vgpu"]) == ("gpu7/31", "python3", "busy")
    assert (session["gpu"], session["since"]) == (vgpu["gpu"], "1970-01-01T00:00:01.000Z")
    refused = controller.call("vgpu", "delete", "busy", who="acme.token")
    assert refused.returncode == 3
    assert "is used by 1 sessions" in refused.stderr
    unknown = controller.call("session", "end", "gpu7/32", who="acme.token")
    assert (unknown.returncode, "no session gpu7/32" in unknown.stderr) == (3, True)
    begun = controller.json("session", "end", "gpu7/31", "--no-wait", who="acme.token")
    assert [one["kind"] for one in begun["operations"]] == ["session.end"]
    (session,) = controller.json("session", "list")["sessions"]
    assert session["state"] == "ending"
    again = controller.json("session", "end", "31", "--no-wait")
    assert again["operations"][0]["id"] == begun["operations"][0]["id"]
    node.sessions.clear()
    node.report()
    done = controller.call("operation", "show", again["operations"][0]["id"], "--wait")
    assert (done.returncode, "succeeded" in done.stdout) == (0, True), done.stderr
    assert controller.call("vgpu", "delete", "busy", "--no-wait").returncode == 0
    node.report()


def test_a_node_is_drained(controller: Controller, node: FakeNode) -> None:
    begun = controller.json("node", "drain", "gpu7", "--deadline", "10m", "--no-wait")["operation"]
    assert (begun["kind"], begun["state"]) == ("node.drain", "running")
    (shown,) = controller.json("node", "list")["nodes"]
    assert shown["drain"] == "draining"
    assert "draining" in controller.call("node", "list").stdout
    node.report()
    done = controller.call("operation", "show", begun["id"], "--wait")
    assert done.returncode == 0, done.stderr
    assert "drained" in controller.call("node", "list").stdout
    assert controller.call("node", "uncordon", "gpu7").returncode == 3
    assert controller.call("node", "undrain", "gpu7").returncode == 0
    node.report()
    (shown,) = controller.json("node", "list")["nodes"]
    assert (shown["drain"], shown["cordoned"]) == ("none", False)


def test_run_dials_the_node_that_the_controller_names(
    controller: Controller, node: FakeNode, native: Path
) -> None:
    words = ("--compute", "5", "--mode", "reserved")
    (vgpu,) = controller.json("vgpu", "create", "dial", *words, who="acme.token")["vgpus"]
    assert vgpu["node"] == "gpu7"
    home = controller.folder / "home" / "gpupool"
    home.mkdir(parents=True)
    (home / "cli.toml").write_text(
        f'controller = "{controller.url}"\ntoken_file = "{controller.folder}/acme.token"\n'
    )
    variables = {
        **controller.environment,
        "XDG_CONFIG_HOME": str(home.parent),
        "GPUPOOL_NATIVE_DIR": str(native),
    }

    def run(*words: str, url: str = controller.url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            gpupool("run", "--controller", url, "--print-env", *words),
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = run("--vgpu", "dial")
    assert done.returncode == 0, done.stderr
    assert "export GPUPOOL_ENDPOINT=tls://gpu7:9179\n" in done.stdout
    assert "export GPUPOOL_VGPU=dial\n" in done.stdout
    cases: tuple[tuple[tuple[str, ...], str, int, str], ...] = (
        (("--vgpu", "nobody"), controller.url, 125, "there is no vGPU nobody"),
        (("--vgpu", "dial"), "https://127.0.0.1:1", 125, "must name this controller and its"),
        ((), controller.url, 2, "--controller needs --vgpu"),
        (("--vgpu", "a", "--endpoint", "unix:/x"), controller.url, 2, "and no --endpoint"),
    )
    for wrong, url, code, text in cases:
        refused = run(*wrong, url=url)
        assert (refused.returncode, refused.stdout) == (code, "")
        assert text in refused.stderr
    assert controller.call("vgpu", "delete", "dial", "--no-wait").returncode == 0
    node.report()


def test_tokens(controller: Controller) -> None:
    path = controller.folder / "ci.token"
    made = controller.json(
        *("token", "create", "ci", "--role", "operator", "--days", "3", "--out", str(path))
    )
    secret = path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in json.dumps(made)
    listed = controller.json("token", "list")["tokens"]
    assert {one["name"]: one["role"] for one in listed} == {
        "bootstrap": "admin",
        "acme": "tenant",
        "ci": "operator",
    }
    assert {one["tenant"] for one in listed} == {"", "acme"}
    assert secret not in controller.call("token", "list").stdout
    again = controller.call("token", "create", "ci2", "--role", "admin", "--out", str(path))
    assert again.returncode == 1
    assert "File exists" in again.stderr
    assert controller.call("gpu", "list", who="ci.token").returncode == 0
    assert controller.call("token", "revoke", "ci").returncode == 0

    # A token that was good a moment ago is trusted for up to a second (docs/controller.md).
    def refusal() -> subprocess.CompletedProcess[str] | None:
        answer = controller.call("gpu", "list", who="ci.token")
        return answer if answer.returncode == 3 else None

    refused = eventually(refusal, "refused", 5)
    assert f"The token is the one in {path}" in refused.stderr


def test_a_token_that_is_refused_leaves_no_file(controller: Controller) -> None:
    path = controller.folder / "none.token"
    words = ("--role", "tenant", "--tenant", "nobody", "--out", str(path))
    assert controller.call("token", "create", "x", *words).returncode == 3
    assert not path.exists()


def test_tenants(controller: Controller) -> None:
    made = controller.json("tenant", "create", "small", "--vgpus", "1", "--memory", "1G")["tenant"]
    assert made["quota"] == {"vgpus": 1, "compute_percent": None, "memory_mib": 1024}
    changed = controller.json("tenant", "quota", "small", "--compute", "50")["tenant"]
    assert changed["quota"] == {"vgpus": None, "compute_percent": 50, "memory_mib": None}
    assert "0 of 50%" in controller.call("tenant", "list").stdout
    assert controller.call("tenant", "delete", "small").returncode == 0
    assert [one["name"] for one in controller.json("tenant", "list")["tenants"]] == ["acme"]


def test_events_are_followed_across_a_restart(controller: Controller) -> None:
    with subprocess.Popen(
        controller.command("events", "--follow", "--since", "0", "--json"),
        env=controller.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        assert first["number"] == 1
        controller.stop()
        controller.start()
        words = ("--mode", "on-demand", "--compute", "1")
        controller.json("vgpu", "create", "late", *words, who="acme.token")
        numbers = [first["number"]]
        while True:
            event = json.loads(following.stdout.readline())
            numbers.append(event["number"])
            if event["kind"] == "vgpu.created" and "late" in event["message"]:
                break
        following.terminate()
        following.communicate(timeout=20)
    assert numbers == sorted(set(numbers))
    kept = controller.call("events", "--since", str(numbers[-2]))
    assert kept.stdout.startswith(f"{numbers[-1]} ")
    assert controller.call("vgpu", "delete", "late").returncode == 0


def test_completion_asks_the_controller(controller: Controller) -> None:
    controller.json("vgpu", "create", "longname", "--compute", "1", who="acme.token")
    (controller.folder / "gpupool").mkdir()
    (controller.folder / "gpupool" / "cli.toml").write_text(
        f'controller = "{controller.url}"\ntoken_file = "{controller.folder}/acme.token"\n'
    )
    line = "gpupool vgpu show lo"
    done = subprocess.run(
        [sys.executable, "-m", "gpupool.cli"],
        env={
            **controller.environment,
            "_GPUPOOL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["longname"]
    assert controller.call("vgpu", "delete", "longname").returncode == 0
