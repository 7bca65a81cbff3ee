"""The source files of the checkout, found without git: a fresh machine has none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
_NOT_SOURCES = {"build", "__pycache__"}  # and every hidden folder; gpupool/ holds symbolic links


def files(*suffixes: str) -> list[Path]:
    """Paths relative to the checkout of the files with these suffixes, sorted."""
    return sorted(name for name in _walk() if name.suffix in suffixes)


def _walk() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name for name in folders if name not in _NOT_SOURCES and not name.startswith(".")
        ]
        for name in names:
            yield Path(folder, name).relative_to(ROOT)
