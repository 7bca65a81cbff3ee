"""The help of every command, word for word.

After a wanted change run `GPUPOOL_REGENERATE=1 pytest tests/cli/test_help.py` and look at the diff.
"""

from __future__ import annotations

import os
import sys

import pytest

from gpupool.cli.app import application
from gpupool.cli.commands import COMMANDS, GROUPS, PLAIN
from gpupool.cli.main import main
from tests.tree import ROOT

GOLDEN = ROOT / "tests" / "golden" / "cli"


def commands() -> list[tuple[str, ...]]:
    """Words of every command: the whole, each noun, each verb."""
    found: list[tuple[str, ...]] = [()]
    for noun in COMMANDS:
        found.append((noun,))
        groups = [one for one in application(noun).registered_groups if one.name == noun]
        for group in groups:
            assert group.typer_instance is not None
            found += [(noun, str(verb.name)) for verb in group.typer_instance.registered_commands]
    return found


def told(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What `gpupool WORDS --help` prints."""
    try:
        code = main([*words, "--help"])
    except SystemExit as left:  # argparse's way
        code = int(str(left.code))
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", commands(), ids=lambda words: "-".join(words) or "gpupool")
def test_help_is_as_it_was(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = told(words, capsys)
    assert "exit codes:" in text
    assert max(map(len, text.splitlines())) <= 110
    if words[:1] and words[0] in PLAIN and sys.version_info[:2] != (3, 11):
        pytest.skip("argparse lays help out in another way in each version of Python")
    path = GOLDEN / f"{'-'.join(words) or 'gpupool'}.txt"
    if os.environ.get("GPUPOOL_REGENERATE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_no_golden_text_is_left_over() -> None:
    expected = {f"{'-'.join(words) or 'gpupool'}.txt" for words in commands()}
    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_every_command_is_in_one_group() -> None:
    grouped = [noun for nouns in GROUPS.values() for noun in nouns]
    assert sorted(grouped) == sorted(COMMANDS)


@pytest.mark.parametrize("words", [one for one in commands() if len(one) == 2])
def test_every_verb_has_an_example_and_json(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(words, capsys)
    assert f"  gpupool {' '.join(words)} " in text or text.endswith(
        f"  gpupool {' '.join(words)}\n"
    )
    assert "--json " in text
