"""Log lines: one record one line, whatever a client put into it."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.hostd.log import LineFormatter, RateLimit, escaped, fields, stderr_is_journal


def record(message: str, **content: object) -> logging.LogRecord:
    """As the logger makes it."""
    logger = logging.getLogger("test")
    return logger.makeRecord(
        "test", logging.WARNING, "x.py", 1, message, (), None, extra=fields(content)
    )


def line(
    message: str, *, as_json: bool = False, priorities: bool = False, **content: object
) -> str:
    """The formatted line."""
    return LineFormatter(as_json=as_json, priorities=priorities).format(record(message, **content))


def test_key_value() -> None:
    text = line("session started", session=3, name="a b", empty="")
    assert text.startswith("time=20")
    assert text.endswith('level=warning msg="session started" session=3 name="a b" empty=""')


def test_json() -> None:
    content = json.loads(line("session started", as_json=True, session=3, name="a\nb"))
    assert content["msg"] == "session started"
    assert (content["session"], content["name"]) == (3, "a\nb")


def test_priority() -> None:
    assert line("x", priorities=True).startswith("<4>time=")


def test_names_that_logging_uses_itself() -> None:
    assert "name=n args=a module=m" in line("x", name="n", args="a", module="m")


@given(st.text())
def test_nothing_breaks_out_of_its_field(text: str) -> None:
    word = escaped(text)
    assert word.isprintable()
    assert word.isascii()
    if word != text:
        assert json.loads(word) == text


def test_a_trace_stays_on_the_line() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        logger = logging.getLogger("test")
        made = logger.makeRecord("test", logging.ERROR, "x.py", 1, "m", (), sys.exc_info())
    text = LineFormatter(as_json=False, priorities=False).format(made)
    assert "\n" not in text
    assert r"ValueError: bad\nthing" in text


def test_journal() -> None:
    facts = os.fstat(sys.stderr.fileno())
    assert stderr_is_journal({"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"})
    assert not stderr_is_journal({"JOURNAL_STREAM": "1:1"})
    assert not stderr_is_journal({})


@pytest.mark.parametrize("burst", [1, 5])
def test_rate_limit(burst: int) -> None:
    limit = RateLimit(burst=burst, period_s=10)
    assert [limit.admit(0)[0] for _ in range(burst + 3)] == [True] * burst + [False] * 3
    assert limit.admit(9.9) == (False, 0)
    assert limit.admit(10) == (True, 4)
    assert limit.admit(10.1)[1] == 0
