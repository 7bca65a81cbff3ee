"""The unit template, its text in docs/install.md, and what systemd thinks of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).parents[2]
HOSTD, NETWORK = "gpupool-hostd.service", "gpupool-network.service"


def render(name: str = HOSTD, **values: str) -> str:
    """The unit."""
    template = ROOT / "templates" / "systemd" / f"{name}.j2"
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (a unit file, no HTML)
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def test_the_documentation_shows_the_template() -> None:
    unit = render(gpupool="/opt/gpupool/bin/gpupool", config="/etc/gpupool/hostd.toml")
    assert unit in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    unit = render(NETWORK, gpupool="/opt/gpupool/bin/gpupool", config="/etc/gpupool/network.toml")
    assert unit in (ROOT / "docs" / "network.md").read_text(encoding="utf-8")


def test_workers_survive_the_service() -> None:
    lines = render(gpupool="/x", config="/y").splitlines()
    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes", "Type=notify"} <= set(lines)


@pytest.mark.parametrize("name", [HOSTD, NETWORK])
def test_systemd_accepts_it(tmp_path: Path, name: str) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("systemd-analyze is missing")
    unit = tmp_path / name
    unit.write_text(render(name, gpupool="/bin/true", config="/etc/gpupool/hostd.toml"))
    done = subprocess.run(
        [checker, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # systemd before 254 says that it ignores what it does not know.
    known = "Unknown key 'DelegateSubgroup'"
    lines = [line for line in done.stderr.splitlines() if known not in line]
    complaints = [line for line in lines if unit.name in line]
    assert complaints == []
