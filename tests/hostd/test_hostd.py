"""hostd as a process: clients that behave, clients that do not, and its own restarts."""

from __future__ import annotations

import concurrent.futures
import fcntl
import os
import signal
import socket
import stat
import subprocess
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.cli import admin
from gpupool.hostd.adapters.worker_process import start_ticks
from gpupool.wire.hello import HELLO_BYTES, Welcome, WelcomeStatus
from gpupool.wire.query import REPORT_MAGIC, Query
from tests.fakes.daemon import (
    HELLO,
    TCP_HELLO,
    Answer,
    Daemon,
    connect,
    environment,
    eventually,
    gpupool,
    receive,
    say,
)
from tests.fakes.native import GPU_UUID


def token(daemon: Daemon) -> bytes:
    """The token that clients must send over TCP."""
    return daemon.token_file.read_bytes().strip()


def refused(answer: Answer, status: WelcomeStatus) -> str:
    """The text of a refusal, after which nothing more comes."""
    assert answer.welcome.status is status
    assert answer.fds == []
    assert answer.connection.recv(1) == b""
    assert answer.welcome.host_version == "0.1.0"
    return answer.welcome.text


def test_a_client_over_shared_memory(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    assert answer.welcome.status is WelcomeStatus.OK
    (window,) = answer.fds
    assert os.fstat(window).st_size == 16384 << 20
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(window, 4096)
    seals = fcntl.fcntl(window, fcntl.F_GET_SEALS)
    for seal in (fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL):
        assert seals & seal
    (session,) = daemon.sessions()
    assert session["id"] == answer.welcome.session_id
    assert session["pid"] == os.getpid()
    assert session["uid"] == os.getuid()
    assert session["program"] == "fake"
    assert session["transport"] == "shm"
    assert session["devices"] == [GPU_UUID]
    answer.close()
    eventually(lambda: not daemon.sessions(), "the session ends with its client")
    assert list((daemon.folder / "state" / "sessions").iterdir()) == []


def test_a_client_over_tcp(daemon: Daemon) -> None:
    daemon.start()
    assert stat.S_IMODE(daemon.token_file.stat().st_mode) == 0o600
    answer = say(daemon.tcp, replace(TCP_HELLO, token=token(daemon)).encode())
    assert answer.welcome.status is WelcomeStatus.OK
    assert answer.fds == []
    assert daemon.sessions()[0]["transport"] == "tcp"
    answer.close()
    eventually(lambda: not daemon.sessions(), "the session ends with its client")


def ask(address: str, raw: bytes) -> bytes:
    """Sends these bytes and reads to the end."""
    with connect(address) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def test_a_query_is_answered_without_a_worker(daemon: Daemon) -> None:
    daemon.start()
    raw = ask(daemon.unix, Query(memory_mib=256).encode())
    assert raw[:4] == REPORT_MAGIC.to_bytes(4, "little")
    assert b"Fake GPU" in raw
    assert daemon.sessions() == []


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (Query().encode()[:40], WelcomeStatus.BAD_REQUEST, "ended after 40"),
        (Query(protocol_major=9).encode(), WelcomeStatus.VERSION, "speaks protocol 9.2"),
        (
            Query().encode()[:8] + b"\xff\xff\xff\xff",
            WelcomeStatus.BAD_REQUEST,
            "Query says it has 4294967295 bytes",
        ),
    ],
)
def test_a_query_that_is_refused(
    daemon: Daemon, raw: bytes, status: WelcomeStatus, text: str
) -> None:
    daemon.start()
    welcome = Welcome.decode(ask(daemon.unix, raw))
    assert welcome.status is status
    assert text in welcome.text
    assert ask(daemon.unix, Query().encode())  # it lives


def test_a_query_needs_the_token(daemon: Daemon) -> None:
    daemon.start()
    welcome = Welcome.decode(ask(daemon.tcp, Query(token=b"wrong").encode()))
    assert welcome.status is WelcomeStatus.TOKEN
    assert b"Fake GPU" in ask(daemon.tcp, Query(token=token(daemon)).encode())


