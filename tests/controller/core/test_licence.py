"""Licence files: what is trusted, what is not, and the vendor's tool."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpupool.controller.core.errors import RefusedError
from gpupool.controller.core.licence import FREE_GPUS
from gpupool.controller.licence import LicenceError, LicenceFile, main, sign, verify

CONTENT = {"id": "licence-1", "holder": "ACME", "gpus": 64, "expires": "2030-12-31"}
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw().hex()


def test_a_signed_licence_is_believed() -> None:
    licence = verify(sign(KEY, CONTENT), [PUBLIC])
    assert (licence.gpus, licence.holder, licence.id) == (64, "ACME", "licence-1")
    end_ms = int(datetime(2031, 1, 1, tzinfo=timezone.utc).timestamp() * 1000)
    assert licence.expires_ms == end_ms
    assert not licence.expired(end_ms - 1)
    with pytest.raises(RefusedError):
        licence.check(end_ms)


@pytest.mark.parametrize("name", CONTENT)
def test_a_changed_one_is_not(name: str) -> None:
    document = json.loads(sign(KEY, CONTENT))
    document["licence"][name] = 65 if name == "gpus" else "2031-01-01"
    with pytest.raises(LicenceError, match="signature"):
        verify(json.dumps(document), [PUBLIC])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"licence": 1, "signature": "00"}', '{"licence": {}, "signature": 1}']
)
def test_nonsense_is_not(text: str) -> None:
    with pytest.raises(LicenceError):
        verify(text, [PUBLIC])


def test_another_key_is_not_trusted_and_neither_is_none() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    with pytest.raises(LicenceError):
        verify(sign(KEY, CONTENT), [other])
    with pytest.raises(LicenceError):
        verify(sign(KEY, CONTENT), [])


@pytest.mark.parametrize("change", [{"gpus": -1}, {"gpus": True}, {"expires": "soon"}])
def test_signed_nonsense_is_not(change: dict[str, object]) -> None:
    with pytest.raises(LicenceError):
        verify(sign(KEY, CONTENT | change), [PUBLIC])


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "licence.json"
    file = LicenceFile(path, PUBLIC)
    assert file.current().expired(1)  # missing: nothing new
    path.write_text(sign(KEY, CONTENT))
    assert file.current().gpus == 64
    path.write_text(sign(KEY, CONTENT | {"gpus": 7}))
    os.utime(path, ns=(1, 1))
    assert file.current().gpus == 7
    path.write_text("broken")
    assert file.current().expired(1)


def test_without_one_there_is_room() -> None:
    licence = LicenceFile(None, "").current()
    assert licence.gpus == FREE_GPUS
    assert not licence.expired(1 << 60)


def test_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, licence = tmp_path / "key", tmp_path / "licence.json"
    assert main(["key", "--private-key", str(key)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    public = capsys.readouterr().out.strip()
    wanted = ["--holder", "ACME", "--gpus", "8", "--expires", "2030-01-01"]
    assert main(["sign", "--private-key", str(key), *wanted]) == 0
    licence.write_text(capsys.readouterr().out)
    assert main(["verify", "--public-key", public, str(licence)]) == 0
    assert "ACME, 8 GPUs" in capsys.readouterr().out
    assert main(["verify", "--public-key", PUBLIC, str(licence)]) == 1
    assert main(["key", "--private-key", str(key)]) == 2  # never writes over one
