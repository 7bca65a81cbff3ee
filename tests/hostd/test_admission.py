"""Who gets a session, and what the others are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.hostd.core.admission import Door, Grant, Limits, Refusal, admit, check_header
from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.vgpu import Quota
from gpupool.wire.hello import HELLO_BYTES, Hello, HelloHeader, TransportKind, WelcomeStatus
from tests.fakes.gpus import FakeGpus

H100S = FakeGpus.from_file("h100x8.json").inventory
NOTHING = FakeGpus.from_file("none.json").inventory
LIMITS = Limits(max_sessions=4, window_mib=16384, default_compute_percent=0, default_memory_mib=0)
UNIX = Door("unix:/run/gpupool/hostd.sock", frozenset({TransportKind.SHM}), b"")
TCP = Door("tcp://127.0.0.1:9177", frozenset({TransportKind.TCP}), b"0123456789abcdef")
HELLO = Hello(window_base=0x2000_0000_0000, program="python3", client_version="0.1.0")


def refused(hello: Hello, door: Door = UNIX, inventory: Inventory = H100S, now: int = 0) -> Refusal:
    """The refusal; fails the test when there is none."""
    answer = admit(hello, door, LIMITS, inventory, now)
    assert isinstance(answer, Refusal)
    assert len(answer.text.encode()) <= 255
    return answer


def test_defaults_are_filled_in() -> None:
    limits = replace(LIMITS, default_compute_percent=50, default_memory_mib=2048)
    answer = admit(HELLO, UNIX, limits, H100S, 0)
    assert isinstance(answer, Grant)
    assert answer.wanted.quota == Quota(50, 2048)
    assert answer.window_bytes == 16384 << 20
    assert answer.transport is TransportKind.SHM


def test_what_was_asked_wins_over_the_defaults() -> None:
    answer = admit(replace(HELLO, compute_percent=25, memory_mib=512), UNIX, LIMITS, H100S, 0)
    assert isinstance(answer, Grant)
    assert answer.wanted.quota == Quota(25, 512)


@pytest.mark.parametrize(("major", "minor"), [(0, 9), (2, 0), (1, 0), (1, 3), (65535, 65535)])
def test_other_versions_are_refused_and_both_named(major: int, minor: int) -> None:
    refusal = check_header(HelloHeader(major, minor, HELLO_BYTES), "0.1.0")
    assert refusal is not None
    assert refusal.status is WelcomeStatus.VERSION
    assert f"{major}.{minor}" in refusal.text
    assert "this host 1.2" in refusal.text
    assert "0.1.0" in refusal.text


def test_the_older_side_is_told_to_update() -> None:
    old = check_header(HelloHeader(0, 9, HELLO_BYTES), "0.1.0")
    new = check_header(HelloHeader(2, 0, HELLO_BYTES), "0.1.0")
    assert old is not None
    assert old.text.endswith("on the client")
    assert new is not None
    assert new.text.endswith("on the host")


def test_our_version_is_served() -> None:
    assert check_header(HelloHeader(1, 2, HELLO_BYTES), "0.1.0") is None


def test_a_client_one_minor_behind_is_served() -> None:
    assert check_header(HelloHeader(1, 1, 224), "0.1.0") is None
    assert check_header(HelloHeader(1, 1, HELLO_BYTES), "0.1.0") is not None


@pytest.mark.parametrize(("transport", "lanes"), [("TCP", 16), ("TCP", 2**32 - 1), ("SHM", 1)])
def test_lanes_are_few_and_on_streams(transport: str, lanes: int) -> None:
    kind = TransportKind[transport]
    door = replace(TCP, transports=frozenset({kind}), token=b"")
    refusal = refused(replace(HELLO, transport=kind, lanes=lanes), door)
    assert refusal.status is WelcomeStatus.BAD_REQUEST
    assert f"{lanes} further connections" in refusal.text


@pytest.mark.parametrize("size", [0, 12, HELLO_BYTES - 1, HELLO_BYTES + 8, 0xFFFF_FFFF])
def test_a_hello_of_another_size_is_refused(size: int) -> None:
    refusal = check_header(HelloHeader(1, 2, size), "0.1.0")
    assert refusal is not None
    assert refusal.status is WelcomeStatus.BAD_REQUEST
    assert str(size) in refusal.text


def test_the_right_token_opens() -> None:
    hello = replace(HELLO, transport=TransportKind.TCP, token=TCP.token)
    assert isinstance(admit(hello, TCP, LIMITS, H100S, 0), Grant)


@pytest.mark.parametrize("token", [b"", b"0123456789abcdeX", b"0123456789abcde", b"\xff" * 64])
def test_a_wrong_token_does_not(token: bytes) -> None:
    refusal = refused(replace(HELLO, transport=TransportKind.TCP, token=token), TCP)
    assert refusal.status is WelcomeStatus.TOKEN
    assert "GPUPOOL_TOKEN_FILE" in refusal.text
    assert "0123456789abcdef" not in refusal.text


def test_the_token_is_checked_before_anything_is_told() -> None:
    refusal = refused(replace(HELLO, transport=99, token=b"x"), TCP, NOTHING, 99)
    assert refusal.status is WelcomeStatus.TOKEN


def test_a_transport_the_door_lacks() -> None:
    refusal = refused(replace(HELLO, transport=TransportKind.TCP))
    assert refusal.status is WelcomeStatus.BAD_REQUEST
    assert "tcp was asked for" in refusal.text
    assert "offers shm" in refusal.text


def test_an_unknown_transport() -> None:
    assert "unknown transport 99" in refused(replace(HELLO, transport=99)).text


@pytest.mark.parametrize("base", [0, 1, 4095, 0x2000_0000_0001, (1 << 47) - 4096, (1 << 64) - 4096])
def test_an_impossible_window_base(base: int) -> None:
    assert refused(replace(HELLO, window_base=base)).status is WelcomeStatus.BAD_REQUEST


def test_no_gpu_says_why() -> None:
    refusal = refused(HELLO, inventory=NOTHING)
    assert refusal.status is WelcomeStatus.NO_DEVICE
    assert "libnvidia-ml.so.1" in refusal.text


def test_too_many_sessions() -> None:
    assert isinstance(admit(HELLO, UNIX, LIMITS, H100S, 3), Grant)
    refusal = refused(HELLO, now=4)
    assert refusal.status is WelcomeStatus.LIMIT
    assert "4 sessions" in refusal.text
    assert "limits.max_sessions" in refusal.text


def test_more_than_a_gpu() -> None:
    assert "101%" in refused(replace(HELLO, compute_percent=101)).text
    refusal = refused(replace(HELLO, memory_mib=81560))
    assert "81560 MiB was asked for" in refusal.text
    assert "81559 MiB" in refusal.text


@given(
    st.builds(
        Hello,
        transport=st.integers(0, 2**32 - 1),
        window_base=st.integers(0, 2**64 - 1),
        compute_percent=st.integers(0, 2**32 - 1),
        memory_mib=st.integers(0, 2**32 - 1),
        program=st.text(max_size=20),
        token=st.binary(max_size=64),
    ),
    st.sampled_from([UNIX, TCP]),
)
def test_any_hello_gets_an_answer_within_limits(hello: Hello, door: Door) -> None:
    answer = admit(hello, door, LIMITS, H100S, 0)
    if isinstance(answer, Grant):
        assert 0 <= answer.wanted.quota.compute_percent <= 100
        assert answer.wanted.quota.memory_mib <= 81559
        assert answer.window_base + answer.window_bytes <= 1 << 47
        assert answer.transport in door.transports
    else:
        assert answer.status is not WelcomeStatus.OK
