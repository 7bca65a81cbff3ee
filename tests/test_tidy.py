"""What no linter checks: layers of C++ includes, lengths, unused templates, versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT, files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What each C++ layer may include; everything may include its own folder and generated headers.
LAYERS = {
    "wire/cpp": {"wire/cpp"},
    "wire/tls": {"wire/cpp", "wire/tls"},
    "guest/runtime": {"wire/cpp", "wire/tls", "guest/runtime"},
    "guest/egl": {"wire/cpp", "guest/runtime", "guest/egl"},
    "guest/nvml": {"wire/cpp", "guest/runtime", "guest/nvml"},
    "hostd/compression": {"wire/cpp", "hostd/compression"},
    "hostd/pages": {"wire/cpp", "hostd/pages"},
    "hostd/worker": {"wire/cpp", "hostd/compression", "hostd/pages", "hostd/worker"},
    "hostd/arbiter": {"wire/cpp", "hostd/pages", "hostd/worker", "hostd/beside", "hostd/arbiter"},
    "hostd/beside": {"wire/cpp", "hostd/worker", "hostd/beside"},
    "hostd/vsock": {"wire/cpp", "hostd/worker", "hostd/beside", "hostd/vsock"},
    "ucx": {"wire/cpp", "ucx"},
    "hostd/tls": {"wire/cpp", "wire/tls", "hostd/worker"},
    "hostd/softgpu/engine": {"wire/cpp", "hostd/compression", "hostd/softgpu/engine"},
    "hostd/softgpu/api": {"wire/cpp", "hostd/softgpu"},
}
LONGEST_FILE = 500


def layer_of(name: Path) -> str | None:
    """The deepest layer that holds this file."""
    found = [layer for layer in LAYERS if name.is_relative_to(layer)]
    return max(found, key=len) if found else None


def test_cpp_includes_stay_in_their_layer() -> None:
    wrong = []
    for name in files(".cpp", ".hpp"):
        layer = layer_of(name)
        if layer is None:
            continue
        for included in re.findall(r'#include "([^"]+/[^"]+)"', (ROOT / name).read_text()):
            if not any(included.startswith(allowed + "/") for allowed in LAYERS[layer]):
                wrong.append(f"{name} includes {included}")
    assert not wrong


def test_files_are_short_enough_to_hold_in_the_head() -> None:
    long = []
    for name in files(".py", ".cpp", ".hpp"):
        lines = (ROOT / name).read_text().count("\n")
        if lines > LONGEST_FILE and "golden" not in name.parts:
            long.append(f"{name}: {lines}")
    assert not long


def test_every_template_is_used() -> None:
    code = "\n".join((ROOT / name).read_text() for name in files(".py", ".j2", ".cmake", ".yml"))
    unused = [str(name) for name in files(".j2") if name.name not in code and name.stem not in code]
    assert not unused


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    header = (ROOT / "wire/cpp/version.hpp").read_text()
    found = re.search(r'kVersion\[\] = "([^"]+)"', header)
    assert found is not None
    assert found.group(1) == project


def test_build_requirements_agree() -> None:
    """The checkout's groups and the wheel's build requirements pin the same versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    group = {*groups["build"], *groups["portable"]}
    for requirement in project["build-system"]["requires"]:
        if not requirement.startswith("scikit-build-core"):
            assert requirement in group


@pytest.mark.parametrize("banned", ["TODO", "FIXME", "mock.patch"])
def test_nothing_is_left_lying_about(banned: str) -> None:
    here = Path(__file__).relative_to(ROOT)
    found = [
        str(name)
        for name in files(".py", ".cpp", ".hpp", ".j2", ".yaml")
        if name != here and name != Path("tests/lint.py") and banned in (ROOT / name).read_text()
    ]
    assert not found
