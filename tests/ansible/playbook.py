"""Runs playbooks on a machine of the tests, and reads what became of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.ansible import collection
from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine

_TIMEOUT_S = 600


@dataclass(frozen=True)
class Outcome:
    """One run."""

    code: int
    text: str

    @property
    def changed(self) -> int:
        """Tasks that changed something."""
        found = re.search(r"changed=(\d+)", self.text)
        assert found is not None, self.text
        return int(found[1])

    @property
    def handlers(self) -> list[str]:
        """Those that ran, or would have where there is systemd."""
        return re.findall(r"RUNNING HANDLER \[[^:]* : ([^\]]+)\]", self.text)


@dataclass(frozen=True)
class Site:
    """An inventory of one machine."""

    folder: Path
    machine: Machine
    variables: dict[str, Any] = field(default_factory=dict)

    def play(self, *roles: str, check: bool = False, **variables: Any) -> Outcome:
        """The outcome of these roles, with these variables; a failure fails the test."""
        done = self.attempt(*roles, check=check, **variables)
        assert done.code == 0, done.text
        return done

    def attempt(self, *roles: str, check: bool = False, **variables: Any) -> Outcome:
        """The same, whatever comes of it."""
        play = {"hosts": "all", "roles": [f"gpupool.gpupool.{role}" for role in roles]}
        (self.folder / "play.yml").write_text(json.dumps([play]))  # JSON is YAML
        return self.playbook(self.folder / "play.yml", *(["--check"] if check else []), **variables)

    def playbook(self, path: Path, *words: str, **variables: Any) -> Outcome:
        """The outcome of a playbook."""
        (self.folder / "inventory.json").write_text(json.dumps(self.inventory()))
        (self.folder / "variables.json").write_text(json.dumps(variables))
        environment = collection.environment()
        program = shutil.which("ansible-playbook", path=environment["PATH"])
        if program is None:
            pytest.skip("ansible is missing: pip install --group ansible")
        done = subprocess.run(
            [
                *(program, "-i", self.folder / "inventory.json", path, "-v"),
                *("-e", f"@{self.folder}/variables.json", *words),
            ],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    def inventory(self) -> dict[str, Any]:
        """How the machine is reached."""
        ssh = f"-o UserKnownHostsFile={self.machine.known_hosts} -o IdentitiesOnly=yes"
        host = {
            "ansible_host": self.machine.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.machine.user_key),
            "ansible_ssh_common_args": ssh,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        group = {"gpupool_hosts": {"hosts": {"gpu7": host}}}
        return {"all": {"children": group, "vars": self.variables}}


def site(folder: Path, machine: Machine, wheels: Wheels) -> Site:
    """With what every role needs here: no index is reached, and no package is installed."""
    return Site(
        folder,
        machine,
        {
            "gpupool_wheel": str(wheels.gpupool),
            "gpupool_pip_arguments": wheels.pip_arguments,
            "gpupool_packages": False,
        },
    )
