"""Reading a request to the admin API: each field checked once, by name."""

from __future__ import annotations

from typing import Any

from gpupool.hostd.api.admin import BadRequestError


def take(request: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A field of that type. Raises BadRequestError."""
    value = request.get(key, default)
    if type(value) is not kind:
        words = {int: "a whole number", str: "a text", bool: "true or false", list: "a list"}
        raise BadRequestError(f"{key}: given {value!r}, allowed is {words[kind]}")
    return value


def choice(request: dict[str, Any], key: str, choices: list[str], default: str) -> str:
    """One of these words. Raises BadRequestError."""
    value = take(request, key, str, default)
    if value not in choices:
        raise BadRequestError(f"{key}: given {value!r}, allowed is {' or '.join(choices)}")
    return str(value)


def only(request: dict[str, Any], *known: str, where: str = "") -> None:
    """Refuses fields that nobody would look at. Raises BadRequestError."""
    unknown = sorted(set(request) - {"method", *known})
    if unknown:
        names = ", ".join(known) or "nothing"
        what = where or request.get("method")
        raise BadRequestError(f"unknown: {', '.join(unknown)}; {what} takes {names}")
