"""The pages of vGPUs: the layout is that of hostd/pages/*.hpp, and the files are whole."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from gpupool.hostd.adapters import account_page, quota_page
from gpupool.hostd.adapters.vgpu_files import LEASE_BYTES, VgpuFiles
from gpupool.hostd.core import vgpu_table
from gpupool.hostd.core.ports import AccountUse, GpuPages, SessionRow, WorkerProcess
from gpupool.hostd.core.vgpu import Quota, Seat, SharePolicy, Vgpu

ROOT = Path(__file__).parents[2]
GPU = "GPU-5046e4c8-0000-0000-0000-000000000000"
HALF = Vgpu(7, Quota(50, 64, SharePolicy.HARD, 3))
SEAT = Seat(GPU, 7, 2, 5, 9)
STRUCTURES = {
    "QuotaPage::Vgpu": quota_page.VgpuRow,
    "QuotaPage::Session": quota_page.SessionRows,
    "QuotaPage": quota_page.Page,
}


def _program() -> str:
    lines = []
    for name, structure in STRUCTURES.items():
        lines.append(f'std::printf("{name} %zu\\n", sizeof({name}));')
        for field, *_ in structure._fields_:
            if not field.startswith("_"):
                lines.append(f'std::printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
    for field, _ in account_page.ROW_FIELDS:
        where = f"offsetof(AccountPage::Row, {field})"
        lines.append(f'std::printf("AccountPage::Row.{field} %zu\\n", {where});')
    lines.append('std::printf("AccountPage::Row %zu\\n", sizeof(AccountPage::Row));')
    lines.append('std::printf("AccountPage.row %zu\\n", offsetof(AccountPage, row));')
    for constant in ("kBytes", "kMagic", "kVersion", "kSessions"):
        for page in ("QuotaPage", "AccountPage"):
            lines.append(f'std::printf("{page}.{constant} %u\\n", unsigned({page}::{constant}));')
    lines.append('std::printf("QuotaPage.kVgpus %u\\n", unsigned(QuotaPage::kVgpus));')
    for policy in SharePolicy:
        value = f"unsigned(SharePolicy::{policy.value})"
        lines.append(f'std::printf("SharePolicy.{policy.value} %u\\n", {value});')
    includes = '#include <cstddef>\n#include <cstdio>\n#include "hostd/pages/quota_page.hpp"\n'
    includes += '#include "hostd/pages/account_page.hpp"\nusing namespace gpupool::pages;\n'
    return f"{includes}int main() {{\n" + "\n".join(lines) + "\n}\n"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C++ compiler makes of the headers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing")
    folder = tmp_path_factory.mktemp("pages")
    (folder / "facts.cpp").write_text(_program(), encoding="utf-8")
    command = [compiler, "-std=c++20", f"-I{ROOT}", "facts.cpp", "-o", "facts"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    done = subprocess.run(
        [folder / "facts"], check=True, capture_output=True, text=True, timeout=10
    )
    return {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}


def test_the_quota_page(facts: dict[str, int]) -> None:
    for name, structure in STRUCTURES.items():
        for field, *_ in structure._fields_:
            if not field.startswith("_"):
                assert getattr(structure, field).offset == facts[f"{name}.{field}"], field
    assert ctypes.sizeof(quota_page.VgpuRow) == facts["QuotaPage::Vgpu"]
    assert ctypes.sizeof(quota_page.SessionRows) == facts["QuotaPage::Session"]
    # The C++ structure ends with padding to its alignment.
    assert facts["QuotaPage"] - 64 < ctypes.sizeof(quota_page.Page) <= facts["QuotaPage"]
    assert facts["QuotaPage.kBytes"] == quota_page.BYTES
    assert facts["QuotaPage.kMagic"] == quota_page.MAGIC
    assert facts["QuotaPage.kVersion"] == quota_page.VERSION
    assert vgpu_table.VGPU_ROWS == facts["QuotaPage.kVgpus"] == len(quota_page.Page().vgpu)
    assert vgpu_table.SESSION_ROWS == facts["QuotaPage.kSessions"] == len(quota_page.Page().session)
    for policy, number in quota_page.POLICIES.items():
        assert number == facts[f"SharePolicy.{policy.value}"]


def test_the_account_page(facts: dict[str, int]) -> None:
    offset = 0
    for field, code in account_page.ROW_FIELDS:
        assert offset == facts[f"AccountPage::Row.{field}"]
        offset += struct.calcsize("<" + code)
    assert facts["AccountPage::Row"] == account_page.ROW_BYTES
    assert facts["AccountPage.row"] == account_page.FIRST_ROW
    assert facts["AccountPage.kBytes"] == account_page.BYTES
    assert facts["AccountPage.kMagic"] == account_page.MAGIC
    assert facts["AccountPage.kVersion"] == account_page.VERSION
    assert account_page.ROWS == facts["AccountPage.kSessions"] == vgpu_table.ACCOUNT_ROWS


@pytest.fixture
def files(tmp_path: Path) -> VgpuFiles:
    return VgpuFiles(tmp_path)


def page(folder: Path) -> quota_page.Page:
    """The quota page, as another process sees it."""
    with (folder / "gpus" / GPU / "quota").open("rb") as file:
        return quota_page.Page.from_buffer_copy(file.read())


def fill(files: VgpuFiles) -> None:
    """One vGPU with one session."""
    files.write_account(SEAT.vgpu, SEAT.account_row, 41)
    files.write_vgpu(GPU, SEAT.vgpu_row, HALF)
    files.write_session(GPU, SEAT.session_row, SessionRow(41, SEAT.vgpu_row, WorkerProcess(8, 99)))


def test_rows_are_written_and_cleared(files: VgpuFiles, tmp_path: Path) -> None:
    fill(files)
    before = page(tmp_path)
    assert (before.magic, before.version) == (quota_page.MAGIC, quota_page.VERSION)
    row = before.vgpu[2]
    assert (row.id, row.memory_bytes, row.compute_percent) == (7, 64 << 20, 50)
    assert (row.policy, row.priority) == (1, 3)
    session = before.session[5]
    assert (session.id, session.vgpu) == (41, 2)
    assert (session.worker_pid, session.worker_start_ticks) == (8, 99)
    files.write_vgpu(GPU, 2, HALF.resized(Quota(25, 32)))
    after = page(tmp_path)
    assert (after.vgpu[2].compute_percent, after.vgpu[2].memory_bytes) == (25, 32 << 20)
    assert after.changed == before.changed + 1
    files.write_session(GPU, 5, None)
    files.write_vgpu(GPU, 2, None)
    assert [page(tmp_path).vgpu[2].id, page(tmp_path).session[5].id] == [0, 0]


def test_those_who_wait_for_a_change_are_woken(files: VgpuFiles, tmp_path: Path) -> None:
    """A process that waits in futex(2) on `changed`, as an arbiter does."""
    files.write_vgpu(GPU, 0, HALF)
    program = (
        "import ctypes, mmap, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "page = mmap.mmap(file.fileno(), 65536)\n"
        "word = ctypes.c_uint32.from_buffer(page, 8)\n"
        "seen = word.value\n"
        "print('waits', flush=True)\n"
        "timeout = (ctypes.c_long * 2)(20, 0)\n"
        "wait = ctypes.CDLL(None).syscall\n"
        "wait(ctypes.c_long(202), ctypes.byref(word), 0, seen, timeout, 0, 0)\n"
        "print(word.value - seen)\n"
    )
    path = tmp_path / "gpus" / GPU / "quota"
    with subprocess.Popen(["python3", "-c", program, path], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"waits\n"
        files.write_vgpu(GPU, 0, HALF.resized(Quota(1)))
        assert waiting.communicate(timeout=15)[0] == b"1\n"


def test_a_worker_gets_whole_pages(files: VgpuFiles) -> None:
    fill(files)
    fds = files.open(41, SEAT)
    try:
        assert [os.fstat(fd).st_size for fd in fds] == [
            quota_page.BYTES,
            account_page.BYTES,
            LEASE_BYTES,
        ]
        assert [os.fstat(fd).st_blocks * 512 >= os.fstat(fd).st_size for fd in fds] == [True] * 3
        assert os.pread(fds[2], LEASE_BYTES, 0) == bytes(LEASE_BYTES)
        with pytest.raises(PermissionError):
            mmap.mmap(fds[0], quota_page.BYTES)  # to read only
        assert [os.get_inheritable(fd) for fd in fds] == [False] * 3
    finally:
        files.close(fds)


def test_what_a_vgpu_uses(files: VgpuFiles) -> None:
    fill(files)
    files.write_account(7, 3, 42)
    _, account, _ = fds = files.open(41, SEAT)
    for row, used in ((9, (1000, 10)), (3, (500, 5)), (4, (99, 99))):  # row 4 is nobody's
        os.pwrite(account, struct.pack("<QQ", *used), account_page.row_at(row) + 8)
    assert files.use(7, (9, 3)) == AccountUse(1500, 15)
    assert files.use(7, [3]) == AccountUse(500, 5)
    files.write_account(7, 9, 0)
    assert files.use(7, {3, 9}) == AccountUse(500, 5)
    os.pwrite(account, struct.pack("<QQ", 0, 1 << 60), account_page.row_at(3) + 8)  # a lie
    assert files.use(7, {3, 9}) == AccountUse(0, account_page.MOST_OVERHEAD_BYTES)
    os.ftruncate(account, 100)  # a worker that a client has taken over
    assert files.use(7, {3, 9}) == AccountUse()
    files.close(fds)


def test_a_later_hostd_restores_the_pages(files: VgpuFiles, tmp_path: Path) -> None:
    """Rows that nobody has any more are cleared, rows that stay keep what workers wrote there."""
    fill(files)
    files.write_account(7, 3, 42)
    files.write_account(8, 0, 43)
    files.write_vgpu(GPU, 4, Vgpu(8, Quota()))
    files.write_session(GPU, 1, SessionRow(42, 2, WorkerProcess(3, 4)))
    _, account, _ = fds = files.open(41, SEAT)
    os.pwrite(account, struct.pack("<QQ", 1000, 10), account_page.row_at(9) + 8)
    files.close(files.open(42, SEAT))
    files.close(fds)
    later = VgpuFiles(tmp_path)
    kept = GpuPages({2: HALF}, {5: SessionRow(41, 2, WorkerProcess(8, 99))})
    later.restore({GPU: kept}, {7: {41: 9}})
    found = page(tmp_path)
    assert {row: one.id for row, one in enumerate(found.vgpu) if one.id} == {2: 7}
    assert {row: one.id for row, one in enumerate(found.session) if one.id} == {5: 41}
    assert later.use(7, [9]) == AccountUse(1000, 10)
    assert sorted(path.name for path in (tmp_path / "vgpus").iterdir()) == ["7.account"]
    assert {path.name for path in (tmp_path / "gpus" / GPU).iterdir()} == {"quota", "41.lease"}
    later.restore({}, {})
    assert not any(one.id for one in page(tmp_path).vgpu)
    assert list((tmp_path / "vgpus").iterdir()) == []
