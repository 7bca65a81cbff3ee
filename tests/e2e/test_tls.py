"""Endpoints with TLS: who is let in, who is not and what they are told, and how it all ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.hostd.adapters import certificate
from gpupool.wire.hello import HELLO_BYTES, Hello, TransportKind, Welcome, WelcomeStatus
from gpupool.wire.query import REPORT_MAGIC, Query
from tests.conftest import ROOT, Host, end_host, free_port, make_host
from tests.e2e.observe import ADD_ONCE, STEPPER, cpu_s, gone, step, wait_for_line, worker_of
from tests.e2e.test_lanes import COPIES, FORKS

INIT = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'
TLS_USER = 1_900_000_000 + (1 << 24)  # sandbox.worker_uid_base, behind all tenants


@pytest.fixture(scope="module")
def secure() -> Iterator[Host]:
    """A hostd with a tls endpoint."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more="tls")
        yield host
        end_host(host)


@pytest.fixture
def own_secure() -> Iterator[Host]:
    """One for a test that breaks things."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more="tls")
        yield host
        if host.process is not None and host.process.poll() is None:
            end_host(host)


def refused(host: Host, **variables: str) -> str:
    """What a client says that does not get in."""
    done = host.run("tls", sys.executable, "-c", INIT, timeout_s=60, **variables)
    assert done.stdout == "100\n", done.stderr
    assert done.stderr.startswith("gpupool: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def tunnels(host: Host) -> list[int]:
    """The processes that end TLS for this hostd."""
    assert host.process is not None
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[0].endswith("gpupool-tls") and str(host.folder) in words[2]:
                found.append(int(entry.name))
    return [pid for pid in found if not gone(pid)]


def test_by_fingerprint(secure: Host) -> None:
    assert secure.run_python("tls", ADD_ONCE) == "1\n"
    text = secure.fingerprint().upper()
    colons = ":".join(text[at : at + 2] for at in range(0, 64, 2))
    assert secure.run_python("tls", ADD_ONCE, GPUPOOL_TLS_FINGERPRINT=colons) == "1\n"
    assert "transport=tls connections=4" in secure.log
    assert f"fingerprint={secure.fingerprint()}" in secure.log


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_by_ca(secure: Host, name: str) -> None:
    ca = str(secure.folder / "tls-certificate.pem")
    there = f"tls://{name}:{secure.tls_port}"
    settings = {"GPUPOOL_TLS_FINGERPRINT": "", "GPUPOOL_TLS_CA": ca, "GPUPOOL_ENDPOINT": there}
    assert secure.run_python("tls", ADD_ONCE, **settings) == "1\n"


@pytest.mark.parametrize("connections", ["1", "4"])
def test_data_is_the_same(secure: Host, connections: str) -> None:
    text = secure.run_python("tls", COPIES, GPUPOOL_TCP_CONNECTIONS=connections)
    assert text == "same\n"


def test_nvml_and_smi(secure: Host) -> None:
    done = secure.run("tls", sys.executable, "-m", "gpupool.cli", "smi", "--json")
    assert done.returncode == 0, done.stderr
    assert '"gpus"' in done.stdout
    assert not tunnels(secure)  # they end with their question


def test_a_wrong_fingerprint(secure: Host) -> None:
    text = refused(secure, GPUPOOL_TLS_FINGERPRINT="ab" * 32)
    assert f"no secure connection to tls://127.0.0.1:{secure.tls_port}" in text
    assert f"has the fingerprint {secure.fingerprint()}, expected is {'ab' * 32}" in text


@pytest.mark.parametrize("text", ["ab", "x" * 64, "ab" * 33])
def test_no_fingerprint(secure: Host, text: str) -> None:
    assert "must be the 64 hexadecimal digits" in refused(secure, GPUPOOL_TLS_FINGERPRINT=text)


def test_nothing_said_is_this_systems_authorities(secure: Host) -> None:
    text = refused(secure, GPUPOOL_TLS_FINGERPRINT="")
    assert "its certificate is not trusted: self" in text  # "self-signed", or "self signed" in 1.1
    assert "GPUPOOL_TLS_CA" in text
    assert "gpupool hostd --certificate" in text


def test_a_wrong_ca(secure: Host, tmp_path: Path) -> None:
    certificate.prepare(tmp_path / "ca.pem", tmp_path / "key.pem", "127.0.0.1")
    settings = {"GPUPOOL_TLS_FINGERPRINT": "", "GPUPOOL_TLS_CA": str(tmp_path / "ca.pem")}
    assert "its certificate is not trusted" in refused(secure, **settings)
    settings["GPUPOOL_TLS_CA"] = str(tmp_path / "none.pem")
    assert f"the certificates in {tmp_path}/none.pem cannot be read" in refused(secure, **settings)


def test_a_wrong_name(tmp_path: Path) -> None:
    """A certificate for somewhere else, from a configuration that names it."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=elsewhere", "-addext"),
            *("subjectAltName=DNS:elsewhere", "-keyout", str(tmp_path / "key.pem")),
            *("-out", str(tmp_path / "own.pem")),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (tmp_path / "key.pem").chmod(0o600)
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        port = free_port()
        more = f'[[endpoint]]\nlisten = "tls://127.0.0.1:{port}"\ntoken_file = "{name}/token"\n'
        more += f'certificate = "{tmp_path}/own.pem"\nkey = "{tmp_path}/key.pem"\n'
        host = make_host(Path(name), more=more)
        try:
            here = {"GPUPOOL_ENDPOINT": f"tls://127.0.0.1:{port}", "GPUPOOL_TRANSPORT": "tls"}
            ca = {"GPUPOOL_TLS_CA": str(tmp_path / "own.pem")}
            done = host.run("tcp", sys.executable, "-c", INIT, timeout_s=60, **here, **ca)
            assert done.stdout == "100\n"
            assert "its certificate is not trusted: IP address mismatch" in done.stderr
            there = {**here, "GPUPOOL_ENDPOINT": f"tls://localhost:{port}"}
            done = host.run("tcp", sys.executable, "-c", INIT, timeout_s=60, **there, **ca)
            assert "its certificate is not trusted: hostname mismatch" in done.stderr.lower()
            known = {"GPUPOOL_TLS_FINGERPRINT": certificate.fingerprint(tmp_path / "own.pem")}
            assert host.run_python("tcp", ADD_ONCE, **here, **known) == "1\n"
        finally:
            end_host(host)


