"""One key of a daemon's configuration: what may be written, and what it means.

Lists of these are the documentation's source too: tests hold docs/ to them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `section.name`; no section: top level."""

    name: str
    kind: type
    default: object
    meaning: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        words = {bool: "true or false", str: "a string", list: "a list of strings"}
        return words.get(self.kind, f"a whole number from {self.low} to {self.high}")

    @property
    def default_text(self) -> str:
        """The default as TOML writes it."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f'"{self.default}"' if isinstance(self.default, str) else str(self.default)

    def check(self, value: object) -> str | None:
        """What is wrong with a value, or None."""
        right_type = type(value) is self.kind
        if right_type and isinstance(value, list):
            right_type = all(isinstance(item, str) for item in value)
        in_range = not isinstance(value, int) or self.kind is bool or self.low <= value <= self.high
        if right_type and in_range and (not self.choices or value in self.choices):
            return None
        return f"{self.name}: given {value!r}, allowed is {self.allowed}"
