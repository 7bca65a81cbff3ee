"""Molecule's own sequence over ssh: both daemons' roles on one machine, twice, and away again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ansible import collection
from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine
from tests.tree import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_molecule_converges_verifies_and_cleans_up(
    tmp_path: Path, target: Machine, wheelhouse: Wheels
) -> None:
    environment = {
        **collection.environment(),
        "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule"),
        "GPUPOOL_TEST_ADDRESS": target.address,
        "GPUPOOL_TEST_KEY": str(target.user_key),
        "GPUPOOL_TEST_KNOWN_HOSTS": str(target.known_hosts),
        "GPUPOOL_TEST_WHEEL": str(wheelhouse.gpupool),
        "GPUPOOL_TEST_PIP_ARGUMENTS": json.dumps(wheelhouse.pip_arguments),
    }
    program = shutil.which("molecule", path=environment["PATH"])
    if program is None:
        pytest.skip("molecule is missing: pip install --group ansible")
    done = subprocess.run(
        [program, "test"],
        env=environment,
        cwd=ROOT / "ansible",
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not target.ours()
