"""The controller's configuration: defaults, errors that help, and documentation of every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpupool.controller import config
from gpupool.controller.config import ConfigError
from gpupool.controller.config_keys import KEYS
from gpupool.wire.settings import Key

DOCUMENT = Path(__file__).parents[2] / "docs" / "controller.md"


def problem(document: dict[str, Any]) -> str:
    """What parse says is wrong."""
    with pytest.raises(ConfigError) as caught:
        config.parse(document)
    return str(caught.value)


def test_defaults() -> None:
    parsed = config.parse({})
    assert (parsed.host, parsed.port) == ("127.0.0.1", 9180)
    assert parsed.database_url == "sqlite:////var/lib/gpupool/controller.db"
    assert parsed.lease_node_s == 30


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_default_is_allowed_and_documented(key: Key) -> None:
    assert key.check(key.default) is None
    row = re.search(rf"^\| `{re.escape(key.name)}` \|(.*)\|$", DOCUMENT.read_text(), re.M)
    assert row is not None, f"docs/controller.md has no row for {key.name}"
    assert f"`{key.default_text}`" in row[1]


def test_the_documentation_has_no_other_keys() -> None:
    table = DOCUMENT.read_text().partition("## Configuration")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", table, re.M)) == {key.name for key in KEYS}


def test_nothing_is_ignored() -> None:
    assert "listn: no such key" in problem({"listn": "x"})
    assert "database.urls: no such key" in problem({"database": {"urls": "x"}})
    assert "database.connections: given 'x'" in problem({"database": {"connections": "x"}})
    assert len(problem({"a": 1, "b": 2}).splitlines()) == 2


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"listen": "0.0.0.0:9180"}, "without TLS"),
        ({"listen": "[::]:9180"}, "without TLS"),
        ({"listen": "localhost:9180"}, "allowed is address:port"),
        ({"listen": "127.0.0.1:99999"}, "allowed is address:port"),
        ({"tls": {"certificate": "/c.pem"}}, "both or neither"),
        ({"tls": {"certificate": "c.pem", "key": "/k"}}, "absolute path"),
        ({"database": {"url": "mysql://x/y"}}, "database.url"),
        ({"database": {"url": "sqlite://"}}, "database.url"),
        ({"database": {"url": "postgresql://u:hunter2@h/d"}}, "password_file"),
        ({"licence": {"public_key": "abc"}}, "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be(document: dict[str, Any], told: str) -> None:
    assert told in problem(document)
    assert "hunter2" not in problem(document)


def test_listening_to_others_needs_tls_or_insecure() -> None:
    assert config.parse({"listen": "0.0.0.0:9180", "insecure": True}).host == "0.0.0.0"  # noqa: S104
    secure = {"certificate": "/c.pem", "key": "/k.pem"}
    assert config.parse({"listen": "[::]:443", "tls": secure}).tls_key == "/k.pem"


def test_a_password_comes_from_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("p@ss/word\n")
    path.chmod(0o640)
    url = "postgresql://gpupool@db/gpupool"
    document = {"database": {"url": url, "password_file": str(path)}}
    assert "chmod 600" in problem(document)
    path.chmod(0o600)
    parsed = config.parse(document)
    assert parsed.database_url == "postgresql://gpupool:p%40ss%2Fword@db/gpupool"
    assert "word" not in repr(parsed)