def test_the_worker_gets_what_the_contract_says(daemon: Daemon) -> None:
    daemon.more = {
        "LD_LIBRARY_PATH": "/nowhere",
        "LD_PRELOAD": "",
        "GPUPOOL_SOFTGPU_X": "1",
        "SECRET": "x",
    }
    daemon.start()
    answer = say(daemon.unix, replace(HELLO, compute_percent=25, memory_mib=512).encode())
    worker = daemon.sessions()[0]["worker_pid"]
    words = Path(f"/proc/{worker}/cmdline").read_text().split("\0")
    options = dict(zip(words[2:-1:2], words[3::2], strict=True))
    for name in ("socket-fd", "window-fd", "usage-fd", "client-pidfd", "exchange-fd"):
        assert int(options.pop(f"--{name}")) > 2
    state = daemon.folder / "state"
    gpu, vgpu = state / "gpus" / GPU_UUID, daemon.sessions()[0]["seats"][0]["vgpu"]
    for name, page in (
        ("quota-fds", gpu / "quota"),
        ("account-fds", state / "vgpus" / f"{vgpu}.account"),
        ("lease-fds", gpu / f"{answer.welcome.session_id}.lease"),
    ):
        assert Path(f"/proc/{worker}/fd/{options.pop(f'--{name}')}").readlink() == page
    assert (options.pop("--vgpu-rows"), options.pop("--account-rows")) == ("0", "0")
    if os.getuid() == 0:
        user = options.pop("--user")
        assert 1_900_000_000 <= int(user) < 1_900_000_000 + (1 << 24)
        assert options.pop("--group") == user
        assert options.pop("--cache-folder") == f"{daemon.folder}/cache/{user}"
        assert (options.pop("--groups"), options.pop("--threads")) == ("", str(64 * 1024))
    assert options == {
        "--sandbox-calls": "off",  # the fake worker cannot
        "--sandbox-files": "no",
        "--log-json": "no",
        "--log-priorities": "no",
        "--transport": "shm",
        "--window-base": "0x200000000000",
        "--window-bytes": str(16384 << 20),
        "--window-offset": "0",
        "--library": str(daemon.native / "lib/host/libgpupool-softgpu.so"),
        "--devices": GPU_UUID,
        "--session-id": str(answer.welcome.session_id),
        "--compute-percent": "25",
        "--memory-mib": "512",
        "--pinned-mib": "16384",
        "--image-mib": "8192",
        "--handles": "1048575",
        "--streams": "8191",
        "--launch-threads": "0",
        "--zero-copy": "auto",
        "--opengl": "yes",
        "--scrub": "yes",
        "--log-level": "info",
        "--protocol": "1.2",
        "--host-version": "0.1.0",
    }
    variables = Path(f"/proc/{worker}/environ").read_text().split("\0")
    names = {variable.partition("=")[0] for variable in variables if variable}
    cache = {"CUDA_CACHE_DISABLE", "CUDA_CACHE_PATH"}
    own = {"GPUPOOL_SOFTGPU_X", "CUDA_VISIBLE_DEVICES"}
    assert names <= {"PATH", "HOME", "LANG", "LC_CTYPE", *own, *cache}
    assert f"CUDA_VISIBLE_DEVICES={GPU_UUID}" in variables  # the driver opens no other card
    assert "GPUPOOL_SOFTGPU_X=1" in variables
    assert os.getsid(worker) == worker
    assert Path(f"/proc/{worker}/fd/0").resolve() == Path("/dev/null")
    answer.close()


