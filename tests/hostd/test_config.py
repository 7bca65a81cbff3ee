"""The configuration: defaults, errors that help, and documentation that names every key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd import config
from gpupool.hostd.config import KEYS, ConfigError
from gpupool.hostd.core.pool import NativeKind
from gpupool.hostd.core.pools import PoolSettings
from gpupool.wire.hello import TransportKind

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def problem(document: dict[str, Any]) -> str:
    """What parse says is wrong."""
    with pytest.raises(ConfigError) as caught:
        config.parse(document)
    return str(caught.value)


def test_defaults() -> None:
    parsed = config.parse({})
    assert parsed.gpu == "auto"
    assert parsed.limits.window_mib == 16384
    assert parsed.limits.max_sessions == 256
    assert parsed.idle_timeout_s == 0
    assert [str(one.endpoint) for one in parsed.endpoints] == ["unix:/run/gpupool/hostd.sock"]
    assert parsed.endpoints[0].mode == 0o666
    assert parsed.endpoints[0].transports == frozenset({TransportKind.SHM})


def test_pools() -> None:
    parsed = config.parse({})
    assert (parsed.pool.default, parsed.pool.native, parsed.pool.end_grace_s) == ("pooled", (), 10)
    assert str(parsed.cdi_dir) == "/var/run/cdi"
    given = {
        "default": "native",
        "native": ["GPU-1"],
        "native_kind": "vfio",
        "cdi_dir": "/x",
        "scrub": False,
    }
    parsed = config.parse({"pool": given, "limits": {"end_grace_s": 3}})
    assert parsed.pool == PoolSettings("native", ("GPU-1",), NativeKind.VFIO, 3, scrub=False)
    for key, value in (("default", "x"), ("native_kind", "vm"), ("native", "GPU-1")):
        assert f"pool.{key}: given {value!r}" in problem({"pool": {key: value}})
    assert "pool.cdi_dir: given 'x', allowed is an absolute path" in problem(
        {"pool": {"cdi_dir": "x"}}
    )


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_default_is_allowed(key: config.Key) -> None:
    assert key.check(key.default) is None


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_documented_with_its_default(key: config.Key) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    name = key.name
    if name.startswith("endpoint."):
        text, name = text.partition("## Endpoints")[2], name.removeprefix("endpoint.")
    row = re.search(rf"^\| `{re.escape(name)}` \| `(.*?)` \|", text, re.MULTILINE)
    assert row is not None, f"{key.name} is missing in {DOCUMENT.name}"
    assert row[1] == key.default_text


def test_the_example_in_the_documentation_is_valid() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert examples
    for example in examples:
        config.parse(config.read(example))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"gpus": "auto"}, r"gpus: no such key; known are gpu, libcuda"),
        (
            {"limits": {"max_session": 1}},
            r"limits.max_session: no such key; known are limits.max_sess",
        ),
        ({"gpu": "amd"}, r"gpu: given 'amd', allowed is one of \"auto\", \"nvidia\", \"software\""),
        ({"gpu": 3}, r"gpu: given 3, allowed is one of"),
        ({"limits": {"window_mib": "16G"}}, r"limits.window_mib: given '16G', .* 64 to 65536"),
        (
            {"limits": {"window_mib": 65537}},
            r"given 65537, allowed is a whole number from 64 to 65536",
        ),
        ({"limits": {"window_mib": True}}, r"limits.window_mib: given True"),
        ({"limits": {"max_sessions": 0}}, r"limits.max_sessions: given 0"),
        ({"limits": 4}, r"limits: given 4, allowed is a section \[limits\]"),
        ({"devices": "GPU-1"}, r"devices: given 'GPU-1', allowed is a list of strings"),
        ({"devices": [1]}, r"devices: given \[1\], allowed is a list of strings"),
        ({"state_dir": "state"}, r"state_dir: given 'state', allowed is an absolute path"),
        ({"admin_socket": "/" + "x" * 200}, r"admin_socket: .* too long"),
        ({"endpoint": {"listen": "unix:/x"}}, r"endpoint: .* \[\[endpoint\]\]"),
        ({"endpoint": []}, r"endpoint: given an empty list"),
        (
            {"endpoint": [{"listn": "unix:/x"}]},
            r"endpoint\[0\].listn: no such key; an endpoint has listen",
        ),
        ({"endpoint": [{"listen": "x"}]}, r"endpoint\[0\].listen: 'x' is no endpoint"),
        (
            {"endpoint": [{"mode": "0888"}]},
            r"endpoint\[0\].mode: given '0888', allowed is an octal",
        ),
        (
            {"endpoint": [{"transports": ["rdma"]}]},
            r"endpoint\[0\].transports: given 'rdma', .*shm or tcp",
        ),
        ({"endpoint": [{"listen": "unix:/x"}] * 2}, r"unix:/x is listed twice"),
        ({"endpoint": [{"listen": "tls://h:1"}]}, r"token_file: given nothing, needed for tls"),
        (
            {"endpoint": [{"listen": "tls://h:1", "token_file": "/t", "key": "/k"}]},
            r"certificate: given '' and key '/k', allowed are two absolute paths, or neither",
        ),
        (
            {"endpoint": [{"listen": "unix:/x", "certificate": "/c", "key": "/k"}]},
            r"certificate: given '/c', allowed for a tls endpoint only",
        ),
        (
            {"endpoint": [{"listen": "tcp://h:1", "token_file": "/t"}]},
            r"insecure: given False, allowed for tcp is true: its bytes travel in clear; listen at "
            r"tls:// instead",
        ),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(document: dict[str, Any], expected: str) -> None:
    assert re.search(expected, problem(document))


def test_tcp_wants_to_be_called_insecure_and_a_token() -> None:
    text = problem({"endpoint": [{"listen": "tcp://0.0.0.0:9177"}]})
    assert "endpoint[0].insecure: given False, allowed for tcp is true" in text
    assert "endpoint[0].token_file: given nothing, needed for tcp" in text
    good = {"listen": "tcp://0.0.0.0:9177", "insecure": True, "token_file": "/etc/gpupool/token"}
    parsed = config.parse({"endpoint": [good]})
    assert parsed.endpoints[0].transports == frozenset({TransportKind.TCP})


def test_shared_memory_cannot_be_had_over_tcp() -> None:
    endpoint = {
        "listen": "tcp://h:1",
        "insecure": True,
        "token_file": "/t",
        "transports": ["shm", "tcp"],
    }
    assert "endpoint[0].transports: given 'shm'" in problem({"endpoint": [endpoint]})


def test_all_problems_are_told_at_once() -> None:
    assert len(problem({"gpu": 1, "libcuda": 2, "limits": {"x": 1}}).splitlines()) == 3


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text('gpu = "software"\n[limits]\nmax_sessions = 3\n', encoding="utf-8")
    parsed = config.load(path)
    assert (parsed.gpu, parsed.limits.max_sessions) == ("software", 3)
    path.write_text("gpu = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"hostd\.toml is no TOML: "):
        config.load(path)
    path.write_text("gpus = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"hostd\.toml: gpus: no such key"):
        config.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "missing.toml")


def test_a_private_hostd_stays_in_its_folder(tmp_path: Path) -> None:
    made = config.private(config.parse({}), tmp_path, "software", 60)
    assert made.admin_socket == tmp_path / "admin.sock"
    assert made.state_dir == tmp_path
    unix, tcp, *tls = made.endpoints
    assert str(unix.endpoint) == f"unix:{tmp_path}/hostd.sock"
    assert unix.mode == 0o600
    assert (tcp.endpoint.host, tcp.endpoint.port) == ("127.0.0.1", 0)
    assert tcp.token_file == tmp_path / "token"
    assert len(tls) == (shutil.which("openssl") is not None)
    for one in tls:  # for trying it out, where certificates can be made
        assert (one.endpoint.host, one.token_file) == ("127.0.0.1", tcp.token_file)
        assert one.certificate == tmp_path / "tls-certificate.pem"
        assert one.key == tmp_path / "tls-key.pem"


def test_a_tls_endpoint() -> None:
    given = {"listen": "tls://0.0.0.0:9177", "token_file": "/etc/gpupool/token"}
    (one,) = config.parse({"endpoint": [given]}).endpoints
    assert one.endpoint.tls
    assert one.transports == {TransportKind.TLS}
    assert one.certificate == Path("/etc/gpupool/tls-certificate.pem")
    assert one.key == Path("/etc/gpupool/tls-key.pem")
    own = {**given, "certificate": "/c.pem", "key": "/k.pem"}
    (one,) = config.parse({"endpoint": [own]}).endpoints
    assert (one.certificate, one.key) == (Path("/c.pem"), Path("/k.pem"))
