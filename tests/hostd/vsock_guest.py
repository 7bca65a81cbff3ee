"""A guest of gpupool-vsock: QEMU's end of the vhost-user connection, and a driver of the rings.

Memory is a memfd that the relay maps, the rings are built in it as a guest's driver builds them
(Virtual I/O Device 1.2, 2.7 and 5.10), so a test can put any lie into any word.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REQUEST, RESPONSE, RESET, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
TO_GUEST, FROM_GUEST, EVENTS = range(3)
NEXT, WRITE, INDIRECT = 1, 2, 4
TIMEOUT_S = 20.0

_SIZE = 64  # entries of a ring
_HALF = 2 << 20  # memory is two regions of this size, beside each other for the guest
_GUEST_BASE = 1 << 32
_USER_BASE = 0x7F00_0000_0000
_ROOM = 4096  # data in one buffer that we offer, behind 44 bytes for its header
_FEATURES = (1 << 32) | (1 << 30) | (1 << 28)
_EVENT_INDEX = 1 << 29
_HEADER = struct.Struct("<QQIIIHHIII")


def noise(seed: int, count: int) -> bytes:
    """Bytes without a pattern, the same at each run."""
    return random.Random(seed).randbytes(count)  # noqa: S311 (nothing secret)


@dataclass(frozen=True, slots=True)
class Packet:
    """What the relay sent: `source` is the host's port, `target` the guest's."""

    source: int
    target: int
    op: int
    flags: int
    buffer: int
    forwarded: int
    data: bytes


class VhostUser:
    """The messages of the protocol, as QEMU sends them."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))

    def tell(self, request: int, payload: bytes, *files: int, flags: int = 1) -> None:
        """Without an answer."""
        message = struct.pack("<III", request, flags, len(payload)) + payload
        socket.send_fds(self.socket, [message], list(files))

    def ask(self, request: int, payload: bytes = b"", *files: int, flags: int = 1) -> bytes:
        """The answer's payload."""
        self.tell(request, payload, *files, flags=flags)
        answer = self._read(12)
        got, _, size = struct.unpack("<III", answer)
        assert got == request
        return self._read(size)

    def order(self, request: int, payload: bytes, *files: int) -> None:
        """With REPLY_ACK; fails if the relay has ended the connection."""
        assert self.ask(request, payload, *files, flags=9) == bytes(8)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data


