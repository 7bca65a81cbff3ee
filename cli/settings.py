"""Whom the command asks: said on the command line, in GPUPOOL_CONTROLLER, or in cli.toml.

controller = "https://gpupool.example.org"
token_file = "/home/me/.config/gpupool/token"   # mode 0600; a token stands nowhere else
ca_file = "/etc/ssl/our-ca.pem"
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from gpupool.cli.backend import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS = ("controller", "token_file", "ca_file")


@dataclass(frozen=True, slots=True)
class Said:
    """What the command line says. Empty: nothing."""

    controller: str = ""
    admin_socket: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller, and how to talk to it."""

    url: str
    token_file: Path | None
    ca_file: Path | None


def path() -> Path:
    """Where this user's cli.toml is, whether or not there is one."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "gpupool" / "cli.toml"


def controller(said: Said) -> Controller | None:
    """The controller to ask; None: this machine's hostd. Raises UsageError."""
    if said.admin_socket:
        if said.controller:
            raise UsageError(
                "--controller and --admin-socket were both given; one command asks one of them"
            )
        return None
    written = _read(path())
    url = said.controller or os.environ.get("GPUPOOL_CONTROLLER") or written.get("controller", "")
    if not url:
        if said.token_file or said.ca_file:
            raise UsageError(
                "--token-file and --ca-file are for a controller, and none is named: give "
                f"--controller URL, GPUPOOL_CONTROLLER, or controller in {path()}"
            )
        return None
    # A file's token is for the controller that the file names: no other one gets to see it.
    if url.rstrip("/") != written.get("controller", "").rstrip("/"):
        written = {}
    return Controller(
        url.rstrip("/"),
        said.token_file or _path(written, "token_file"),
        said.ca_file or _path(written, "ca_file"),
    )


def token(file: Path) -> str:
    """The token in a file that only its owner may read. Raises UsageError."""
    try:
        with file.open(encoding="ascii") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise UsageError(
                    f"{file}: others may read this token (mode {stat.S_IMODE(mode):04o}); "
                    f"chmod 600 {file}"
                )
            text = opened.read(4096).strip()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; it should hold the token") from error
    except ValueError as error:
        raise UsageError(f"{file}: it should hold a token, one line of plain text") from error
    if not text or len(text.split()) != 1:
        raise UsageError(f"{file}: it should hold a token, one line of plain text")
    return text


def _read(file: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except ValueError as error:  # both of tomllib's and of UTF-8's
        raise UsageError(f"{file}: {error}") from error
    for key, value in content.items():
        if key not in _KEYS:
            raise UsageError(f"{file}: unknown key {key}; known are {', '.join(_KEYS)}")
        if not isinstance(value, str):
            raise UsageError(f"{file}: {key} is given as {value!r}, allowed is a text")
    return content


def _path(written: dict[str, str], key: str) -> Path | None:
    return Path(written[key]).expanduser() if written.get(key) else None
