"""Reads the JSON of a backend: checked once here, dataclasses from there on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gpupool.cli.backend import BackendError

T = TypeVar("T")


class Record:
    """One JSON object of an answer."""

    def __init__(self, content: Any, what: str) -> None:
        """`what` names it in errors. Raises BackendError where it is no object."""
        if not isinstance(content, dict):
            raise BackendError(_strange(what, "is no object"))
        self._content = content
        self._what = what

    def text(self, key: str, default: str | None = None) -> str:
        """A text; null counts as the default, a number is written out."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BackendError(_strange(self._what, f"has a {key} that is no text"))
        return str(value)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number; null counts as the default."""
        value = self._value(key, default)
        if type(value) is not int:
            raise BackendError(_strange(self._what, f"has a {key} that is no whole number"))
        return value

    def maybe(self, key: str) -> int | None:
        """A whole number, or nothing."""
        return None if self._content.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false; null counts as the default."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise BackendError(_strange(self._what, f"has a {key} that is neither true nor false"))
        return value

    def texts(self, key: str) -> dict[str, str]:
        """Texts by name, such as labels."""
        return {str(name): str(value) for name, value in self.inner(key).items()}

    def inner(self, key: str) -> dict[str, Any]:
        """An object in it; empty where there is none."""
        value = self._content.get(key) or {}
        if not isinstance(value, dict):
            raise BackendError(_strange(self._what, f"has a {key} that is no object"))
        return value

    def each(self, key: str, read: Callable[[Any], T]) -> list[T]:
        """A list in it."""
        value = self._content.get(key)
        if not isinstance(value, list):
            raise BackendError(_strange(self._what, f"has no list of {key}"))
        try:
            return [read(one) for one in value]
        except (TypeError, ValueError) as error:
            raise BackendError(_strange(self._what, f"has {key} with {error}")) from error

    def _value(self, key: str, default: object) -> Any:
        value = self._content.get(key)
        if value is not None:
            return value
        if default is None:
            raise BackendError(_strange(self._what, f"has no {key}"))
        return default


def _strange(what: str, problem: str) -> str:
    return (
        f"{what} {problem}: the other side speaks another version; install the same version of "
        "gpupool on both"
    )
