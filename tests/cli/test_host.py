"""`gpupool host add` over ssh to a real sshd: whom it trusts, what it makes, and that the Ansible
role finds nothing to change afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpupool.cli.main import main
from tests.ansible.conftest import Wheels
from tests.ansible.machine import Machine
from tests.ansible.playbook import site

pytest.importorskip("paramiko", reason="paramiko is missing: pip install --group test")
TOKEN = "f21c9d77b2e94e1f8a6c"  # noqa: S105 (of no controller)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Something with a wheel's name, where nothing is installed."""
    path = tmp_path / "gpupool-0.1.0-py3-none-any.whl"
    path.write_bytes(b"no wheel")
    return path


def add(machine: Machine, *words: str, known_hosts: Path | None = None) -> int:
    """The exit code."""
    access = ("--key", str(machine.user_key), "--known-hosts")
    hosts = known_hosts or machine.known_hosts
    return main(["host", "add", machine.address, *access, str(hosts), *words])


def test_an_unknown_machine_is_refused_with_its_key(
    target: Machine, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known_hosts"
    assert add(target, "--wheel", str(wheel), "--check", known_hosts=known) == 1
    said = capsys.readouterr().err
    shown = target.run("ssh-keygen", "-lf", str(target.folder / "host_key.pub")).stdout.split()[1]
    assert shown in said
    assert "--accept-new" in said
    assert not known.exists()


def test_a_machine_is_taken_once_and_then_known(
    target: Machine, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "ssh" / "known_hosts"
    assert add(target, "--wheel", str(wheel), "--check", "--accept-new", known_hosts=known) == 0
    assert known.read_text() == target.known_hosts.read_text()
    assert add(target, "--wheel", str(wheel), "--check", known_hosts=known) == 0
    assert "would  package" in capsys.readouterr().out
    assert not any("gpupool" in path for path in target.changes())


def test_another_key_than_the_known_one_is_refused(
    target: Machine, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, key = (target.folder / "user_key.pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"{target.address} {kind} {key}\n")
    for words in ((), ("--accept-new",)):
        assert add(target, "--wheel", str(wheel), "--check", *words, known_hosts=known) == 1
        assert "has another key" in capsys.readouterr().err


def test_a_key_that_the_machine_does_not_know_is_not_let_in(
    target: Machine, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--key", str(target.folder / "host_key"), "--known-hosts", str(target.known_hosts))
    assert main(["host", "add", target.address, *words, "--wheel", str(wheel), "--check"]) == 1
    assert "did not let us in" in capsys.readouterr().err


def test_passwords_have_no_place_in_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "add", "gpu7", "--index", "https://me:secret@example.org/simple"]) == 2
    said = capsys.readouterr().err
    assert "pip's configuration" in said
    assert "secret" not in said


def test_a_python_that_is_not_there_is_named(
    target: Machine, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(target, "--wheel", str(wheel), "--check", "--python", "python3.77") == 3
    assert "python3.77 with venv is missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_makes_what_the_role_makes(
    target: Machine,
    wheelhouse: Wheels,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "hostd.toml").write_text('gpu = "software"\n[limits]\nmax_sessions = 7\n')
    url = "tls://controller.example.org:9181"
    words = [
        *("--wheel", str(wheelhouse.gpupool), "--config", str(tmp_path / "hostd.toml")),
        *("--nodes", url, "--node", "gpu7", "--node-token-file", str(tmp_path / "token"), "--json"),
        *(word for each in wheelhouse.pip_arguments for word in ("--pip", each)),
    ]
    assert add(target, *words) == 0
    first = json.loads(capsys.readouterr().out)
    states = {step["what"]: step["state"] for step in first["steps"]}
    made = ("package", "node's token", "configuration", "unit")
    assert states == {"machine": "ok", "service": "ok", **dict.fromkeys(made, "done")}
    assert TOKEN not in json.dumps(first)
    shown = target.run("stat", "-c", "%a %U %s", "/etc/gpupool/node-token").stdout
    assert shown == f"600 root {len(TOKEN) + 1}\n"

    assert add(target, *words) == 0
    second = json.loads(capsys.readouterr().out)
    assert {step["state"] for step in second["steps"]} == {"ok"}

    here = site(tmp_path, target, wheelhouse)
    outcome = here.play(
        "gpupool_host",
        gpupool_host_controller_url=url,
        gpupool_host_node_token_file=str(tmp_path / "token"),
        gpupool_host_config={"gpu": "software", "limits": {"max_sessions": 7}},
    )
    assert outcome.changed == 0, outcome.text
