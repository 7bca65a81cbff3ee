"""Files of the guest's system, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpupool.guest.agent.failure import NOT_ALLOWED, AgentError


def write(path: Path, text: str) -> bool:
    """Makes the file hold this, readable by all; True if it did not before. Raises AgentError."""
    try:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())  # a machine may be killed at any time
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise _explained(path, error) from error
    return True


def remove(path: Path) -> bool:
    """True if it was there. Raises AgentError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _explained(path, error) from error
    return True


def _explained(path: Path, error: OSError) -> AgentError:
    hint = "" if os.geteuid() == 0 else "; the agent needs root"
    return AgentError(f"cannot write {path}: {error.strerror}{hint}", NOT_ALLOWED)
