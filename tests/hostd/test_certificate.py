"""Certificates of hostd's own."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from gpupool.hostd.adapters.certificate import fingerprint, names, prepare
from gpupool.hostd.core.ports import PortError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A new certificate and its key."""
    pair = tmp_path / "new" / "certificate.pem", tmp_path / "new" / "key.pem"
    prepare(*pair, "10.0.0.7")
    return pair


def test_it_is_made_once(made: tuple[Path, Path]) -> None:
    certificate, key = made
    before = certificate.read_bytes(), key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    prepare(certificate, key, "10.0.0.7")
    assert (certificate.read_bytes(), key.read_bytes()) == before
    assert sorted(path.name for path in certificate.parent.iterdir()) == [
        "certificate.pem",
        "key.pem",
    ]


def test_its_fingerprint_is_openssls(made: tuple[Path, Path]) -> None:
    said = subprocess.run(
        ["openssl", "x509", "-in", str(made[0]), "-noout", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert fingerprint(made[0]) == said.partition("=")[2].strip().replace(":", "").lower()
    assert (
        fingerprint(made[0])
        == hashlib.sha256(ssl.PEM_cert_to_DER_cert(made[0].read_text())).hexdigest()
    )


def test_whom_it_is_for() -> None:
    assert {"DNS:localhost", "IP:127.0.0.1", "IP:10.0.0.7"} <= set(names("10.0.0.7"))
    assert "DNS:gpu7" in names("gpu7")
    assert "IP:0.0.0.0" not in names("0.0.0.0")  # noqa: S104 (nothing is bound)


def test_a_key_that_others_can_read(made: tuple[Path, Path]) -> None:
    made[1].chmod(0o640)
    with pytest.raises(PortError, match="mode 0640: others can read it"):
        prepare(*made, "h")


@pytest.mark.parametrize("missing", [0, 1])
def test_half_of_it_is_never_made_anew(made: tuple[Path, Path], missing: int) -> None:
    made[missing].unlink()
    with pytest.raises(PortError, match=r"TLS: .*No such file"):
        prepare(*made, "h")


def test_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="No such file"):
        fingerprint(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(PortError, match="is no PEM file"):
        fingerprint(tmp_path / "text")


def test_no_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PortError, match="needs the openssl command; install it"):
        prepare(tmp_path / "certificate", tmp_path / "key", "h")
    assert list(tmp_path.iterdir()) == []
