"""Command streams that were made wrong: they may end their own session, and nothing else.

A program's own stream is recorded, and words of it are changed; `tests/e2e/test_renderer.py` has
what the protocol itself forbids.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.wire.hello import HELLO_BYTES
from tests.conftest import Host, end_host, make_host
from tests.e2e import vtest
from tests.e2e.proxy import proxy
from tests.opengl import ways

SCENES = ("triangle", "textures", "geometry", "compute")
_CHANGES = ("word", "word", "word", "flip", "near", "drop", "twice", "swap")
_DRAWING = 0.6  # of the streams have changes in what is drawn alone, the rest anywhere
_SENT_S = 20.0  # after so long a stream that is still not taken is given up
_ENDED_S = 60.0


def commands(stream: bytes) -> list[bytes]:
    """vtest's commands, each with its payload."""
    found, at = [], 0
    while at < len(stream):
        size, command = struct.unpack_from("<II", stream, at)
        end = at + 8 + (size if command == vtest.CREATE_RENDERER else 4 * size)
        if command == vtest.PUT:  # what follows its eleven words has its bytes, not words
            end = at + 8 + 44 + struct.unpack_from("<I", stream, at + 48)[0]
        found.append(stream[at:end])
        at = end
    return found


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """A hostd whose renderers may crash."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name))
        host.crash_expected = True
        yield host
        end_host(host)


@pytest.fixture(scope="module")
def recorded(machine: Host, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What a program of scenes says to its renderer."""
    way = ways.gpupool(machine, "tcp")
    target = tmp_path_factory.mktemp("recorded") / "scenes.npz"
    with proxy(machine.port) as flow:
        flow.records = True
        variables = {"GPUPOOL_ENDPOINT": flow.endpoint}
        module = "tests.opengl.scenes_moderngl"
        way.run(sys.executable, "-m", module, str(target), *SCENES, variables=variables)
        streams = [bytes(link.said[HELLO_BYTES:]) for link in flow.links]
    found = commands(max(streams, key=len))
    assert any(each[4] == vtest.SUBMIT for each in found)
    return found


def mutated(stream: list[bytes], seed: int) -> bytes:
    """The stream with a few changes."""
    dice = random.Random(seed)  # noqa: S311 (tests shall repeat)
    changed = list(stream)
    submits = [at for at, each in enumerate(stream) if each[4] == vtest.SUBMIT]
    if dice.random() < _DRAWING:
        for _ in range(dice.randint(1, 6)):
            at = dice.choice(submits)
            changed[at] = _bent(changed[at], dice.choice(_CHANGES[:5]), dice)
        return b"".join(changed)
    for _ in range(dice.randint(1, 6)):
        how, at = dice.choice(_CHANGES), dice.randrange(1, len(changed))
        if how == "drop":
            del changed[at]
        elif how == "twice":
            changed.insert(at, changed[at])
        elif how == "swap":
            other = dice.randrange(1, len(changed))
            changed[at], changed[other] = changed[other], changed[at]
        else:
            changed[at] = _bent(changed[at], how, dice)
    return b"".join(changed)


def _bent(command: bytes, how: str, dice: random.Random) -> bytes:
    """A command with another word in it; mostly among its first, where its meaning is."""
    words = len(command) // 4
    at = 4 * dice.randrange(min(words, dice.choice((4, 16, 64, words))))
    (old,) = struct.unpack_from("<I", command, at)
    if how == "flip":
        new = old ^ (1 << dice.randrange(32))
    elif how == "near":
        new = (old + dice.choice((-1, 1, 2, 16, 255))) & 0xFFFF_FFFF
    else:
        any_word = struct.unpack_from("<I", command, 4 * dice.randrange(words))[0]
        new = dice.choice((0, 1, 0xFFFF_FFFF, 0x8000_0000, any_word, dice.getrandbits(32)))
    return command[:at] + struct.pack("<I", new) + command[at + 4 :]


def play(host: Host, transport: str, stream: bytes) -> None:
    """Says it all, whatever is answered."""
    with vtest.Client(host, transport, context=False) as one:
        one.stream.settimeout(_SENT_S)

        def drain() -> None:
            with contextlib.suppress(OSError):
                while one.stream.recv(1 << 16):
                    pass

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        with contextlib.suppress(OSError):  # it was refused on the way
            one.stream.sendall(stream)
            one.stream.shutdown(socket.SHUT_WR)
        reader.join(_SENT_S)


def attack(host: Host, transport: str, stream: list[bytes], seeds: range) -> None:
    """Neighbours neither notice nor are slowed to a halt, and every session ends."""
    pixels = random.Random(0).randbytes(64 * 64 * 4)  # noqa: S311
    with vtest.Client(host, "tcp") as neighbour:
        neighbour.make(7, 64, 64)
        words = (7, 0, 0, 0, 0, 0, 0, 64, 64, 1, len(pixels))
        neighbour.say(vtest.PUT, *words)
        neighbour.raw(pixels)
        for seed in seeds:
            play(host, transport, mutated(stream, seed))
            neighbour.say(vtest.GET, *words)
            assert vtest.receive(neighbour.stream, len(pixels)) == pixels, f"seed {seed}"
            host.wait_until(
                lambda: len(host.sessions()) == 1, f"the session of seed {seed} to end", _ENDED_S
            )


def test_a_recorded_stream_plays(machine: Host, recorded: list[bytes], transport: str) -> None:
    """Unchanged it is taken to its end: what the others end of is what was changed."""
    with vtest.Client(machine, transport, context=False) as one:
        wanted = sum(each[4] in (vtest.GET_CAPS, vtest.GET_CAPS2) for each in recorded)
        assert wanted
        one.stream.settimeout(60)
        sender = threading.Thread(target=one.raw, args=(b"".join(recorded),), daemon=True)
        sender.start()
        one_more = struct.pack("<4I", 2, vtest.BUSY_WAIT, 1, 1)
        received = bytearray()
        sender_done = False
        while not received.endswith(struct.pack("<3I", 1, vtest.BUSY_WAIT, 0)) or not sender_done:
            piece = one.stream.recv(1 << 16)
            assert piece, "the renderer ended it"
            received += piece
            if not sender.is_alive() and not sender_done:
                one.raw(one_more)
                sender_done = True
    machine.wait_until(lambda: not machine.sessions(), "the session to end")


def test_some_wrong_streams(machine: Host, recorded: list[bytes], transport: str) -> None:
    attack(machine, transport, recorded, range(10))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_many_wrong_streams(machine: Host, recorded: list[bytes], transport: str) -> None:
    attack(machine, transport, recorded, range(1000, 1200))
