"""Finding libcuda by path: the right machine, and never gpupool's own."""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.libraries import find_real, is_ours

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)
ELF32 = b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x03\x00\x03\x00" + bytes(44)
OURS = ELF + b"\0cuInit\0gpupool_guest_runtime\0"


def place(folder: Path, content: bytes) -> str:
    """A library in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "libcuda.so.1").write_bytes(content)
    return str(folder)


def find(*folders: str) -> tuple[Path | None, list[str]]:
    """Without this machine's own libraries."""
    return find_real("libcuda.so.1", folders, ldconfig=False)


def test_the_first_real_one(tmp_path: Path) -> None:
    folders = [place(tmp_path / name, ELF) for name in ("a", "b")]
    assert find(*folders) == (tmp_path / "a" / "libcuda.so.1", [])


def test_ours_is_passed_over(tmp_path: Path) -> None:
    ours, real = place(tmp_path / "ours", OURS), place(tmp_path / "real", ELF)
    found, notes = find(ours, real)
    assert found == tmp_path / "real" / "libcuda.so.1"
    assert notes == [f"{ours}/libcuda.so.1 is gpupool's own guest runtime"]
    assert find(ours)[0] is None


def test_a_link_to_ours_is_ours(tmp_path: Path) -> None:
    place(tmp_path / "ours", OURS)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "libcuda.so.1").symlink_to(tmp_path / "ours" / "libcuda.so.1")
    assert find(str(tmp_path / "link"))[0] is None


def test_a_name_that_only_begins_alike_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "lib"
    path.write_bytes(ELF + b"\0gpupool_guest_runtime_test\0")
    assert not is_ours(path)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    folders = [
        place(tmp_path / "32bit", ELF32),
        place(tmp_path / "text", b"/* GNU ld script */"),
        place(tmp_path / "empty", b""),
        place(tmp_path / "stubs", ELF),
        str(tmp_path / "missing"),
    ]
    found, notes = find(*folders)
    assert found is None
    assert len(notes) == 4


def test_the_fake_guest_library_is_recognised(native: Path) -> None:
    assert is_ours(native / "lib/guest/libcuda.so.1")
    assert not is_ours(native / "lib/host/libgpupool-softgpu.so")
