"""Virtual machines through a real hostd: the admin API, the sockets, the agent's channel, restarts.

Programs in a VM are stood in for by clients of its `vsock_9177`, which is all that hostd sees of
them.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli import admin
from gpupool.cli.admin import AdminError
from gpupool.wire.hello import Hello, TransportKind, WelcomeStatus
from tests.fakes.daemon import HELLO, Answer, Daemon, eventually, say

CONFIG = '[limits]\nhello_timeout_s = 60\n[vm]\nrelay = "no"\ngroup = "root"'
IN_VM = replace(HELLO, transport=TransportKind.VSOCK)


class Domains:
    """Domains of one hostd. Their UUIDs are new ones: windows of all tests are in one folder."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.a, self.b = str(uuid.uuid4()), str(uuid.uuid4())

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """A request to the admin API."""
        return admin.call(self.daemon.admin_socket, method, **more)

    def prepare(self, domain: str, percent: int = 25, **more: Any) -> dict[str, Any]:
        """Before its start."""
        self.call("vm_allow", uuid=domain, compute_percent=100, vgpus=4, memory_mib=1000)
        vgpu = {"compute_percent": percent, "memory_mib": 64}
        return self.call(
            "vm_prepare", uuid=domain, name=f"web-{domain[:4]}", **{"vgpus": [vgpu], **more}
        )

    def socket(self, domain: str, port: int = 9177) -> str:
        """Where its programs come out."""
        return f"unix:{self.daemon.folder}/vms/{domain}/vsock_{port}"

    def window(self, domain: str) -> Path:
        """Its window."""
        return Path(f"/dev/shm/gpupool-{domain}")  # noqa: S108

    def client(self, domain: str, hello: Hello = IN_VM) -> Answer:
        """A program in it."""
        return say(self.socket(domain), hello.encode())

    def agent(self, domain: str, *requests: Any) -> list[dict[str, Any]]:
        """What its agent is told."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(self.socket(domain, 9178).removeprefix("unix:"))
            answers = []
            with connection.makefile("rb") as lines:
                for request in requests:
                    raw = request if isinstance(request, bytes) else json.dumps(request).encode()
                    connection.sendall(raw + b"\n")
                    answers.append(json.loads(lines.readline() or b"null"))
            return answers


@pytest.fixture
def domains(daemon: Daemon) -> Iterator[Domains]:
    daemon.start(CONFIG)
    one = Domains(daemon)
    yield one
    for domain in (one.a, one.b):
        one.window(domain).unlink(missing_ok=True)


def test_from_prepare_to_release(domains: Domains) -> None:
    a = domains.a
    answer = domains.prepare(a, window_mib=64)
    folder = domains.daemon.folder / "vms" / a
    assert answer == {"cid": 0, "folder": str(folder), "window": str(domains.window(a))}
    assert domains.window(a).stat().st_size == 64 << 20
    assert stat.S_IMODE(domains.window(a).stat().st_mode) == 0o660
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2750
    sockets = sorted(path.name for path in folder.iterdir())
    assert sockets == ["vsock_9177", "vsock_9178"]
    assert domains.prepare(a, window_mib=64) == answer  # again
    domains.call("vm_started", uuid=a, cid=77)
    session = domains.client(a)
    assert session.welcome.status is WelcomeStatus.OK, session.welcome.text
    (shown,) = domains.daemon.sessions()
    assert (shown["vgpu"], shown["owner"]) == (f"web-{a[:4]}", f"vm {a}")
    vm = domains.call("vm_show", uuid=a)["vm"]
    assert (vm["state"], vm["cid"], vm["sessions"]) == ("started", 77, [shown["id"]])
    assert domains.call("vm_release", uuid=a) == {"released": True}
    assert session.connection.recv(1) == b""  # its session has ended
    assert domains.daemon.sessions() == []
    assert not folder.exists()
    assert not domains.window(a).exists()
    assert domains.call("vgpu_list")["vgpus"] == []
    assert domains.call("vm_release", uuid=a) == {"released": False}
    assert domains.call("vm_list")["vms"] == []
    assert [one["uuid"] for one in domains.call("vm_list")["allowed"]] == [a]


def test_one_vm_cannot_use_anothers(domains: Domains) -> None:
    a, b = domains.a, domains.b
    domains.prepare(a)
    domains.prepare(b)
    other = domains.client(b, replace(IN_VM, vgpu=f"web-{a[:4]}"))
    assert other.welcome.status is WelcomeStatus.LIMIT
    assert f"it has web-{b[:4]}" in other.welcome.text
    outside = say(domains.daemon.unix, replace(HELLO, vgpu=f"web-{a[:4]}").encode())
    assert outside.welcome.status is WelcomeStatus.LIMIT
    more = domains.client(a, replace(IN_VM, compute_percent=80))
    assert "its vGPU has its own" in more.welcome.text
    shared_memory = domains.client(a, HELLO)  # nothing of the host's is in a guest's memory
    assert "offers vsock" in shared_memory.welcome.text
    with pytest.raises(AdminError, match="take it from the domain"):
        domains.call("vgpu_delete", vgpu=f"web-{a[:4]}")


def test_the_last_share(domains: Domains) -> None:
    domains.prepare(domains.a, 60)
    with pytest.raises(AdminError, match=r"50% compute and 64 MiB was asked for; left is .*40%"):
        domains.prepare(domains.b, 50)
    assert not (domains.daemon.folder / "vms" / domains.b).exists()


def test_two_domains_ask_for_the_last_share_at_once(domains: Domains) -> None:
    def ask(domain: str) -> str:
        try:
            domains.prepare(domain, 60, window_mib=64)
        except AdminError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as both:
        said = list(both.map(ask, (domains.a, domains.b)))
    assert sorted(map(bool, said)) == [False, True], said
    winner, loser = sorted((domains.a, domains.b), key=lambda one: said[one == domains.b] != "")
    assert "left is" in said[loser == domains.b]
    assert domains.window(winner).exists()
    assert not domains.window(loser).exists()
    assert not (domains.daemon.folder / "vms" / loser).exists()
    domains.call("vm_release", uuid=winner)
    assert ask(loser) == ""


@pytest.mark.parametrize(
    ("method", "more", "text"),
    [
        ("vm_allow", {"uuid": "x"}, "allowed is a domain's UUID"),
        ("vm_allow", {"uuid": 3}, "uuid: given 3"),
        ("vm_allow", {"colour": 3}, "unknown: colour"),
        ("vm_prepare", {"uuid": "../x"}, "allowed is a domain's UUID"),
        ("vm_prepare", {"vgpus": [3]}, "vgpus: given 3"),
        ("vm_prepare", {"vgpus": [{"percent": 3}]}, "unknown: percent; each of vgpus takes"),
        ("vm_prepare", {"vgpus": [{"count": 0}]}, "count: given 0"),
        ("vm_prepare", {"vgpus": [{"mode": "x"}]}, "reserved or on-demand"),
        ("vm_show", {"uuid": "x"}, "neither allowed nor prepared"),
        ("vm_started", {"uuid": "x"}, "is not prepared here"),
        ("vm_release", {"uuid": "/"}, "allowed is a domain's UUID"),
    ],
)
def test_bad_requests(domains: Domains, method: str, more: dict[str, Any], text: str) -> None:
    with pytest.raises(AdminError, match=text):
        domains.call(method, **more)


def test_the_agents_channel(domains: Domains) -> None:
    a = domains.a
    domains.prepare(a, window_mib=64)
    (terms,) = domains.agent(a, {"method": "terms"})
    vgpu = {"name": f"web-{a[:4]}", "compute_percent": 25, "memory_mib": 64, "policy": "elastic"}
    assert terms["ok"]
    assert terms["endpoint"] == "vsock://2:9177"
    assert (terms["vgpus"], terms["window"]) == ([vgpu], {"bytes": 64 << 20})
    domains.call("vm_change", uuid=a, vgpus=[{"compute_percent": 30, "memory_mib": 64}])
    said = {"method": "health", "state": "failed", "detail": "no\nwindow" + "x" * 500}
    terms, health = domains.agent(a, {"method": "terms"}, said)
    assert terms["vgpus"][0]["compute_percent"] == 30
    assert health == {"ok": True}
    shown = domains.call("vm_show", uuid=a)["vm"]["health"]
    assert (shown["state"], len(shown["detail"])) == ("failed", 200)
    assert r"no\nwindow" in domains.daemon.log
    (brief,) = domains.daemon.status()["vms"]
    assert (brief["uuid"], brief["vgpus"], brief["health"]) == (a, [f"web-{a[:4]}"], "failed")
    domains.prepare(domains.b)
    (terms,) = domains.agent(domains.b, {"method": "terms"})
    assert (terms["vgpus"][0]["name"], terms["window"]) == (f"web-{domains.b[:4]}", None)


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"[]", b'{"method": "stop"}', b'{"method": "health", "state": []}', b"[" * 4000],
)
def test_an_agent_that_talks_nonsense(domains: Domains, line: bytes) -> None:
    domains.prepare(domains.a)
    answers = domains.agent(domains.a, line, {"method": "terms"})
    assert [answer["ok"] for answer in answers] == [False, True]


def turned_away(domains: Domains, domain: str) -> bool:
    """Whether its agent gets no answer."""
    try:
        return domains.agent(domain, {"method": "terms"}) == [None]
    except (BrokenPipeError, ConnectionResetError):
        return True


def silent(domains: Domains, domain: str, port: int, count: int) -> list[socket.socket]:
    """Connections that say nothing."""
    found = []
    for _ in range(count):
        one = socket.socket(socket.AF_UNIX)
        one.connect(domains.socket(domain, port).removeprefix("unix:"))
        found.append(one)
    return found


def test_a_vm_that_holds_connections_keeps_no_other_out(domains: Domains) -> None:
    a, b = domains.a, domains.b
    domains.prepare(a)
    domains.prepare(b)
    held = silent(domains, a, 9178, 20) + silent(domains, a, 9177, 140)
    try:
        eventually(lambda: turned_away(domains, a), "it has too many")
        assert domains.agent(b, {"method": "terms"})[0]["ok"]
        assert "connections of this virtual machine wait" in domains.client(a).welcome.text
        session = domains.client(b)
        assert session.welcome.status is WelcomeStatus.OK, session.welcome.text
    finally:
        for one in held:
            one.close()
    eventually(lambda: not turned_away(domains, a), "it has room again")


def test_an_agents_endless_line_is_cut_off(domains: Domains) -> None:
    domains.prepare(domains.a)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        domains.agent(domains.a, b"x" * (10 << 20))
    assert domains.agent(domains.a, {"method": "terms"})[0]["ok"]


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_hostd_restarts_while_a_session_runs(domains: Domains, kill: bool) -> None:
    a, daemon = domains.a, domains.daemon
    domains.prepare(a, window_mib=64)
    inode = domains.window(a).stat().st_ino
    session = domains.client(a)
    before = domains.call("vm_show", uuid=a)
    daemon.stop(kill=kill)
    daemon.start(CONFIG)
    assert domains.call("vm_show", uuid=a) == before
    assert domains.window(a).stat().st_ino == inode  # the VM has it open
    assert domains.client(a).welcome.status is WelcomeStatus.OK
    assert len(daemon.sessions()) == 2
    domains.call("vm_release", uuid=a)
    assert session.connection.recv(1) == b""
    eventually(lambda: not daemon.sessions(), "both end")


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_a_start_removes_what_belongs_to_no_vm(domains: Domains, kill: bool) -> None:
    a, daemon = domains.a, domains.daemon
    domains.prepare(a, window_mib=64)
    daemon.stop(kill=kill)
    (daemon.folder / "state" / "vms" / f"{a}.json").unlink()  # as a reboot does
    stranger = daemon.folder / "vms" / "not-a-uuid"
    stranger.mkdir()
    daemon.start(CONFIG)
    assert not domains.window(a).exists()
    assert not (daemon.folder / "vms" / a).exists()
    assert stranger.exists()  # not ours to remove
    assert domains.call("vgpu_list")["vgpus"] == []


def test_a_window_of_somebody_elses_is_not_taken(domains: Domains) -> None:
    domains.window(domains.a).symlink_to(domains.daemon.folder / "secret")
    (domains.daemon.folder / "secret").write_text("kept")
    with pytest.raises(AdminError, match="cannot make"):
        domains.prepare(domains.a, window_mib=64)
    assert (domains.daemon.folder / "secret").read_text() == "kept"
    assert not domains.window(domains.a).is_symlink()  # undone, and free for the next start
    domains.window(domains.b).write_bytes(b"old" * 1000)
    os.chmod(domains.window(domains.b), 0o666)  # noqa: PTH101, S103
    domains.prepare(domains.b, window_mib=64)
    assert domains.window(domains.b).read_bytes() == bytes(64 << 20)


def test_rights_in_the_configuration(daemon: Daemon) -> None:
    one = Domains(daemon)
    daemon.start(f'{CONFIG}\n[[vm.allow]]\nuuid = "{one.a}"\ncompute_percent = 10')
    with pytest.raises(AdminError, match="asks for 25% compute and may have 10%"):
        one.call("vm_prepare", uuid=one.a, vgpus=[{"compute_percent": 25}])
    with pytest.raises(AdminError, match=r"\[\[vm.allow\]\]"):
        one.call("vm_disallow", uuid=one.a)
    one.call("vm_allow", uuid=one.b)
    one.call("vm_disallow", uuid=one.b)
    assert [right["configured"] for right in one.call("vm_list")["allowed"]] == [True]