def test_hostd_keeps_no_descriptor_of_a_session(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    say(daemon.unix, HELLO.encode()).close()
    eventually(lambda: not daemon.sessions(), "the first session ends")
    before = len(list(folder.iterdir()))
    answers = [say(daemon.unix, HELLO.encode()) for _ in range(5)]
    # Three a session are left: the pidfds of worker and client, and its end of the exchange.
    eventually(lambda: len(list(folder.iterdir())) <= before + 15, "hostd closed its copies")
    for answer in answers:
        answer.close()
    eventually(lambda: len(list(folder.iterdir())) <= before, "nothing of the sessions is left")


@pytest.mark.parametrize(("major", "minor"), [(2, 0), (0, 9), (1, 0), (1, 3)])
def test_a_wrong_version(daemon: Daemon, major: int, minor: int) -> None:
    daemon.start()
    hello = replace(HELLO, protocol_major=major, protocol_minor=minor)
    text = refused(say(daemon.unix, hello.encode()), WelcomeStatus.VERSION)
    assert f"protocol {major}.{minor}" in text
    assert "this host 1.2 (gpupool 0.1.0)" in text


@pytest.mark.parametrize("sent", [b"", b"wrong", b"0" * 64])
def test_a_wrong_token(daemon: Daemon, sent: bytes) -> None:
    daemon.start()
    text = refused(say(daemon.tcp, replace(TCP_HELLO, token=sent).encode()), WelcomeStatus.TOKEN)
    assert "GPUPOOL_TOKEN_FILE" in text
    assert token(daemon).decode() not in text + daemon.log


def test_a_malformed_hello(daemon: Daemon) -> None:
    daemon.start()
    text = refused(
        say(daemon.unix, b"GET / HTTP/1.1\r\n\r\n" + bytes(200)), WelcomeStatus.BAD_REQUEST
    )
    assert "malformed Hello: magic" in text


def test_a_truncated_hello(daemon: Daemon) -> None:
    daemon.start()
    connection = connect(daemon.unix)
    connection.sendall(HELLO.encode()[:100])
    connection.shutdown(socket.SHUT_WR)
    text = refused(receive(connection), WelcomeStatus.BAD_REQUEST)
    assert f"after 100 of {HELLO_BYTES} bytes" in text


def test_a_hello_that_does_not_come(daemon: Daemon) -> None:
    daemon.start("[limits]\nhello_timeout_s = 1")
    silent, slow = connect(daemon.unix), connect(daemon.unix)
    slow.sendall(HELLO.encode()[:-1])
    assert "only 0 of" in refused(receive(silent), WelcomeStatus.BAD_REQUEST)
    assert f"only {HELLO_BYTES - 1} of" in refused(receive(slow), WelcomeStatus.BAD_REQUEST)
    say(daemon.unix, HELLO.encode()).close()


def test_a_refusal_reaches_a_client_that_sent_more_over_tcp(daemon: Daemon) -> None:
    """Closing a TCP connection with unread bytes resets it, and the answer would be lost."""
    daemon.start()
    text = refused(say(daemon.tcp, TCP_HELLO.encode() + bytes(100_000)), WelcomeStatus.TOKEN)
    assert "token" in text


def test_bytes_after_the_hello_are_the_workers(daemon: Daemon) -> None:
    """What hostd had read would be gone; what nobody has read shows as unsent at the client."""
    daemon.start()
    answer = say(daemon.unix, HELLO.encode() + b"for the worker")
    unread = fcntl.ioctl(answer.connection, termios.TIOCOUTQ, bytes(4))
    assert int.from_bytes(unread, "little") >= len(b"for the worker")
    answer.close()


def test_too_many_sessions(daemon: Daemon) -> None:
    daemon.start("[limits]\nmax_sessions = 2")
    answers = [say(daemon.unix, HELLO.encode()) for _ in range(2)]
    text = refused(say(daemon.unix, HELLO.encode()), WelcomeStatus.LIMIT)
    assert "2 sessions" in text
    answers[0].close()
    eventually(lambda: len(daemon.sessions()) == 1, "a session ends")
    say(daemon.unix, HELLO.encode()).close()
    answers[1].close()


def test_64_clients_at_once(daemon: Daemon) -> None:
    daemon.start()
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: say(daemon.unix, HELLO.encode()), range(64)))
    assert {answer.welcome.status for answer in answers} == {WelcomeStatus.OK}
    assert len({answer.welcome.session_id for answer in answers}) == 64
    assert len(daemon.sessions()) == 64
    for answer in answers:
        answer.close()
    eventually(lambda: not daemon.sessions(), "all 64 sessions end", timeout_s=30)