class Guest:
    """One VM. Bytes and addresses are the guest's own; nothing is checked here."""

    def __init__(self, folder: Path, cid: int, *, event_index: bool = True) -> None:
        self.folder, self.cid, self.event_index = folder, cid, event_index
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, 2 * _HALF)
        self.memory = mmap.mmap(self.file, 2 * _HALF)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.buffer = 1 << 18  # what we say of our own
        self.forwarded: dict[tuple[int, int], int] = {}
        self.inbox: list[Packet] = []
        self.boot()

    def boot(self) -> None:
        """A driver that starts anew: empty rings."""
        self.memory[: 3 << 16] = bytes(3 << 16)
        self.offered = [0, 0, 0]  # our index of each available ring
        self.seen = [0, 0, 0]  # and of each used ring
        self.inbox.clear()
        self.forwarded.clear()
        for slot in range(_SIZE // 2):
            self._offer_room(slot)
        self.describe(EVENTS, 0, self.at(EVENTS, 0x8000), 8, WRITE, 0)
        self.offer(EVENTS, 0)

    # Rings: each has 64 KiB at the start of memory, and 32 KiB of that for what they point at.
    def at(self, ring: int, offset: int = 0) -> int:
        """The guest's address."""
        return _GUEST_BASE + (ring << 16) + offset

    def describe(
        self, ring: int, index: int, address: int, size: int, flags: int, following: int
    ) -> None:
        """Writes a descriptor."""
        place = (ring << 16) + 16 * index
        self.memory[place : place + 16] = struct.pack("<QIHH", address, size, flags, following)

    def offer(self, ring: int, head: int) -> None:
        """Puts a chain into the available ring."""
        place = (ring << 16) + 0x1000 + 4 + 2 * (self.offered[ring] % _SIZE)
        self.memory[place : place + 2] = struct.pack("<H", head)
        self.offered[ring] = (self.offered[ring] + 1) & 0xFFFF
        self.write_index(ring, self.offered[ring])

    def write_index(self, ring: int, index: int) -> None:
        """The available ring's index, as the relay sees it."""
        place = (ring << 16) + 0x1000
        self.memory[place + 2 : place + 4] = struct.pack("<H", index)

    def kick(self, ring: int) -> None:
        """What a write to the device's notification address does."""
        os.eventfd_write(self.kicks[ring], 1)

    def _offer_room(self, slot: int) -> None:
        """A buffer for one packet. The header has a descriptor of its own, and straddles two."""
        data = _GUEST_BASE + (1 << 20) + slot * (_ROOM + 64)
        first, second = 2 * slot, 2 * slot + 1
        self.describe(TO_GUEST, first, data, 20, NEXT | WRITE, second)
        self.describe(TO_GUEST, second, data + 20, 24 + _ROOM, WRITE, 0)
        self.offer(TO_GUEST, first)

    def connect(self, *, anew: bool = True) -> None:
        """QEMU comes. `anew`: with a guest that starts; else it has served this one before."""
        self.vhost = VhostUser(self.folder / "vhost")
        talk = self.vhost
        (offered,) = struct.unpack("<Q", talk.ask(1))
        wanted = _FEATURES | (_EVENT_INDEX if self.event_index else 0)
        assert wanted & ~offered == 0
        talk.tell(16, struct.pack("<Q", 0x209))
        talk.tell(3, b"")
        talk.order(2, struct.pack("<Q", wanted))
        regions = struct.pack("<II", 2, 0) + b"".join(
            struct.pack("<QQQQ", _GUEST_BASE + place, _HALF, _USER_BASE + place, place)
            for place in (0, _HALF)
        )
        talk.order(5, regions, self.file, self.file)
        if anew:
            self.boot()
        self.start([0, 0, 0] if anew else self.seen)

    def start(self, places: list[int]) -> None:
        """Starts the rings at these indices."""
        for ring, place in enumerate(places):
            base = _USER_BASE + (ring << 16)
            self.vhost.tell(8, struct.pack("<II", ring, _SIZE))
            self.vhost.tell(10, struct.pack("<II", ring, place))
            addresses = (ring, 0, base, base + 0x2000, base + 0x1000, 0)
            self.vhost.tell(9, struct.pack("<IIQQQQ", *addresses))
            self.vhost.tell(13, struct.pack("<Q", ring), self.calls[ring])
            self.vhost.tell(12, struct.pack("<Q", ring), self.kicks[ring])
            self.vhost.order(18, struct.pack("<II", ring, 1))

    def stop(self) -> list[int]:
        """Stops the rings, as a paused or rebooting VM does; where they stood."""
        return [
            struct.unpack("<II", self.vhost.ask(11, struct.pack("<II", ring, 0)))[1]
            for ring in range(3)
        ]

    def leave(self) -> None:
        """QEMU goes."""
        self.vhost.socket.close()

    def close(self) -> None:
        """Gives everything back."""
        self.leave()
        self.memory.close()
        for file in (self.file, *self.kicks, *self.calls):
            os.close(file)

    # Packets.
    def header(
        self, ports: tuple[int, int], op: int, size: int, flags: int = 0, **lies: int
    ) -> bytes:
        """`ports`: the guest's and the host's. Lies: cid, host, kind, buffer, forwarded."""
        return _HEADER.pack(
            lies.get("cid", self.cid),
            lies.get("host", 2),
            *ports,
            size,
            lies.get("kind", 1),
            op,
            flags,
            lies.get("buffer", self.buffer),
            lies.get("forwarded", self.forwarded.get(ports, 0)),
        )

    def send(
        self, ports: tuple[int, int], op: int, data: bytes = b"", flags: int = 0, **lies: int
    ) -> None:
        """One packet in one descriptor. Waits until the relay has taken it."""
        self.send_raw(self.header(ports, op, lies.pop("size", len(data)), flags, **lies) + data)

    def send_raw(self, packet: bytes, *, pieces: int = 1, indirect: bool = False) -> None:
        """Any bytes as a packet, in that many descriptors."""
        place = _HALF - len(packet) // 2  # across the two regions
        self.memory[place : place + len(packet)] = packet
        bounds = [len(packet) * i // pieces for i in range(pieces + 1)]
        for i in range(pieces):
            flags, address = NEXT if i + 1 < pieces else 0, _GUEST_BASE + place + bounds[i]
            table = (FROM_GUEST << 16) + (0x8000 if indirect else 0) + 16 * i
            self.memory[table : table + 16] = struct.pack(
                "<QIHH", address, bounds[i + 1] - bounds[i], flags, i + 1
            )
        if indirect:
            table = self.at(FROM_GUEST, 0x8000)
            self.describe(FROM_GUEST, 0, table, 16 * pieces, INDIRECT, 0)
        self.offer(FROM_GUEST, 0)
        self.kick(FROM_GUEST)
        self.wait_used(FROM_GUEST)

    def used(self, ring: int) -> int:
        """The used ring's index."""
        place = (ring << 16) + 0x2000
        return int(struct.unpack("<H", self.memory[place + 2 : place + 4])[0])

    def wait_used(self, ring: int) -> None:
        """Until the relay has used all that we offered there."""
        end_s = time.monotonic() + TIMEOUT_S
        while self.used(ring) != self.offered[ring]:
            assert time.monotonic() < end_s, "the relay does not take what the guest sends"
            time.sleep(0.0002)
        self.seen[ring] = self.offered[ring]

    def poll(self) -> None:
        """Takes what the relay has sent into the inbox, and offers the buffers again."""
        while self.used(TO_GUEST) != self.seen[TO_GUEST]:
            place = (TO_GUEST << 16) + 0x2000 + 4 + 8 * (self.seen[TO_GUEST] % _SIZE)
            head, size = struct.unpack("<II", self.memory[place : place + 8])
            slot = head // 2
            start = (1 << 20) + slot * (_ROOM + 64)
            raw = self.memory[start : start + size]
            fields = _HEADER.unpack(raw[:44])
            source_cid, target_cid, source, target, count, kind, op, flags, buffer, done = fields
            assert (source_cid, target_cid, kind) == (2, self.cid, 1)
            assert len(raw) == 44 + count
            self.inbox.append(Packet(source, target, op, flags, buffer, done, bytes(raw[44:])))
            self.seen[TO_GUEST] = (self.seen[TO_GUEST] + 1) & 0xFFFF
            self._offer_room(slot)
        self.kick(TO_GUEST)

    def packets(self, timeout_s: float = TIMEOUT_S) -> Iterator[Packet]:
        """What comes, until nothing comes for that long."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            self.poll()
            while self.inbox:
                yield self.inbox.pop(0)
                end_s = time.monotonic() + timeout_s
            self._wait_for_call(min(timeout_s, 1.0))

    def _wait_for_call(self, timeout_s: float) -> None:
        """A guest waits for nothing else: what comes without a call is a mistake of the relay's."""
        call = self.calls[TO_GUEST]
        if self.event_index:  # "when you use the next one"
            place = (TO_GUEST << 16) + 0x1000 + 4 + 2 * _SIZE
            self.memory[place : place + 2] = struct.pack("<H", self.seen[TO_GUEST])
        if self.used(TO_GUEST) != self.seen[TO_GUEST]:
            return
        if not select.select([call], [], [], timeout_s)[0]:
            if self.used(TO_GUEST) == self.seen[TO_GUEST]:
                return
            assert select.select([call], [], [], TIMEOUT_S)[0], "the guest was not called"
        os.eventfd_read(call)

    def expect(self, ports: tuple[int, int], *ops: int) -> Packet:
        """The next packet of that connection that is no word about credit, which must be one of
        `ops`. Others' packets are dropped.
        """
        for packet in self.packets():
            if (packet.target, packet.source) != ports:
                continue
            if packet.op in ops:
                return packet
            assert packet.op in (CREDIT_UPDATE, CREDIT_REQUEST), packet
        raise AssertionError(f"none of {ops} within {TIMEOUT_S} s")

    def open(self, guest_port: int, host_port: int) -> tuple[int, int]:
        """A connection to the host, which takes it."""
        ports = (guest_port, host_port)
        self.send(ports, REQUEST)
        assert self.expect(ports, RESPONSE, RESET).op == RESPONSE
        return ports

    def take(self, ports: tuple[int, int], count: int) -> bytes:
        """That many bytes of a connection, of which the relay is told."""
        data = b""
        while len(data) < count:
            more = self.expect(ports, DATA).data
            self.forwarded[ports] = (self.forwarded.get(ports, 0) + len(more)) & 0xFFFFFFFF
            data += more
        return data
