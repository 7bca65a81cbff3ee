"""What a guest asks hostd without a session, and the answer: the Python twin of
`wire/cpp/query.hpp`.

hostd reads a Query and writes a Report. Layout and numbers must be those of the C++ header;
`tests/wire/test_query.py` compiles the header and compares. What a guest may know is decided in
`gpupool.hostd.core.report`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import ClassVar

from gpupool.wire.hello import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    QUERY_MAGIC,
    MalformedHelloError,
)

REPORT_MAGIC = 0x54524F50  # "PORT"
MAX_GPUS = 16
MAX_PROCESSES = 4096
UNKNOWN = 0xFFFFFFFF  # a number that the host does not know or does not tell

QUERY_FIELDS = (
    ("magic", "I"),
    ("protocol_major", "H"),
    ("protocol_minor", "H"),
    ("bytes", "I"),
    ("compute_percent", "I"),
    ("memory_mib", "I"),
    ("pid", "I"),  # since 1.2
    ("client_version", "32s"),
    ("token", "64s"),
    # Since 1.2.
    ("vgpu", "64s"),
)
REPORT_FIELDS = (
    ("magic", "I"),
    ("protocol_major", "H"),
    ("protocol_minor", "H"),
    ("bytes", "I"),
    ("gpu_count", "I"),
    ("gpu_bytes", "I"),
    ("process_count", "I"),
    ("process_bytes", "I"),
    ("cuda_version", "I"),
    ("driver_version", "80s"),
    ("host_version", "32s"),
)
GPU_FIELDS = (
    ("name", "96s"),
    ("uuid", "48s"),
    ("pci_bus_id", "32s"),
    ("total_bytes", "Q"),
    ("reserved_bytes", "Q"),
    ("used_bytes", "Q"),
    ("pci_device_id", "I"),
    ("pci_subsystem_id", "I"),
    ("compute_major", "I"),
    ("compute_minor", "I"),
    ("architecture", "I"),
    ("brand", "I"),
    ("multiprocessors", "I"),
    ("cores", "I"),
    ("memory_bus_bits", "I"),
    ("max_sm_clock_mhz", "I"),
    ("max_memory_clock_mhz", "I"),
    ("max_pcie_generation", "I"),
    ("max_pcie_width", "I"),
    ("ecc_enabled", "I"),
    ("persistence_enabled", "I"),
    ("compute_percent", "I"),
    ("utilization_percent", "I"),
    ("peers_read", "I"),
    ("peers_write", "I"),
    ("peers_nvlink", "I"),
    ("peers_atomics", "I"),
    ("peers_pci", "I"),
)
PROCESS_FIELDS = (
    ("gpu", "I"),
    ("pid", "I"),
    ("used_bytes", "Q"),
    ("utilization_percent", "I"),
    ("reserved", "I"),
    ("program", "64s"),
)


def _layout(members: Iterable[tuple[str, str]]) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, code in members))


_QUERY, _REPORT = _layout(QUERY_FIELDS), _layout(REPORT_FIELDS)
QUERY_BYTES = _QUERY.size
_OLD_QUERY_BYTES = 120  # before 1.2


@dataclass(frozen=True, slots=True)
class Query:
    """What a guest asks with: its token and, as in its Hello, the vGPU that it wants."""

    protocol_major: int = PROTOCOL_MAJOR
    protocol_minor: int = PROTOCOL_MINOR
    compute_percent: int = 0  # 0: the host's default
    memory_mib: int = 0  # 0: the host's default
    pid: int = 0  # in the guest's own pid namespace
    client_version: str = ""
    token: bytes = b""
    vgpu: str = ""  # as in a Hello

    @classmethod
    def decode(cls, raw: bytes) -> Query:
        """Reads query_bytes() bytes. Raises MalformedHelloError for a wrong length or magic."""
        if len(raw) not in (QUERY_BYTES, _OLD_QUERY_BYTES):
            raise MalformedHelloError(f"Query has {len(raw)} bytes, expected {QUERY_BYTES}")
        magic, major, minor, size, percent, mib, pid, version, token, vgpu = _QUERY.unpack(
            raw.ljust(QUERY_BYTES, b"\0")
        )
        if magic != QUERY_MAGIC or size != len(raw) or size != query_bytes(minor):
            raise MalformedHelloError("these bytes are no Query")
        return cls(
            major, minor, percent, mib, pid, _text(version), token.rstrip(b"\0"), _text(vgpu)
        )

    def encode(self) -> bytes:
        """The bytes on the wire. Used by tests; guests are C++."""
        size = query_bytes(self.protocol_minor)
        head = (QUERY_MAGIC, self.protocol_major, self.protocol_minor, size)
        wanted = (self.compute_percent, self.memory_mib, self.pid)
        texts = (self.client_version.encode(), self.token, self.vgpu.encode())
        return _QUERY.pack(*head, *wanted, *texts)[:size]


def query_bytes(protocol_minor: int) -> int:
    """How long a Query of that version is."""
    return QUERY_BYTES if protocol_minor > 1 else _OLD_QUERY_BYTES


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One vGPU. Numbers that are not known are UNKNOWN. Same order as GPU_FIELDS."""

    LAYOUT: ClassVar[struct.Struct] = _layout(GPU_FIELDS)
    name: str
    uuid: str
    pci_bus_id: str
    total_bytes: int
    reserved_bytes: int = 0
    used_bytes: int = 0
    pci_device_id: int = UNKNOWN
    pci_subsystem_id: int = UNKNOWN
    compute_major: int = UNKNOWN
    compute_minor: int = UNKNOWN
    architecture: int = UNKNOWN
    brand: int = UNKNOWN
    multiprocessors: int = UNKNOWN
    cores: int = UNKNOWN
    memory_bus_bits: int = UNKNOWN
    max_sm_clock_mhz: int = UNKNOWN
    max_memory_clock_mhz: int = UNKNOWN
    max_pcie_generation: int = UNKNOWN
    max_pcie_width: int = UNKNOWN
    ecc_enabled: int = UNKNOWN
    persistence_enabled: int = UNKNOWN
    compute_percent: int = UNKNOWN
    utilization_percent: int = UNKNOWN
    peers_read: int = 0  # bit n: the report's n-th GPU
    peers_write: int = 0
    peers_nvlink: int = 0
    peers_atomics: int = 0
    peers_pci: int = 0


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One process of the guest on one of its vGPUs. Same order as PROCESS_FIELDS."""

    LAYOUT: ClassVar[struct.Struct] = _layout(PROCESS_FIELDS)
    gpu: int
    pid: int
    used_bytes: int
    utilization_percent: int = UNKNOWN
    reserved: int = 0
    program: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a Query."""

    gpus: tuple[GpuReport, ...]
    processes: tuple[ProcessReport, ...]
    driver_version: str
    host_version: str
    cuda_version: int = 0

    def encode(self) -> bytes:
        """The bytes on the wire; texts that are too long are cut at a character."""
        head = _REPORT.pack(
            REPORT_MAGIC,
            PROTOCOL_MAJOR,
            PROTOCOL_MINOR,
            _REPORT.size,
            len(self.gpus),
            GpuReport.LAYOUT.size,
            len(self.processes),
            ProcessReport.LAYOUT.size,
            self.cuda_version,
            _fit(self.driver_version, 80),
            _fit(self.host_version, 32),
        )
        gpus = (_record(gpu, GPU_FIELDS) for gpu in self.gpus)
        processes = (_record(process, PROCESS_FIELDS) for process in self.processes)
        return b"".join((head, *gpus, *processes))


def _record(one: GpuReport | ProcessReport, members: tuple[tuple[str, str], ...]) -> bytes:
    values = [
        _fit(value, struct.calcsize(code)) if isinstance(value, str) else value
        for value, (_, code) in zip(astuple(one), members, strict=True)
    ]
    return one.LAYOUT.pack(*values)


def _fit(text: str, size: int) -> bytes:
    raw = text.encode("utf-8", "replace")[: size - 1]
    return raw.decode("utf-8", "ignore").encode("utf-8")