def test_a_worker_that_dies_at_once_is_reaped(daemon: Daemon) -> None:
    daemon.more = {"GPUPOOL_SOFTGPU_FAKE": "exit"}
    daemon.start()
    connection = connect(daemon.unix)
    connection.sendall(HELLO.encode())
    assert connection.recv(1) == b""
    eventually(lambda: not daemon.sessions(), "it is reaped")
    eventually(lambda: 'how="exited with 3"' in daemon.log, "its exit code is logged")
    assert "level=error" in daemon.log


def test_a_killed_worker_is_reaped(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    os.kill(daemon.sessions()[0]["worker_pid"], signal.SIGKILL)
    assert answer.connection.recv(1) == b""
    eventually(lambda: not daemon.sessions(), "it is reaped")
    assert 'how="killed by signal 9"' in daemon.log


def test_no_worker_program(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "lib").symlink_to(daemon.native / "lib")
    daemon.native = tmp_path
    daemon.start()
    text = refused(say(daemon.unix, HELLO.encode()), WelcomeStatus.WORKER)
    assert "gpupool-worker is not built" in text


def test_no_gpu(daemon: Daemon) -> None:
    daemon.more = {"GPUPOOL_SOFTGPU_BROKEN": "1"}
    daemon.start()
    text = refused(say(daemon.unix, HELLO.encode()), WelcomeStatus.NO_DEVICE)
    assert "cuInit returned 999" in text


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_sessions_go_on_when_hostd_restarts(daemon: Daemon, kill: bool) -> None:
    daemon.start()
    first, second = say(daemon.unix, HELLO.encode()), say(daemon.unix, HELLO.encode())
    before = daemon.sessions()
    assert daemon.stop(kill=kill) == (-9 if kill else 0)
    for session in before:
        assert start_ticks(session["worker_pid"]) == session["worker_start_ticks"]
    second.close()  # ends while no hostd runs
    eventually(lambda: start_ticks(before[1]["worker_pid"]) is None, "its worker ends by itself")
    daemon.start()
    assert daemon.sessions() == before[:1]
    third = say(daemon.unix, HELLO.encode())
    assert third.welcome.session_id > second.welcome.session_id
    first.close()
    eventually(lambda: len(daemon.sessions()) == 1, "the session found again is reaped")
    third.close()
    eventually(lambda: not daemon.sessions(), "and so is the new one")
    assert list((daemon.folder / "state" / "sessions").iterdir()) == []


def test_a_worker_that_nobody_wrote_down_is_found(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    (session,) = daemon.sessions()
    daemon.stop(kill=True)
    record = daemon.folder / "state" / "sessions" / f"{session['id']}.json"
    text = record.read_text().replace('"running"', '"starting"')
    text = text.replace(f'"worker_pid": {session["worker_pid"]}', '"worker_pid": 0')
    record.write_text(text)
    daemon.start()
    assert daemon.sessions() == [session]
    answer.close()


def test_a_reused_pid_is_no_worker(daemon: Daemon) -> None:
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    (session,) = daemon.sessions()
    daemon.stop()
    answer.close()
    eventually(lambda: start_ticks(session["worker_pid"]) is None, "the worker ends")
    record = daemon.folder / "state" / "sessions" / f"{session['id']}.json"
    record.write_text(record.read_text().replace(str(session["worker_pid"]), str(os.getpid())))
    daemon.start()
    assert daemon.sessions() == []


def test_an_unreadable_record_is_moved_aside(daemon: Daemon) -> None:
    sessions = daemon.folder / "state" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "4.json").write_text('{"id": 4')
    daemon.start()
    assert daemon.sessions() == []
    assert (sessions / "4.unreadable").exists()
    assert "session record unreadable" in daemon.log


def test_one_hostd_a_folder(daemon: Daemon) -> None:
    daemon.start()
    command = gpupool("hostd", "--config", str(daemon.folder / "hostd.toml"))
    second = subprocess.run(
        command,
        env=environment(daemon.native, daemon.folder),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert "another hostd uses" in second.stderr
    say(daemon.unix, HELLO.encode()).close()  # the first one is unharmed


def test_a_dead_hostds_sockets_are_replaced_and_a_live_ones_are_not(daemon: Daemon) -> None:
    path = daemon.unix.removeprefix("unix:")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    daemon.start()
    say(daemon.unix, HELLO.encode()).close()
    daemon.stop()
    live = socket.socket(socket.AF_UNIX)
    live.bind(path)
    live.listen()
    with pytest.raises(AssertionError, match="another process already listens"):
        daemon.start()
    live.close()


def test_sockets_have_their_modes_and_go_with_hostd(daemon: Daemon) -> None:
    daemon.start()
    sockets = [Path(daemon.unix.removeprefix("unix:")), daemon.admin_socket]
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o666, 0o600]
    assert daemon.stop() == 0
    assert not any(path.exists() for path in sockets)


def test_a_client_cannot_forge_log_lines(daemon: Daemon) -> None:
    daemon.start()
    say(daemon.unix, replace(HELLO, program='x" level=error\nmsg=fake').encode()).close()
    eventually(lambda: "session ended" in daemon.log, "the session ends")
    assert all(line.startswith("time=") for line in daemon.log.splitlines())
    assert r'program="x\" level=error\nmsg=fake"' in daemon.log


def test_ending_a_session_by_hand(daemon: Daemon) -> None:
    daemon.more = {"GPUPOOL_SOFTGPU_FAKE": "stay"}
    daemon.start()
    answer = say(daemon.unix, HELLO.encode())
    admin.call(daemon.admin_socket, "end", session=answer.welcome.session_id)
    eventually(lambda: not daemon.sessions(), "the worker is told to stop")
    with pytest.raises(admin.AdminError, match="there is no session"):
        admin.call(daemon.admin_socket, "end", session=answer.welcome.session_id)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"nonsense\n", "Expecting value"),
        (b"[]\n", "a request is a JSON object"),
        (b'{"method": "format"}\n', "unknown method 'format'"),
        (b'{"method": "end", "session": "1"}\n', "end needs a session"),
    ],
)
def test_wrong_requests_are_told_so(daemon: Daemon, line: bytes, expected: str) -> None:
    daemon.start()
    connection = connect(f"unix:{daemon.admin_socket}")
    connection.sendall(line)
    assert expected in connection.recv(4096).decode()
    assert daemon.status()["pid"] > 0


def test_an_endless_request_is_cut_off(daemon: Daemon) -> None:
    daemon.start()
    connection = connect(f"unix:{daemon.admin_socket}")
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        connection.sendall(bytes(100 << 20))
    assert daemon.status()["pid"] > 0


def test_systemd_is_told(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(daemon.folder / "notify"))
        manager.settimeout(20)
        daemon.more = {"NOTIFY_SOCKET": str(daemon.folder / "notify")}
        daemon.start()
        assert manager.recv(100) == b"READY=1"
        daemon.stop()
        assert manager.recv(100) == b"STOPPING=1"


def test_it_does_not_guess_which_gpus_were_given_out(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.stop() == 0
    path = daemon.folder / "state" / "pools.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(AssertionError, match="which GPUs were given out whole"):
        daemon.start()
    path.unlink()
    daemon.start()
