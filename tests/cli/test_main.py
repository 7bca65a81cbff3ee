"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import gpupool as package
from gpupool.cli.main import COMMANDS, main
from gpupool.hostd import config
from tests.fakes.daemon import ROOT, gpupool


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """`gpupool WORDS` in the checkout."""
    return subprocess.run(
        gpupool(*words), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


def test_version_is_the_projects() -> None:
    project = config.read((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == package.__version__
    assert call("--version").stdout == f"gpupool {package.__version__}\n"


def test_help_names_every_command() -> None:
    text = call("--help").stdout
    assert all(f"    {noun} " in text for noun in COMMANDS)


@pytest.mark.parametrize("noun", COMMANDS)
def test_every_command_explains_itself(noun: str) -> None:
    done = call(noun, "--help")
    assert done.returncode == 0
    assert "exit codes:" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 110


def test_one_file_a_noun() -> None:
    assert {noun for noun in COMMANDS if not (ROOT / "cli" / f"{noun}.py").is_file()} == set()


@pytest.mark.parametrize("words", [(), ("nonsense",), ("run", "--nonsense"), ("status", "x")])
def test_a_wrong_command_line(words: tuple[str, ...]) -> None:
    done = call(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: gpupool" in done.stderr


def test_options_of_the_program_are_not_ours() -> None:
    tell = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--help", "--json"]
    done = call("run", "--endpoint", "unix:/nonexistent/hostd.sock", *tell)
    assert done.stdout == "['--help', '--json']\n"


def test_the_controller_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("gpupool.controller")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["controller"]) == 1
    assert capsys.readouterr().err == (
        "gpupool controller: uvicorn is not installed; pip install 'gpupool[controller]'\n"
    )


def test_checking_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text('gpu = "software"\n')
    done = call("hostd", "--config", str(path), "--check")
    assert done.returncode == 0
    assert "endpoint       unix:/run/gpupool/hostd.sock (shm)" in done.stdout
    path.write_text("[limits]\nmax_sessions = 0\n")
    done = call("hostd", "--config", str(path), "--check")
    assert done.returncode == 2
    assert "limits.max_sessions: given 0" in done.stderr
