"""wire/hello.py and wire/cpp/hello.hpp are the same layout: the header is compiled and asked."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.wire import hello

ROOT = Path(__file__).parents[2]


def _program() -> str:
    lines = []
    messages = (
        ("Hello", hello.HELLO_FIELDS),
        ("LaneHello", hello.LANE_FIELDS),
        ("Welcome", hello.WELCOME_FIELDS),
    )
    for name, fields in messages:
        lines.append(f'std::printf("{name} %zu\\n", sizeof(gpupool::wire::{name}));')
        for field, _ in fields:
            member = f"gpupool::wire::{name}, {field}"
            size = f"sizeof(gpupool::wire::{name}::{field})"
            lines.append(f'std::printf("{name}.{field} %zu %zu\\n", offsetof({member}), {size});')
    constants = ("kHelloMagic", "kLaneMagic", "kWelcomeMagic", "kProtocolMajor", "kProtocolMinor")
    for constant in (*constants, "kMaxLanes"):
        lines.append(f'std::printf("{constant} %u\\n", unsigned(gpupool::wire::{constant}));')
    for constant in ("kWindowMinBytes", "kWindowBaseStep"):
        lines.append(
            f'std::printf("{constant} %llu\\n", (unsigned long long)gpupool::wire::{constant});'
        )
    for kind in hello.TransportKind:
        value = f"unsigned(gpupool::wire::TransportKind::{kind.word})"
        lines.append(f'std::printf("TransportKind.{kind.word} %u\\n", {value});')
    for status in hello.WelcomeStatus:
        value = f"unsigned(gpupool::wire::WelcomeStatus::{status.word})"
        lines.append(f'std::printf("WelcomeStatus.{status.word} %u\\n", {value});')
    includes = '#include <cstddef>\n#include <cstdio>\n#include "wire/cpp/hello.hpp"\n'
    includes += '#include "wire/cpp/layout.hpp"\n'
    return f"{includes}int main() {{\n" + "\n".join(lines) + "\n}\n"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What the C++ compiler makes of the headers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing")
    folder = tmp_path_factory.mktemp("hello")
    (folder / "facts.cpp").write_text(_program(), encoding="utf-8")
    command = [compiler, "-std=c++20", f"-I{ROOT}", "facts.cpp", "-o", "facts"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    done = subprocess.run(
        [folder / "facts"], check=True, capture_output=True, text=True, timeout=10
    )
    return {
        line.split()[0]: [int(word) for word in line.split()[1:]]
        for line in done.stdout.splitlines()
    }


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("Hello", hello.HELLO_FIELDS, hello.HELLO_BYTES),
        ("LaneHello", hello.LANE_FIELDS, hello.LANE_BYTES),
        ("Welcome", hello.WELCOME_FIELDS, hello.WELCOME_BYTES),
    ],
)
def test_layout(
    facts: dict[str, list[int]], name: str, fields: tuple[tuple[str, str], ...], size: int
) -> None:
    assert facts[name] == [size]
    offset = 0
    for field, code in fields:
        width = struct.calcsize("<" + code)
        assert facts[f"{name}.{field}"] == [offset, width], field
        offset += width
    assert offset == size  # no field of the C++ struct is missing here


def test_constants(facts: dict[str, list[int]]) -> None:
    assert facts["kHelloMagic"] == [hello.HELLO_MAGIC]
    assert facts["kLaneMagic"] == [hello.LANE_MAGIC]
    assert facts["kMaxLanes"] == [hello.MAX_LANES]
    assert facts["kWelcomeMagic"] == [hello.WELCOME_MAGIC]
    assert facts["kProtocolMajor"] == [hello.PROTOCOL_MAJOR]
    assert facts["kProtocolMinor"] == [hello.PROTOCOL_MINOR]
    assert facts["kWindowMinBytes"] == [hello.WINDOW_MIN_BYTES]
    assert facts["kWindowBaseStep"] == [hello.WINDOW_BASE_STEP_BYTES]
    for kind in hello.TransportKind:
        assert facts[f"TransportKind.{kind.word}"] == [kind]
    for status in hello.WelcomeStatus:
        assert facts[f"WelcomeStatus.{status.word}"] == [status]


def test_hello_survives_the_wire() -> None:
    sent = hello.Hello(
        transport=hello.TransportKind.TCP,
        window_base=0x2000_0000_0000,
        pid=7,
        compute_percent=25,
        memory_mib=1024,
        cuda_version=13000,
        client_version="0.1.0",
        program="python3",
        token=b"secret",
        nonce=bytes(range(1, 17)),
        lanes=3,
        policy=1,
        wait_s=60,
        vgpu="trainer",
    )
    assert hello.Hello.decode(sent.encode()) == sent


def test_an_older_hello_lacks_what_came_later() -> None:
    sent = hello.Hello(protocol_minor=0, program="old", token=b"secret", lanes=3, vgpu="x")
    assert len(sent.encode()) == 200
    decoded = hello.Hello.decode(sent.encode())
    assert (decoded.program, decoded.token, decoded.lanes) == ("old", b"secret", 0)
    decoded = hello.Hello.decode(replace(sent, protocol_minor=1).encode())
    assert (decoded.program, decoded.lanes, decoded.vgpu, decoded.wait_s) == ("old", 3, "", 0)


def test_a_lane_survives_the_wire() -> None:
    sent = hello.LaneHello(index=2, nonce=bytes(range(1, 17)), token=b"secret")
    assert hello.LaneHello.decode(sent.encode()) == sent
    assert hello.HelloHeader.decode(sent.encode()).is_lane
    for raw in (sent.encode()[:-1], hello.Hello().encode()[: hello.LANE_BYTES]):
        with pytest.raises(hello.MalformedHelloError):
            hello.LaneHello.decode(raw)


def test_welcome_survives_the_wire() -> None:
    sent = hello.Welcome(
        status=hello.WelcomeStatus.LIMIT, session_id=9, text="no", host_version="0.1.0"
    )
    assert hello.Welcome.decode(sent.encode()) == sent


def test_long_text_is_cut_at_a_character() -> None:
    received = hello.Welcome.decode(hello.Welcome(text="ä" * 200).encode())
    assert received.text == "ä" * 127  # 254 bytes; one more would not leave room for the terminator


@given(st.binary(min_size=0, max_size=2 * hello.HELLO_BYTES))
def test_any_bytes_are_a_hello_or_malformed(raw: bytes) -> None:
    try:
        hello.Hello.decode(raw)
    except hello.MalformedHelloError:
        return
    assert len(raw) == hello.hello_bytes(hello.HelloHeader.decode(raw).protocol_minor)


@given(st.binary(min_size=hello.HELLO_BYTES - 12, max_size=hello.HELLO_BYTES - 12))
def test_any_body_decodes(body: bytes) -> None:
    head = hello.Hello().encode()[:12]
    decoded = hello.Hello.decode(head + body)
    assert decoded.protocol_major == hello.PROTOCOL_MAJOR