def test_a_wrong_token(secure: Host, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x" * 40)
    text = refused(secure, GPUPOOL_TOKEN_FILE=str(tmp_path / "token"))
    assert "needs a token and the client sent a wrong token" in text


def test_a_plain_client_at_a_tls_endpoint(secure: Host) -> None:
    there = f"tcp://127.0.0.1:{secure.tls_port}"
    done = secure.run("tcp", sys.executable, "-c", INIT, GPUPOOL_ENDPOINT=there)
    assert done.stdout == "100\n"
    assert "this endpoint speaks TLS only; dial tls:// instead of tcp://" in done.stderr
    secure.wait_until(lambda: "the client speaks no TLS" in secure.log, "the reason in the log")


def test_a_tls_client_at_a_plain_endpoint(secure: Host) -> None:
    text = refused(secure, GPUPOOL_ENDPOINT=f"tls://127.0.0.1:{secure.port}")
    assert "the peer speaks no TLS; if its endpoint has no TLS, dial tcp://" in text
    secure.wait_until(lambda: "a client that speaks TLS" in secure.log, "the reason in the log")


def test_no_older_tls(secure: Host) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", secure.tls_port), 20) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol"),
    ):
        context.wrap_socket(plain)
    secure.wait_until(lambda: "an older TLS than 1.3" in secure.log, "the reason in the log")


