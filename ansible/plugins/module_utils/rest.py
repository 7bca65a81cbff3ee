"""Asks a controller's REST interface: what the inventory and the module `node` share.

Tokens are read from files that nobody else may read, and are in no error.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from ansible.module_utils.urls import open_url

_TIMEOUT_S = 30
_PAGE = 500


class RestError(Exception):
    """It could not be asked, or refused; the text says what is wrong and what to do."""


class Rest:
    """One controller."""

    def __init__(self, url: str, token_file: str, ca_file: str = "") -> None:
        """Reads the token. Raises RestError."""
        if not url.startswith(("https://", "http://")):
            raise RestError(f"controller is {url!r}, allowed is https://host:port")
        self._base = url.rstrip("/") + "/api/v1"
        self._ca_file = ca_file or None
        path = Path(token_file).expanduser()
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise RestError(f"others may read the token in {path}: chmod 600 {path}")
            self._token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RestError(f"no token in {path}: {error}") from error

    def all(self, path: str) -> Iterator[dict[str, Any]]:
        """Every item of a list. Raises RestError."""
        cursor = ""
        while True:
            page = self.ask("GET", f"{path}?limit={_PAGE}&cursor={cursor}")
            yield from page["items"]
            cursor = quote(page.get("next_cursor") or "")
            if not cursor:
                return

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request. Raises RestError."""
        what = f"{method} {self._base}{path}"
        try:
            answer = open_url(
                self._base + path,
                method=method,
                data=None if body is None else json.dumps(body),
                headers={
                    "Authorization": f"Bearer {self._token}",
                    "Content-Type": "application/json",
                },
                ca_path=self._ca_file,
                timeout=_TIMEOUT_S,
                follow_redirects="none",  # whoever answers there would get the token
            )
            found = json.loads(answer.read())
        except HTTPError as error:
            raise RestError(f"{what}: {_reason(error)}") from error
        except (URLError, OSError) as error:
            raise RestError(f"{what}: {error}; is the controller there?") from error
        except ValueError as error:
            raise RestError(f"{what}: the answer is no JSON; is that a controller?") from error
        if not isinstance(found, dict):
            raise RestError(f"{what}: the answer is no object; is that a controller?")
        return found


def _reason(error: HTTPError) -> str:
    """What the controller says, else the status alone."""
    try:
        problem = json.loads(error.read())
        return f"{error.code}: {problem['detail']}"
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
