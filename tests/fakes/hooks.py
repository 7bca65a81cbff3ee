"""Hooks of libvirt and Kata as modules, and what they talk to."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tests.fakes.admin_socket import AdminSocket


def load(path: Path) -> ModuleType:
    """The hook, a program without a suffix: it does nothing when it is imported."""
    loader = importlib.machinery.SourceFileLoader(f"hook_{path.name.replace('-', '_')}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def admin_socket() -> Iterator[AdminSocket]:
    """A stand-in for hostd, which admits everything until it is told otherwise."""
    # Of a short name: a socket's has 107 bytes in all.
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as folder:
        one = AdminSocket(Path(folder) / "admin.sock")
        yield one
        one.close()