def connect(host: Host) -> ssl.SSLSocket:
    """A TLS connection of Python's."""
    context = ssl.create_default_context(cafile=str(host.folder / "tls-certificate.pem"))
    plain = socket.create_connection(("127.0.0.1", host.tls_port), 20)
    return context.wrap_socket(plain, server_hostname="localhost")


def test_what_it_speaks(secure: Host) -> None:
    with connect(secure) as connection:
        assert connection.version() == "TLSv1.3"
        token = (secure.folder / "token").read_bytes().strip()
        connection.sendall(Query(token=token).encode())
        assert connection.recv(4) == REPORT_MAGIC.to_bytes(4, "little")
    with connect(secure) as connection:
        hello = Hello(transport=TransportKind.TLS, window_base=0x2000_0000_0000, token=b"wrong")
        connection.sendall(hello.encode())
        raw = b""
        while piece := connection.recv(4096):
            raw += piece
        assert Welcome.decode(raw).status is WelcomeStatus.TOKEN
    with connect(secure) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(HELLO_BYTES))
        assert b"malformed Hello" in connection.recv(4096)


@pytest.mark.parametrize(
    "said", [b"\x16", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01" + b"\xff" * 600]
)
def test_garbage_is_the_end_of_that_connection(secure: Host, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", secure.tls_port), 20) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(20)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert secure.run_python("tls", ADD_ONCE) == "1\n"


def test_clients_that_say_nothing_are_few_and_not_for_long(own_secure: Host) -> None:
    """From one address they take that address's places only, and lose them in time."""
    idle = []
    for _ in range(120):
        one = socket.socket()
        one.bind(("127.0.0.2", 0))
        one.connect(("127.0.0.1", own_secure.tls_port))
        idle.append(one)
    own_secure.wait_until(lambda: len(tunnels(own_secure)) >= 30, "hostd to take them")
    time.sleep(0.3)
    assert len(tunnels(own_secure)) <= 32
    start = time.monotonic()
    assert own_secure.run_python("tls", ADD_ONCE) == "1\n"
    assert time.monotonic() - start < 5  # it did not wait for their end, which is 5 s away
    own_secure.wait_until(lambda: not tunnels(own_secure), "their end", 30)
    assert "did not finish the handshake in time" in own_secure.log
    for one in idle:
        one.settimeout(10)
        assert one.recv(1) == b""
        one.close()


def test_the_end_of_a_tunnel_is_the_end_of_its_session(own_secure: Host) -> None:
    client = own_secure.start_client("tls", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    assert step(client) == "1"
    worker = worker_of(own_secure)
    (first, *_) = sorted(tunnels(own_secure))
    os.kill(first, signal.SIGKILL)
    own_secure.wait_until(lambda: gone(worker), "the worker to end", 10)
    _, errors = client.communicate("go\n", timeout=20)
    assert "the worker on the host is gone" in errors
    own_secure.wait_until(lambda: not tunnels(own_secure), "the other tunnels' end", 10)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_client(own_secure: Host, how: signal.Signals) -> None:
    client = own_secure.start_client("tls", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    assert len(tunnels(own_secure)) == 4
    client.send_signal(how)
    client.wait(timeout=20)
    own_secure.wait_until(lambda: not own_secure.sessions(), "the session to end", 10)
    own_secure.wait_until(lambda: not tunnels(own_secure), "its tunnels to end", 10)


def test_a_session_survives_a_restart_of_hostd(own_secure: Host) -> None:
    client = own_secure.start_client("tls", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    own_secure.stop()
    assert step(client) == "1"
    own_secure.start()
    assert step(client) == "2"
    output, errors = client.communicate("", timeout=20)
    assert (output, client.returncode) == ("", 0), errors
    own_secure.wait_until(lambda: not tunnels(own_secure), "its tunnels to end", 10)


def test_tunnels_are_locked_in(own_secure: Host) -> None:
    client = own_secure.start_client("tls", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    for pid in tunnels(own_secure):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        if os.getuid() == 0:
            assert status["Uid"].split() == [str(TLS_USER)] * 4
            assert status["CapEff"] == "0" * 16
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
    client.communicate("", timeout=20)


def test_an_idle_session_costs_nothing(own_secure: Host) -> None:
    client = own_secure.start_client("tls", sys.executable, "-c", STEPPER)
    wait_for_line(client, "running")
    watched = [client.pid, worker_of(own_secure), *tunnels(own_secure)]
    time.sleep(0.5)
    before = [cpu_s(pid) for pid in watched]
    time.sleep(3)
    assert max(cpu_s(pid) - was for pid, was in zip(watched, before, strict=True)) <= 0.02
    client.communicate("", timeout=20)


def test_a_forked_child_has_no_connection(secure: Host) -> None:
    """Nor the TLS ones behind the session's."""
    assert secure.run_python("tls", FORKS) == "0\nTrue\n"


EXIT = """
import atexit, ssl, sys
{first}
from tests.e2e.client import *
counter = Counter()
def last():
    counter.add()
    print(counter.value(), flush=True)
libc = ctypes.CDLL(None)
late = ctypes.CFUNCTYPE(None)(last)
{when}
"""


@pytest.mark.parametrize("first", ["pass", "ssl.create_default_context(); ssl.RAND_bytes(8)"])
@pytest.mark.parametrize("when", ["atexit.register(last)", "last(); sys.exit(0)"])
def test_programs_that_use_openssl_and_call_from_exit_handlers(
    secure: Host, first: str, when: str
) -> None:
    text = EXIT.replace("{first}", first).replace("{when}", when)
    assert secure.run_python("tls", text) == "1\n"


def test_no_openssl_is_said(secure: Host, tmp_path: Path) -> None:
    source = tmp_path / "hide.cpp"
    source.write_text(
        "#include <dlfcn.h>\n#include <cstring>\n"
        'extern "C" void* dlopen(const char* name, int flags) {\n'
        "  using Function = void* (*)(const char*, int);\n"
        '  static const auto real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "dlopen"));\n'
        '  if (name && std::strncmp(name, "libssl", 6) == 0) return nullptr;\n'
        "  return real(name, flags);\n}\n"
    )
    command = ["g++", "-shared", "-fPIC", "-o", str(tmp_path / "hide.so"), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    text = refused(secure, LD_PRELOAD=str(tmp_path / "hide.so"))
    assert "TLS needs OpenSSL, and neither libssl.so.3 nor libssl.so.1.1 can be loaded" in text


def test_hostd_prints_the_fingerprint(secure: Host) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gpupool.cli", "hostd", "--certificate"),
            *("--config", str(secure.folder / "hostd.toml")),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        f"tls://127.0.0.1:{secure.tls_port} {secure.fingerprint()}",
        f"  certificate: {secure.folder}/tls-certificate.pem",
    ]


def test_gpupool_run_has_tls_at_hand() -> None:
    """With the private hostd: for trying it out and for measuring what it costs."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as folder:
        variables = {
            **os.environ,
            "GPUPOOL_RUNTIME_DIR": folder,
            "GPUPOOL_IDLE_TIMEOUT_S": "1",
            "GPUPOOL_GPU": os.environ.get("GPUPOOL_TEST_GPU", "software"),
            "PYTHONPATH": str(ROOT),
        }
        program = ADD_ONCE + "import os; print(os.environ['GPUPOOL_ENDPOINT'][:6])"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "gpupool.cli", "run", "--transport", "tls", "--"),
                *(sys.executable, "-c", program),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=variables,
        )
        log = Path(folder, "hostd.log").read_text()
        assert done.stdout == "1\ntls://\n", done.stderr + log
        assert "transport=tls" in log
        deadline = time.monotonic() + 20
        while Path(folder, "hostd.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
