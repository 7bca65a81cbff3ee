"""Both layouts of the C++ parts."""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.adapters.native_files import locate


def make(root: Path, *names: str) -> None:
    """Empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_build_folder(native: Path) -> None:
    found = locate({"GPUPOOL_NATIVE_DIR": str(native)})
    assert found.worker == native / "libexec/gpupool-worker"
    assert found.guest_dir == native / "lib/guest"
    assert found.software_gpu == native / "lib/host/libgpupool-softgpu.so"
    assert found.missing == ()


def test_the_installed_package(tmp_path: Path) -> None:
    make(tmp_path, "guest/libcuda.so.1", "libexec/gpupool-worker", "host/libgpupool-softgpu.so")
    make(tmp_path, "libexec/gpupool-tls", "libexec/gpupool-arbiter")
    found = locate({"GPUPOOL_NATIVE_DIR": str(tmp_path)})
    assert found.guest_dir == tmp_path / "guest"
    assert found.missing == ()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    make(tmp_path, "libexec/gpupool-worker")
    found = locate({"GPUPOOL_NATIVE_DIR": str(tmp_path)})
    assert found.missing == ("guest library", "tls", "arbiter", "software gpu")
    assert found.guest_dir is None


def test_a_named_folder_is_the_only_one(tmp_path: Path) -> None:
    assert locate({"GPUPOOL_NATIVE_DIR": str(tmp_path / "nothing")}).missing == (
        "guest library",
        "worker",
        "tls",
        "arbiter",
        "software gpu",
    )
