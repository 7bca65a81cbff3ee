"""`gpupool status`, `devices` and `stop`, against a running hostd and without one."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.cli import admin, table
from tests.fakes.daemon import HELLO, Daemon, environment, eventually, gpupool, say
from tests.fakes.native import GPU_UUID


def call(native: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`gpupool WORDS` with this folder as the user's."""
    return subprocess.run(
        gpupool(*words),
        env=environment(native, folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_session_is_shown(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, replace(HELLO, compute_percent=25, memory_mib=512).encode())
    done = call(daemon.native, daemon.folder, "status")
    assert done.returncode == 0
    header, row = (line.split() for line in done.stdout.splitlines()[-2:])
    shown = dict(zip(header, [*row[:8], " ".join(row[8:10]), *row[10:]], strict=True))
    session = daemon.sessions()[0]
    assert shown == {
        "SESSION": str(session["id"]),
        "PROGRAM": "fake",
        "KIND": "cuda",
        "PID": str(session["pid"]),
        "TRANSPORT": "shm",
        "ENDPOINT": daemon.unix,
        "GPUS": "1",
        "COMPUTE": "25%",
        "MEMORY": "512 MiB",
        "SINCE": session["since"],
        "WORKER": str(session["worker_pid"]),
        "STATE": "running",
    }
    answer.close()


def test_a_virtual_machine_is_shown(daemon: Daemon) -> None:
    daemon.start('[vm]\nrelay = "no"')
    uuid = "0b0c0d0e-0000-4000-8000-0000000000c1"
    admin.call(daemon.admin_socket, "vm_allow", uuid=uuid, compute_percent=10)
    asks = [{"compute_percent": 10, "memory_mib": 1}]
    admin.call(daemon.admin_socket, "vm_prepare", uuid=uuid, name="web", vgpus=asks)
    done = call(daemon.native, daemon.folder, "status")
    said = "  virtual machine web (prepared): vGPU web, 0 sessions, agent unknown"
    assert said in done.stdout.splitlines()


def test_json(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    content = json.loads(call(daemon.native, daemon.folder, "status", "--json").stdout)
    (host,) = content["hosts"]
    (session,) = content["sessions"]
    assert session.pop("admin_socket") == host["admin_socket"] == str(daemon.admin_socket)
    assert [session] == daemon.sessions()
    assert host["endpoints"][0] == {
        "endpoint": daemon.unix,
        "transports": ["shm"],
        "token_file": "",
        "fingerprint": "",
    }
    answer.close()


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ({"connected": True, "problem": ""}, "as node n1 (connected)\n"),
        ({"connected": False, "problem": "refused"}, "as node n1 (not connected: refused)\n"),
    ],
)
def test_its_controller_is_shown(
    native: Path, short_path: Path, link: dict[str, object], shown: str
) -> None:
    """Said by a socket of ours: a hostd with a controller is in tests/e2e/test_control_plane.py."""
    told = {"url": "tls://c:9181", "node": "n1", "not_done": {"vgpu-1": "no room"}, **link}
    host = {
        **{"version": "1", "private": False, "pid": 7, "gpus": 1, "workers_waiting": 0},
        **{"endpoints": [], "notes": [], "sessions": [], "controller": told},
    }
    path = short_path / "told.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(json.dumps({"ok": True, "result": host}).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = call(native, short_path, "status", "--admin-socket", str(path))
        thread.join(timeout=30)
    assert done.returncode == 0, done.stderr
    assert f"  controller tls://c:9181, {shown}" in done.stdout
    assert "  controller's vGPU vgpu-1 is not here: no room\n" in done.stdout


def test_no_hostd(native: Path, short_path: Path) -> None:
    done = call(native, short_path, "status")
    assert done.returncode == 1
    assert "no hostd is running" in done.stdout
    done = call(native, short_path, "status", "--json")
    assert json.loads(done.stdout) == {"hosts": [], "sessions": [], "problems": []}
    done = call(native, short_path, "status", "--admin-socket", "/nowhere")
    assert done.returncode == 1
    assert "/nowhere: No such file" in done.stderr


def test_devices_of_a_hostd(daemon: Daemon) -> None:
    daemon.start()
    done = call(daemon.native, daemon.folder, "devices", "--json")
    content = json.loads(done.stdout)
    assert content["from"] == "hostd"
    assert [gpu["uuid"] for gpu in content["gpus"]] == [GPU_UUID]
    assert content["library"].endswith("libgpupool-softgpu.so")


def test_devices_of_this_machine(native: Path, short_path: Path) -> None:
    done = call(native, short_path, "devices")
    assert done.returncode == 0
    assert done.stdout.split() == [
        *("GPU", "NAME", "MEMORY", "CC", "SOURCE", "UUID"),
        *("0", "Fake", "GPU", "1024", "MiB", "9.0", "software", GPU_UUID),
    ]


def test_no_devices(tmp_path: Path, short_path: Path) -> None:
    done = call(tmp_path, short_path, "devices")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not built" in done.stderr


def test_stopping_a_session(daemon: Daemon) -> None:
    daemon.more = {"GPUPOOL_SOFTGPU_FAKE": "stay"}
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    session = str(answer.welcome.session_id)
    assert call(daemon.native, daemon.folder, "stop", session).returncode == 0
    eventually(lambda: not daemon.sessions(), "the session ends")
    done = call(daemon.native, daemon.folder, "stop", session)
    assert done.returncode == 1
    assert f"there is no session {session}" in done.stderr
    assert call(daemon.native, daemon.folder, "stop").returncode == 2


def test_stopping_hostd(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    assert call(daemon.native, daemon.folder, "stop", "--hostd").returncode == 0
    assert daemon.process is not None
    assert daemon.process.wait(timeout=20) == 0
    answer.close()
    assert call(daemon.native, daemon.folder, "stop", "--hostd").returncode == 1


def test_a_table_shows_no_control_characters() -> None:
    text = table.render(["A", "B"], [["x\x1b[31m", 1], ["longer", 22]])
    assert text.splitlines() == ["A       B", "x?[31m  1", "longer  22"]
