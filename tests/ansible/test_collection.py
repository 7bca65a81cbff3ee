"""The collection without a machine: its templates are those of the checkout, its docs complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from gpupool.cli.rollout import render
from gpupool.hostd.config import KEYS
from tests.ansible import collection
from tests.tree import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROLES = sorted(path for path in (ROOT / "ansible" / "roles").iterdir())
NAMES = [role.name for role in ROLES]
CONFIG = ROOT / "templates" / "config" / "gpupool.toml.j2"


def test_every_template_is_one_of_the_checkouts() -> None:
    for path in (ROOT / "ansible").rglob("*.j2"):
        assert path.is_symlink(), f"{path} is a second copy"
        assert path.resolve().is_relative_to(ROOT / "templates")
        assert path.exists(), f"{path} leads nowhere"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_arguments_are_those_that_have_defaults(role: Path) -> None:
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    assert options.keys() == defaults.keys()
    for name, option in options.items():
        if "default" in option and "{{" not in str(defaults[name]):
            assert option["default"] == defaults[name], name


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_argument_is_documented(role: Path) -> None:
    text = (ROOT / "docs" / "ansible.md").read_text()
    for name in yaml.safe_load((role / "defaults" / "main.yml").read_text()):
        shared = name.replace(role.name, "gpupool")
        inner = name == "gpupool_common_extra"  # set by the other roles
        assert inner or f"`{name}`" in text or f"`{shared}`" in text, name


def toml(content: dict[str, Any]) -> Any:
    """Rendered, and read again."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,  # as Ansible does
        autoescape=False,  # noqa: S701 (TOML, no HTML)
    )
    template = environment.from_string(CONFIG.read_text())
    return tomllib.loads(template.render(content=content))


ODD = {
    "gpu": "auto",
    "odd": "a \"quoted\" \\ 'text' <é>\n",
    "devices": ["GPU-1", "GPU-2"],
    "limits": {"window_mib": 64, "inner": {"yes": True}},
    "nothing": {},
    "endpoint": [{"listen": "unix:/a"}, {"listen": "tls://0.0.0.0:1", "transports": []}, {}],
}


@pytest.mark.parametrize("content", [ODD, {}])
def test_toml_says_what_the_dictionary_says(content: dict[str, Any]) -> None:
    assert toml(content) == content


def test_ansible_renders_as_gpupool_host_does(tmp_path: Path) -> None:
    """Its Jinja2 differs in what is nothing and in how a file ends."""
    tasks = [
        {
            "ansible.builtin.template": {"src": str(CONFIG), "dest": str(tmp_path / f"{number}")},
            "vars": {"content": content},
        }
        for number, content in enumerate((ODD, {}))
    ]
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    environment = collection.environment()
    program = shutil.which("ansible-playbook", path=environment["PATH"])
    if program is None:
        pytest.skip("ansible is missing: pip install --group ansible")
    done = subprocess.run(
        [program, tmp_path / "play.yml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for number, content in enumerate((ODD, {})):
        ours = render("config/gpupool.toml.j2", content=content)
        assert (tmp_path / f"{number}").read_bytes() == ours


def test_toml_holds_every_default_of_hostd() -> None:
    content: dict[str, Any] = {}
    for key in KEYS:
        *sections, name = key.name.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = key.default
    assert toml(content) == content
