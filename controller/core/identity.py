"""Identifiers: a word for the noun, the time, random bits: `vgpu-018f3c2a1b4d9e0f3c5a7b91d2e4`.

They sort by age, so pages of a list stay where they were while new rows come in. They are names,
not secrets: whoever guesses one still has to be allowed to see the row.
"""

from __future__ import annotations

import secrets

_TIME_DIGITS = 11  # hexadecimal digits of milliseconds: until the year 2527


def new_id(noun: str, now_ms: int) -> str:
    """A new identifier."""
    return f"{noun}-{now_ms:0{_TIME_DIGITS}x}{secrets.token_hex(8)}"
