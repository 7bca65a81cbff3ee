"""Licence files: signing them, checking them, and reading the one that is installed.

    python -m gpupool.controller.licence key  --private-key FILE      # once, at the vendor's
    python -m gpupool.controller.licence sign --private-key FILE --holder NAME --gpus 64 \\
        --expires 2027-12-31 > licence.json
    python -m gpupool.controller.licence verify --public-key HEX licence.json

A licence is JSON: `{"licence": {...}, "signature": HEX}`. Signed (Ed25519) are the exact bytes of
the canonical form of `licence`: sorted keys, no spaces, ASCII. Exit codes: 0 done; 1 the licence is
not good; 2 the command line or a file is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gpupool.controller.core.identity import new_id
from gpupool.controller.core.licence import NO_LICENCE, VENDOR_KEYS, Licence

log = logging.getLogger("gpupool.controller.licence")
_FIELDS = {"id", "holder", "gpus", "expires"}
_MOST_BYTES = 64 << 10


class LicenceError(ValueError):
    """The file is no licence, or nobody who is trusted signed it."""


def canonical(content: dict[str, Any]) -> bytes:
    """What is signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sign(key: Ed25519PrivateKey, content: dict[str, Any]) -> str:
    """A licence file's text."""
    signature = key.sign(canonical(content)).hex()
    return json.dumps({"licence": content, "signature": signature}, indent=2) + "\n"


def verify(text: str, public_keys: Sequence[str]) -> Licence:
    """What a licence file allows. Raises LicenceError."""
    try:
        document = json.loads(text)
        content, signature = document["licence"], bytes.fromhex(document["signature"])
    except (ValueError, KeyError, TypeError) as error:
        raise LicenceError("it is no licence file") from error
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise LicenceError(f"a licence has exactly the fields {', '.join(sorted(_FIELDS))}")
    if not public_keys:
        raise LicenceError("there is no public key to check it with (licence.public_key)")
    for key in public_keys:
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
                signature, canonical(content)
            )
        except InvalidSignature:
            continue
        return _licence(content)
    raise LicenceError("its signature is of none of the keys that are trusted")


def _licence(content: dict[str, Any]) -> Licence:
    gpus, expires = content["gpus"], content["expires"]
    if type(gpus) is not int or gpus < 0:
        raise LicenceError(f"gpus: given {gpus!r}, allowed is a whole number")
    try:
        end = None if expires is None else date.fromisoformat(expires)
    except (TypeError, ValueError) as error:
        raise LicenceError(f"expires: given {expires!r}, allowed is YYYY-MM-DD or null") from error
    expires_ms = None
    if end is not None:  # the whole of the last day counts, in UTC
        start = datetime.combine(end, time(), timezone.utc)
        expires_ms = int((start.timestamp() + 86400) * 1000)
    return Licence(gpus, expires_ms, str(content["holder"]), str(content["id"]))


class LicenceFile:
    """The licence that is installed, read again when the file changes.

    A file that is there but not good counts as a licence for nothing new: a broken licence must not
    allow more than a good one.
    """

    def __init__(self, path: Path | None, public_key: str) -> None:
        self._path = path
        self._keys = (*VENDOR_KEYS, *([public_key] if public_key else []))
        self._lock = threading.Lock()
        self._seen: object = None
        self._licence = NO_LICENCE

    def current(self) -> Licence:
        """What is allowed now. Cheap: one look at the file's date."""
        if self._path is None:
            return NO_LICENCE
        with self._lock:
            seen = self._stamp(self._path)
            if seen != self._seen:
                self._seen = seen
                self._licence = self._read(self._path)
            return self._licence

    @staticmethod
    def _stamp(path: Path) -> object:
        try:
            facts = path.stat()
        except OSError as error:
            return error.errno
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _read(self, path: Path) -> Licence:
        try:
            with path.open(encoding="utf-8") as file:
                licence = verify(file.read(_MOST_BYTES), self._keys)
        except (OSError, ValueError) as error:
            log.error("licence %s is not good: %s; nothing new is given out", path, error)
            # GPUs stay licensed, so that what runs goes on; only new allocations are refused.
            return Licence(NO_LICENCE.gpus, 0, "", f"{path} ({error})")
        log.info("licence %s for %s: %d GPUs", licence.id, licence.holder, licence.gpus)
        return licence


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpupool.controller.licence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("key", "sign"):
        one = commands.add_parser(name)
        one.add_argument("--private-key", required=True, type=Path, help="a file with mode 0600")
        if name == "sign":
            one.add_argument("--holder", required=True)
            one.add_argument("--gpus", required=True, type=int)
            one.add_argument("--expires", help="the last day, YYYY-MM-DD; left out: for ever")
    check = commands.add_parser("verify")
    check.add_argument("--public-key", required=True, action="append")
    check.add_argument("file", type=Path)
    return parser


def _make_key(path: Path) -> int:
    key = Ed25519PrivateKey.generate()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(key.private_bytes_raw().hex() + "\n")
    print(key.public_key().public_bytes_raw().hex())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The vendor's tool."""
    asked = _arguments().parse_args(arguments)
    try:
        if asked.command == "key":
            return _make_key(asked.private_key)
        if asked.command == "verify":
            licence = verify(asked.file.read_text(encoding="utf-8"), asked.public_key)
            end = "no end"
            if licence.expires_ms is not None:
                end = f"ends {datetime.fromtimestamp(licence.expires_ms / 1000, tz=timezone.utc)}"
            print(f"{licence.id}: {licence.holder}, {licence.gpus} GPUs, {end}")
            return 0
        seed = bytes.fromhex(asked.private_key.read_text(encoding="utf-8"))
        content = {
            "id": new_id("licence", int(datetime.now(tz=timezone.utc).timestamp() * 1000)),
            "holder": asked.holder,
            "gpus": asked.gpus,
            "expires": asked.expires,
        }
        _licence(content)
        print(sign(Ed25519PrivateKey.from_private_bytes(seed), content), end="")
    except LicenceError as error:
        print(f"not good: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
