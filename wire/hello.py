"""The first message of a connection and its answer: the Python twin of `wire/cpp/hello.hpp`.

hostd reads a Hello and, when it refuses, writes a Welcome. Layout and numbers must be those of the
C++ header; `tests/wire/test_hello.py` compiles the header and compares. Decoding checks only what
makes the bytes a Hello; whether the host wants to serve it is decided in
`gpupool.hostd.core.admission`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HELLO_MAGIC = 0x4C4F4F50  # "POOL"
QUERY_MAGIC = 0x534B5341  # "ASKS": see wire/query.py
WELCOME_MAGIC = 0x4C4F4F57  # "WOOL"
LANE_MAGIC = 0x454E414C  # "LANE"
PROTOCOL_MAJOR = 1  # differs: refused, both versions named
PROTOCOL_MINOR = 2  # a client one minor behind its host is served
MAX_LANES = 15  # connections of a session besides its first
NONCE_BYTES = 16

# field, struct code, in the order of hello.hpp; little-endian, no padding between (the C++ structs
# have none).
HELLO_FIELDS = (
    ("magic", "I"),
    ("protocol_major", "H"),
    ("protocol_minor", "H"),
    ("bytes", "I"),
    ("transport", "I"),
    ("window_base", "Q"),
    ("pid", "I"),
    ("compute_percent", "I"),
    ("memory_mib", "I"),
    ("cuda_version", "I"),
    ("client_version", "32s"),
    ("program", "64s"),
    ("token", "64s"),
    # Since 1.1.
    ("nonce", "16s"),
    ("lanes", "I"),
    ("kind", "H"),
    ("window_bits", "H"),
    # Since 1.2.
    ("policy", "I"),
    ("wait_s", "I"),
    ("vgpu", "64s"),
)
LANE_FIELDS = (
    ("magic", "I"),
    ("protocol_major", "H"),
    ("protocol_minor", "H"),
    ("bytes", "I"),
    ("index", "I"),
    ("nonce", "16s"),
    ("token", "64s"),
)
WELCOME_FIELDS = (
    ("magic", "I"),
    ("protocol_major", "H"),
    ("protocol_minor", "H"),
    ("bytes", "I"),
    ("status", "I"),
    ("window_bytes", "Q"),
    ("session_id", "Q"),
    ("driver_version", "I"),
    ("device_count", "I"),
    ("host_version", "32s"),
    ("text", "256s"),
)
_HELLO = struct.Struct("<" + "".join(code for _, code in HELLO_FIELDS))
_WELCOME = struct.Struct("<" + "".join(code for _, code in WELCOME_FIELDS))
_LANE = struct.Struct("<" + "".join(code for _, code in LANE_FIELDS))
_HEADER = struct.Struct("<IHHI")

HELLO_BYTES = _HELLO.size
_OLD_HELLO_BYTES = (200, 224)  # of 1.0, 1.1
LANE_BYTES = _LANE.size
WELCOME_BYTES = _WELCOME.size
HEADER_BYTES = _HEADER.size  # enough of a Hello to tell versions apart
TEXT_BYTES = 256
TOKEN_BYTES = 64

# Layout of the window, from wire/cpp/layout.hpp: the smallest window, and the room between two
# candidate bases.
WINDOW_MIN_BYTES = 0x400_0000
WINDOW_BASE_STEP_BYTES = 0x10_0000_0000


class TransportKind(enum.IntEnum):
    """How bytes travel between client and worker."""

    SHM = 1
    TCP = 2
    VSOCK = 3
    RDMA = 4
    TLS = 5  # TCP with TLS 1.3
    WINDOW = 6  # a virtual machine's shared window, with vsock beside it; a Hello says VSOCK

    @property
    def word(self) -> str:
        """The name people use: `shm`, `tcp`, `vsock`, `rdma`, `tls`, `window`."""
        return self.name.lower()


class SessionKind(enum.IntEnum):
    """What a session is for."""

    CUDA = 0
    OPENGL = 1

    @property
    def word(self) -> str:
        """The name in lists: `cuda`, `opengl`."""
        return self.name.lower()


class WelcomeStatus(enum.IntEnum):
    """Why a client is refused, or `OK`."""

    OK = 0
    VERSION = 1
    TOKEN = 2
    NO_DEVICE = 3
    LIMIT = 4
    BASE_TAKEN = 5
    WORKER = 6
    BAD_REQUEST = 7
    WAITING = 8  # not the last word: another Welcome follows

    @property
    def word(self) -> str:
        """The name in logs: `ok`, `version`, ..."""
        return self.name.lower()


class MalformedHelloError(ValueError):
    """The bytes are no Hello. The text says what is wrong, for the peer and for the log."""


@dataclass(frozen=True, slots=True)
class HelloHeader:
    """The first bytes of a Hello: the same in every protocol version."""

    protocol_major: int
    protocol_minor: int
    size_bytes: int
    is_query: bool = False  # a Query (wire/query.py) has the same first bytes
    is_lane: bool = False  # so has a LaneHello

    @classmethod
    def decode(cls, raw: bytes) -> HelloHeader:
        """Reads HEADER_BYTES bytes. Raises MalformedHelloError when this is no gpupool client."""
        magic, major, minor, size = _HEADER.unpack(raw[:HEADER_BYTES])
        if magic == QUERY_MAGIC:
            return cls(major, minor, size, is_query=True)
        if magic == LANE_MAGIC:
            return cls(major, minor, size, is_lane=True)
        if raw[:2] == b"\x16\x03":  # a TLS record
            raise MalformedHelloError(
                "a client that speaks TLS came to an endpoint without; it must dial tcp://"
            )
        if magic != HELLO_MAGIC:
            raise MalformedHelloError(
                f"magic is {magic:#010x}, a gpupool client sends {HELLO_MAGIC:#010x}"
            )
        return cls(major, minor, size)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client asks for."""

    protocol_major: int = PROTOCOL_MAJOR
    protocol_minor: int = PROTOCOL_MINOR
    transport: int = (
        TransportKind.SHM
    )  # a TransportKind, or an unknown number from a strange client
    window_base: int = 0
    pid: int = 0  # in the client's own pid namespace: for logs only
    compute_percent: int = 0  # 0: the host's default
    memory_mib: int = 0  # 0: the host's default
    cuda_version: int = 0
    client_version: str = ""
    program: str = ""
    token: bytes = b""
    nonce: bytes = b""  # which lanes are this session's
    lanes: int = 0  # further connections that it has opened
    kind: int = SessionKind.CUDA  # a SessionKind, or an unknown number
    # It can map its virtual machine's window, of so many address bits; 0: it cannot.
    window_bits: int = 0
    policy: int = 0  # as in hostd/pages/quota_page.hpp: 0 elastic, 1 hard
    wait_s: int = 0  # how long it would wait for room; 0: it would not
    vgpu: str = ""  # the name of one, or "~KEY": the one of all processes that say this KEY

    @classmethod
    def decode(cls, raw: bytes) -> Hello:
        """Reads hello_bytes() bytes. Raises MalformedHelloError for a wrong length or magic."""
        if len(raw) < HEADER_BYTES:
            raise MalformedHelloError(f"Hello has {len(raw)} bytes, expected {HELLO_BYTES}")
        header = HelloHeader.decode(raw)
        expected = hello_bytes(header.protocol_minor)
        if len(raw) != expected:
            raise MalformedHelloError(f"Hello has {len(raw)} bytes, expected {expected}")
        if header.size_bytes != expected:
            raise MalformedHelloError(
                f"Hello says it has {header.size_bytes} bytes, expected {expected}"
            )
        words = _HELLO.unpack(raw.ljust(HELLO_BYTES, b"\0"))
        values = dict(zip((name for name, _ in HELLO_FIELDS), words, strict=True))
        del values["magic"], values["bytes"]
        values["client_version"] = _text(values["client_version"])
        values["program"] = _text(values["program"])
        values["vgpu"] = _text(values["vgpu"])
        values["token"] = values["token"].rstrip(b"\0")
        return cls(**values)

    def encode(self) -> bytes:
        """The bytes on the wire. Used by tests and by tools; clients are C++."""
        size = hello_bytes(self.protocol_minor)
        return _HELLO.pack(
            HELLO_MAGIC,
            self.protocol_major,
            self.protocol_minor,
            size,
            self.transport,
            self.window_base,
            self.pid,
            self.compute_percent,
            self.memory_mib,
            self.cuda_version,
            _fit(self.client_version, 32),
            _fit(self.program, 64),
            self.token,
            self.nonce,
            self.lanes,
            self.kind,
            self.window_bits,
            self.policy,
            self.wait_s,
            _fit(self.vgpu, 64),
        )[:size]


