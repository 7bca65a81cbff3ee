"""The role gpupool_guest over ssh: what it would do, does, does not do again, and undoes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.guest import package
from tests.ansible.machine import Machine
from tests.ansible.playbook import Site
from tests.conftest import native_dir

ROLE = "gpupool_guest"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_guest_comes_is_replaced_and_goes(tmp_path: Path, target: Machine) -> None:
    libraries = native_dir() / "lib" / "guest"
    if not (libraries / "libcuda.so.1").exists():
        pytest.skip(f"{libraries} has no libcuda.so.1: run ./run build")
    archive = tmp_path / "gpupool-guest.tar.gz"
    package.make(archive, libraries)
    here = Site(tmp_path, target, {"gpupool_guest_package": str(archive)})

    assert here.play(ROLE, check=True).changed > 0
    assert not target.ours()
    first = here.play(ROLE)
    assert first.handlers == ["Restart the guest agent"]
    assert "gpupool_guest_service is false" in first.text  # no systemd here
    assert target.run("/opt/gpupool-guest/agent", "--help").stdout.startswith("usage:")
    unit = target.run("cat", "/etc/systemd/system/gpupool-guest-agent.service").stdout
    assert "ExecStart=/opt/gpupool-guest/agent" in unit
    again = here.play(ROLE)
    assert again.changed == 0, again.text

    assert here.play(ROLE, gpupool_state="absent").changed > 0
    assert not target.ours()
    assert here.play(ROLE, gpupool_state="absent").changed == 0


def test_a_package_that_is_not_there_is_named(tmp_path: Path, target: Machine) -> None:
    outcome = Site(tmp_path, target).attempt(ROLE, gpupool_guest_package="/nowhere.tar.gz")
    assert outcome.code != 0
    assert "gpupool_guest_package is '/nowhere.tar.gz'" in outcome.text
