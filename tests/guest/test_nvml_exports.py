"""Every function of NVML that driver 580 has can be looked up in the guest's library."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from gpupool.hostd.adapters.libraries import find_real, is_ours
from gpupool.wire.codegen import nvml
from gpupool.wire.codegen.__main__ import ROOT, find_include_dir
from tests.guest.shim import shim_path


def library() -> Path:
    """The library under test."""
    path = shim_path().with_name("libnvidia-ml.so.1")
    assert path.exists(), f"{path} is not built"
    return path


def exports(path: Path) -> set[str]:
    """The dynamic symbols that a library defines, and the ones it needs with `U`."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}


def test_every_function_of_the_header_is_exported() -> None:
    include = find_include_dir()
    if include is None:
        pytest.skip("nvml.h is missing: install nvidia-nvml-dev")
    declared = set(nvml.functions(include, "g++"))
    assert len(declared) > 380  # 13.0 has 397; a parser that lost most of them would pass otherwise
    found = exports(library())
    assert declared <= found
    assert "nvmlInternalGetExportTable" in found
    assert {name for name in found if not name.startswith("nvml")} == {"gpupool_guest_runtime"}


def test_every_answered_function_is_documented() -> None:
    rows = yaml.safe_load((ROOT / "wire/api/nvml/answered.yaml").read_text())["answered"]
    page = (ROOT / "docs/nvml.md").read_text()
    # Versions of one question share a line of the page.
    missing = [
        name for names in rows.values() for name in names if name.partition("_v")[0] not in page
    ]
    assert not missing


def test_hostd_tells_it_from_nvidias() -> None:
    assert is_ours(library())


@pytest.mark.gpu
def test_every_export_of_the_real_library_is_there() -> None:
    real, notes = find_real("libnvidia-ml.so.1")
    assert real is not None, notes
    theirs = {name for name in exports(real) if name.startswith("nvml")}
    assert theirs - exports(library()) == set()
