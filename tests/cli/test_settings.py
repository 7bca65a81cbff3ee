"""Whom the command asks, and with which token."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.cli import settings
from gpupool.cli.backend import UsageError
from gpupool.cli.settings import Said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cli.toml; nothing is in it, and nothing in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("GPUPOOL_CONTROLLER", raising=False)
    (tmp_path / "gpupool").mkdir()
    return tmp_path / "gpupool"


def write(home: Path, text: str) -> None:
    (home / "cli.toml").write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("home")
def test_nothing_said_is_this_machines_hostd() -> None:
    assert settings.controller(Said()) is None


def test_what_is_nearer_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, 'controller = "https://file/"\ntoken_file = "/t"\nca_file = "/c"\n')
    found = settings.controller(Said())
    assert found == settings.Controller("https://file", Path("/t"), Path("/c"))
    monkeypatch.setenv("GPUPOOL_CONTROLLER", "https://variable")
    assert (settings.controller(Said()) or found).url == "https://variable"
    said = Said(controller="https://word", token_file=Path("/w"))
    assert settings.controller(said) == settings.Controller("https://word", Path("/w"), None)
    assert settings.controller(Said(admin_socket="/run/x")) is None


def test_the_files_token_is_for_the_files_controller_alone(home: Path) -> None:
    write(home, 'controller = "https://file"\ntoken_file = "/t"\n')
    other = settings.controller(Said(controller="https://elsewhere"))
    assert other is not None
    assert other.token_file is None
    same = settings.controller(Said(controller="https://file/"))
    assert same is not None
    assert same.token_file == Path("/t")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Said(controller="https://x", admin_socket="/run/x"), "both given"),
        (Said(token_file=Path("/t")), "none is named"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_does_not_go_together(said: Said, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        settings.controller(said)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('token = "secret"\n', "unknown key token; known are controller, token_file, ca_file"),
        ("controller = 3\n", "controller is given as 3, allowed is a text"),
        ("controller\n", "cli.toml: "),
    ],
)
def test_a_wrong_file(home: Path, content: str, text: str) -> None:
    write(home, content)
    with pytest.raises(UsageError, match=text):
        settings.controller(Said())


def test_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("gpupool_abc\n")
    path.chmod(0o600)
    assert settings.token(path) == "gpupool_abc"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"mode {mode:04o}.*chmod 600"):
            settings.token(path)


@pytest.mark.parametrize("content", ["", "two words", "ü"])
def test_what_is_no_token(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="it should hold a token"):
        settings.token(path)


def test_a_token_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        settings.token(tmp_path / "token")
