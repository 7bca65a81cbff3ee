"""Windows port: a sealed memfd.

Sealed against shrinking and growing (and against further seals), so a client cannot make the worker
fault by truncating what both map (memfd_create(2), "file-sealing"). Sparse: pages cost memory only
once written.
"""

from __future__ import annotations

import fcntl
import os

from gpupool.hostd.core.ports import PortError

# From linux/fcntl.h and linux/memfd.h; Python's fcntl has F_ADD_SEALS since 3.8.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL = (
    0x8  # Linux 6.3: never executable, and sealed so; unknown to older kernels (EINVAL)
)


class MemfdWindows:
    """Implements `ports.Windows`."""

    def create(self, window_bytes: int) -> int:
        """A new window. Raises PortError when the kernel has no memory or descriptors left."""
        try:
            fd = _memfd()
        except OSError as error:
            raise PortError(f"cannot create a window (memfd_create): {error.strerror}") from error
        try:
            os.ftruncate(fd, window_bytes)
            # MFD_NOEXEC_SEAL already adds F_SEAL_EXEC; F_SEAL_SEAL must come last, and does, in the
            # same call.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(fd)
            raise PortError(
                f"cannot size or seal a window of {window_bytes >> 20} MiB: {error.strerror}"
            ) from error
        return fd

    def close(self, fd: int) -> None:
        """Closes hostd's copy; the memory lives while client or worker have it."""
        os.close(fd)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("gpupool-window", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("gpupool-window", flags)
