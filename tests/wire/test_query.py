"""wire/query.py and wire/cpp/query.hpp are the same layout: the header is compiled and asked."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gpupool.wire import query
from gpupool.wire.hello import QUERY_MAGIC, HelloHeader, MalformedHelloError

ROOT = Path(__file__).parents[2]
STRUCTS = {
    "Query": query.QUERY_FIELDS,
    "Report": query.REPORT_FIELDS,
    "GpuReport": query.GPU_FIELDS,
    "ProcessReport": query.PROCESS_FIELDS,
}
CONSTANTS = {
    "kQueryMagic": QUERY_MAGIC,
    "kReportMagic": query.REPORT_MAGIC,
    "kReportMaxGpus": query.MAX_GPUS,
    "kReportMaxProcesses": query.MAX_PROCESSES,
    "kUnknown": query.UNKNOWN,
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What the C++ compiler makes of the header."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing")
    lines = [f'std::printf("{name} %u\\n", gpupool::wire::{name});' for name in CONSTANTS]
    for name, members in STRUCTS.items():
        lines.append(f'std::printf("{name} %zu\\n", sizeof(gpupool::wire::{name}));')
        for member, _ in members:
            of = f"gpupool::wire::{name}"
            values = f"offsetof({of}, {member}), sizeof({of}::{member})"
            lines.append(f'std::printf("{name}.{member} %zu %zu\\n", {values});')
    folder = tmp_path_factory.mktemp("query")
    text = '#include <cstddef>\n#include <cstdio>\n#include "wire/cpp/query.hpp"\nint main() {\n'
    (folder / "facts.cpp").write_text(text + "\n".join(lines) + "\n}\n", encoding="utf-8")
    command = [compiler, "-std=c++20", f"-I{ROOT}", "facts.cpp", "-o", "facts"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    done = subprocess.run(
        [folder / "facts"], check=True, capture_output=True, text=True, timeout=10
    )
    return {
        line.split()[0]: [int(word) for word in line.split()[1:]]
        for line in done.stdout.splitlines()
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_layout(facts: dict[str, list[int]], name: str) -> None:
    offset = 0
    for member, code in STRUCTS[name]:
        width = struct.calcsize("<" + code)
        assert facts[f"{name}.{member}"] == [offset, width], member
        offset += width
    assert facts[name] == [offset]  # no field of the C++ struct is missing here


def test_constants(facts: dict[str, list[int]]) -> None:
    assert {name: facts[name] for name in CONSTANTS} == {
        name: [value] for name, value in CONSTANTS.items()
    }


@pytest.mark.parametrize(
    ("record", "members"),
    [(query.GpuReport, query.GPU_FIELDS), (query.ProcessReport, query.PROCESS_FIELDS)],
)
def test_records_are_in_the_order_of_their_layout(
    record: type[query.GpuReport | query.ProcessReport], members: tuple[tuple[str, str], ...]
) -> None:
    assert [field.name for field in fields(record)] == [name for name, _ in members]


def test_a_query_survives_the_wire() -> None:
    sent = query.Query(
        compute_percent=25,
        memory_mib=1024,
        pid=41,
        client_version="0.1.0",
        token=b"secret",
        vgpu="trainer",
    )
    raw = sent.encode()
    assert HelloHeader.decode(raw).is_query
    assert query.Query.decode(raw) == sent
    with pytest.raises(MalformedHelloError):
        query.Query.decode(raw[:-1])
    with pytest.raises(MalformedHelloError):
        query.Query.decode(b"\0" * len(raw))


def test_a_query_of_the_version_before_names_no_vgpu() -> None:
    sent = query.Query(protocol_minor=1, memory_mib=1024, token=b"secret", vgpu="x")
    raw = sent.encode()
    assert len(raw) == 120
    assert query.Query.decode(raw) == replace(sent, vgpu="")
    with pytest.raises(MalformedHelloError):  # the length of one version, the number of another
        query.Query.decode(raw[:6] + b"\2\0" + raw[8:])


def test_a_long_name_is_cut_at_a_character() -> None:
    gpu = query.GpuReport("ä" * 60, "GPU-1", "", 1)
    raw = query.Report((gpu,), (), "580", "0.1.0").encode()
    name = raw[144 : 144 + 96]
    assert name.rstrip(b"\0").decode() == "ä" * 47  # 94 bytes; one more leaves no terminator
