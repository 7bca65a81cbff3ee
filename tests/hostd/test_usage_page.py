"""The page that a worker writes: read here as hostd reads it, and held against the C++ struct."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from gpupool.hostd.adapters import usage_page
from gpupool.hostd.adapters.session_files import SessionFiles
from gpupool.hostd.core.ports import Counters, DeviceUsage, PortError
from tests.fakes.daemon import ROOT

SLOT = usage_page.SLOT_NS


def page(samples: int, slot: int = 100, outstanding: int = 0, memory: int = 7) -> bytes:
    """A page with one device."""
    head = struct.pack("<II56x", usage_page.MAGIC, 1)
    return (head + struct.pack("<QQQI36x", memory, slot, samples, outstanding)).ljust(4096, b"\0")


@pytest.mark.parametrize(
    ("samples", "outstanding", "now_slot", "percent"),
    [
        (0, 0, 100, 0),
        ((1 << 64) - 1, 0, 100, 100),
        (0b1111100000, 0, 100, 10),
        ((1 << 50) - 1, 0, 125, 50),  # idle since
        ((1 << 50) - 1, 0, 1000, 0),
        (0, 1, 125, 50),  # busy since
        (0, 1, 10_000, 100),
        ((1 << 64) - 1, 0, 99, 100),  # the worker has just written the next one
    ],
)
def test_share_of_the_last_second(
    samples: int, outstanding: int, now_slot: int, percent: int
) -> None:
    raw = page(samples, outstanding=outstanding)
    assert usage_page.decode(raw, now_slot * SLOT) == (DeviceUsage(7, percent),)


@pytest.mark.parametrize("raw", [b"", bytes(4096), page(0)[:100], b"\xff" * 4096])
def test_what_is_no_page_says_nothing(raw: bytes) -> None:
    assert usage_page.decode(raw, 0) == ()


def test_as_the_worker_has_it(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing")
    (tmp_path / "facts.cpp").write_text(
        """
#include <cstddef>
#include <cstdio>
#include "hostd/worker/usage_page.hpp"
using gpupool::worker::UsagePage;
int main() {
  using Counters = UsagePage::Counters;
  std::printf("%zu %zu %zu %zu %zu %zu %zu %zu %zu ", offsetof(UsagePage, counters),
              offsetof(Counters, messages), offsetof(Counters, answers),
              offsetof(Counters, launches), offsetof(Counters, to_device_bytes),
              offsetof(Counters, from_device_bytes), offsetof(Counters, busy_ns),
              offsetof(Counters, zero_copy_bytes), offsetof(Counters, zero_copy_refused));
  std::printf("%u %llu %u %u %zu %zu %zu %zu %zu %zu %zu\\n", UsagePage::kMagic,
              (unsigned long long)UsagePage::kSampleNs, UsagePage::kSamples,
              gpupool::wire::kMaxDevices, offsetof(UsagePage, device), sizeof(UsagePage::Device),
              offsetof(UsagePage, devices), offsetof(UsagePage::Device, memory_bytes),
              offsetof(UsagePage::Device, slot), offsetof(UsagePage::Device, samples),
              offsetof(UsagePage::Device, outstanding));
}
""",
        encoding="utf-8",
    )
    command = [compiler, "-std=c++20", "-w", f"-I{ROOT}", "facts.cpp", "-o", "facts"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    told = subprocess.run(
        [tmp_path / "facts"], check=True, capture_output=True, text=True, timeout=10
    ).stdout
    expected = [usage_page.MAGIC, SLOT, usage_page.WINDOW, usage_page.MAX_DEVICES]
    counters = [64 + 16 * 64, 0, 8, 16, 24, 32, 40, 48, 56]
    assert [int(word) for word in told.split()] == [*counters, *expected, 64, 64, 4, 0, 8, 16, 24]


def test_counters() -> None:
    raw = bytearray(page(0))
    assert usage_page.decode_counters(bytes(raw)) == Counters(), "an older worker's page"
    struct.pack_into("<8Q", raw, 64 + 16 * 64, 1, 2, 3, 4, 5, 6, 7, 8)
    assert usage_page.decode_counters(bytes(raw)) == Counters(1, 2, 3, 4, 5, 6, 7, 8)
    for no_page in (b"", bytes(4096), bytes(raw[:2000])):
        assert usage_page.decode_counters(no_page) == Counters()


def test_the_file_of_a_session(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    assert store.usage(3) == ()
    fd = store.create_usage(3)
    assert os.fstat(fd).st_size == usage_page.BYTES
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert store.usage(3) == ()
    os.pwrite(fd, page(0), 0)
    assert SessionFiles(tmp_path).usage(3) == (DeviceUsage(7, 0),)
    os.close(store.create_usage(3))  # a fresh one holds nothing of the last
    assert store.usage(3) == ()
    os.close(fd)
    store.remove(3)
    assert not list((tmp_path / "sessions").iterdir())


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    store = SessionFiles(tmp_path)
    (tmp_path / "sessions").rmdir()
    with pytest.raises(PortError, match="cannot create"):
        store.create_usage(1)
