"""Endpoints, as people write them."""

from __future__ import annotations

import pytest

from gpupool.hostd.endpoint import Endpoint


@pytest.mark.parametrize(
    "text",
    [
        "unix:/run/gpupool/hostd.sock",
        "tcp://gpu7:9177",
        "tcp://127.0.0.1:0",
        "tcp://[::1]:9177",
        "tls://gpu7:9177",
        "tls://[::1]:9177",
        "vsock://2:9177",
        "vsock://any:0",
    ],
)
def test_reads_what_it_writes(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


def test_parts() -> None:
    assert Endpoint.parse("unix:/a/b").path == "/a/b"
    assert Endpoint.parse("unix:/a/b").is_unix
    assert Endpoint.parse("tcp://[fe80::1]:5") == Endpoint(host="fe80::1", port=5)
    assert not Endpoint.parse("tcp://h:5").is_unix
    assert Endpoint.parse("tls://h:5") == Endpoint(host="h", port=5, tls=True)
    assert Endpoint.parse("tls://h:5").transports == ("tls",)
    assert Endpoint.parse("tcp://h:5").transports == ("tcp",)
    assert Endpoint.parse("vsock://any:5") == Endpoint(cid=0xFFFF_FFFF, port=5)
    assert Endpoint.parse("vsock://2:5").transports == ("vsock",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/gpupool/hostd.sock",
        "unix:",
        "unix:relative",
        "unix:/ends/in/",
        "unix:/" + "x" * 107,
        "tcp://",
        "tcp://host",
        "tcp://host:",
        "tcp://:9177",
        "tcp://host:70000",
        "tcp://host:-1",
        "tcp://host:٣",
        "tcp://::1:9177",
        "tls://host",
        "vsock:3:9177",
        "vsock://host:9177",
        "vsock://2",
        "vsock://2:",
        "vsock://-1:9177",
        "vsock://4294967296:9177",
        "vsock://2:4294967295",
        "http://host:80",
    ],
)
def test_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"unix:|socket path"):
        Endpoint.parse(text)
