"""Certificates of TLS endpoints: made where there is none, and their fingerprints.

A certificate that nobody else signed is made with the `openssl` command. Its key is readable by
hostd's user only. Clients know it by the fingerprint or take it as their CA.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
import stat
import subprocess
import tempfile
from pathlib import Path

from gpupool.hostd.core.ports import PortError

_DAYS = 3650
_TIMEOUT_S = 60
ADVICE = (
    "install it (apt-get install openssl), or write endpoint.certificate and endpoint.key of a "
    "certificate that you have"
)


def prepare(certificate: Path, key: Path, host: str) -> None:
    """Makes certificate and key if neither is there, and checks that others cannot read the key.

    `host`: what the endpoint listens at. Raises PortError.
    """
    if not certificate.exists() and not key.exists():
        _make(certificate, key, host)
    try:
        mode = stat.S_IMODE(key.stat().st_mode)
        certificate.read_bytes()
    except OSError as error:
        raise PortError(f"TLS: {error.filename}: {error.strerror}") from error
    if mode & 0o077:
        raise PortError(
            f"TLS key {key} has mode {mode:04o}: others can read it; chmod 0600 it and make a new "
            "certificate"
        )


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate in the file, in hexadecimal digits. Raises PortError."""
    try:
        text = certificate.read_text(encoding="ascii")
        end = "-----END CERTIFICATE-----"
        begin = text.index("-----BEGIN CERTIFICATE-----")
        first = text[begin : text.index(end, begin) + len(end)]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except OSError as error:
        raise PortError(f"TLS certificate {certificate}: {error.strerror}") from error
    except ValueError as error:
        raise PortError(f"TLS certificate {certificate} is no PEM file: {error}") from error


def names(host: str) -> list[str]:
    """What a certificate of our own is good for: this machine's name, and where it listens."""
    own = socket.gethostname()
    found = [f"DNS:{name}" for name in dict.fromkeys((own, socket.getfqdn(), "localhost"))]
    addresses = ["127.0.0.1", "::1"]
    try:
        listened = ipaddress.ip_address(host)
    except ValueError:
        found.append(f"DNS:{host}")
    else:
        if not listened.is_unspecified:
            addresses.append(str(listened))
    return list(dict.fromkeys([*found, *(f"IP:{address}" for address in addresses)]))


def _make(certificate: Path, key: Path, host: str) -> None:
    """Both appear complete or not at all: made beside their places, the certificate moved last."""
    try:
        for path in (certificate, key):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=key.parent, prefix=".certificate-") as folder:
            made = Path(folder)
            subprocess.run(  # noqa: S603 (fixed words)
                [  # noqa: S607 (from the PATH that hostd has)
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-sha256",
                    "-days",
                    str(_DAYS),
                    "-subj",
                    "/CN=gpupool",
                    "-addext",
                    "subjectAltName=" + ",".join(names(host)),
                    "-keyout",
                    str(made / "key"),
                    "-out",
                    str(made / "certificate"),
                ],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
            )
            (made / "key").chmod(0o600)
            (made / "certificate").chmod(0o644)
            (made / "key").replace(key)
            if certificate.parent == key.parent:
                (made / "certificate").replace(certificate)
            else:
                certificate.write_bytes((made / "certificate").read_bytes())
    except FileNotFoundError as error:
        if error.filename != "openssl":
            raise PortError(f"TLS: {error.filename}: {error.strerror}") from error
        raise PortError(f"a TLS certificate needs the openssl command; {ADVICE}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise PortError(f"openssl made no certificate: {' '.join(said)}; {ADVICE}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PortError(f"TLS certificate {certificate}: {error}") from error