def hello_bytes(protocol_minor: int) -> int:
    """How long a Hello of that version is."""
    known = len(_OLD_HELLO_BYTES)
    return HELLO_BYTES if protocol_minor >= known else _OLD_HELLO_BYTES[protocol_minor]


@dataclass(frozen=True, slots=True)
class LaneHello:
    """The first message on a further connection of a session."""

    protocol_major: int = PROTOCOL_MAJOR
    protocol_minor: int = PROTOCOL_MINOR
    index: int = 0
    nonce: bytes = b""
    token: bytes = b""

    @classmethod
    def decode(cls, raw: bytes) -> LaneHello:
        """Reads LANE_BYTES bytes. Raises MalformedHelloError for a wrong length or magic."""
        if len(raw) != LANE_BYTES:
            raise MalformedHelloError(f"LaneHello has {len(raw)} bytes, expected {LANE_BYTES}")
        header = HelloHeader.decode(raw)
        if not header.is_lane or header.size_bytes != LANE_BYTES:
            raise MalformedHelloError("these bytes are no LaneHello")
        _, major, minor, _, index, nonce, token = _LANE.unpack(raw)
        return cls(major, minor, index, nonce, token.rstrip(b"\0"))

    def encode(self) -> bytes:
        """The bytes on the wire. Used by tests; clients are C++."""
        return _LANE.pack(
            LANE_MAGIC,
            self.protocol_major,
            self.protocol_minor,
            LANE_BYTES,
            self.index,
            self.nonce,
            self.token,
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a Hello. hostd sends refusals only; a worker sends the rest."""

    status: WelcomeStatus = WelcomeStatus.OK
    window_bytes: int = 0
    session_id: int = 0
    driver_version: int = 0
    device_count: int = 0
    host_version: str = ""
    text: str = ""  # at most 255 bytes survive
    protocol_major: int = PROTOCOL_MAJOR
    protocol_minor: int = PROTOCOL_MINOR

    def encode(self) -> bytes:
        """The bytes on the wire; texts that are too long are cut at a character."""
        return _WELCOME.pack(
            WELCOME_MAGIC,
            self.protocol_major,
            self.protocol_minor,
            WELCOME_BYTES,
            self.status,
            self.window_bytes,
            self.session_id,
            self.driver_version,
            self.device_count,
            _fit(self.host_version, 32),
            _fit(self.text, TEXT_BYTES),
        )

    @classmethod
    def decode(cls, raw: bytes) -> Welcome:
        """Reads WELCOME_BYTES bytes. Raises ValueError when they are no Welcome."""
        if len(raw) != WELCOME_BYTES:
            raise ValueError(f"Welcome has {len(raw)} bytes, expected {WELCOME_BYTES}")
        values = dict(zip((name for name, _ in WELCOME_FIELDS), _WELCOME.unpack(raw), strict=True))
        if values.pop("magic") != WELCOME_MAGIC or values.pop("bytes") != WELCOME_BYTES:
            raise ValueError("these bytes are no Welcome")
        values["status"] = WelcomeStatus(values["status"])
        values["host_version"] = _text(values["host_version"])
        values["text"] = _text(values["text"])
        return cls(**values)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _fit(text: str, size: int) -> bytes:
    """UTF-8 that leaves room for a terminator, cut between characters."""
    raw = text.encode("utf-8", "replace")[: size - 1]
    return raw.decode("utf-8", "ignore").encode("utf-8")
