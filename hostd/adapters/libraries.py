"""Finding the real libcuda and NVML by absolute path, and never our own.

hostd may be started with LD_LIBRARY_PATH pointing at the guest runtime; dlopen("libcuda.so.1")
would then load gpupool into gpupool. So libraries are looked up as files, and one that carries our
marker symbol is passed over.
"""

from __future__ import annotations

import mmap
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

MARKER = b"\0gpupool_guest_runtime\0"  # an entry of .dynstr in our libraries
# Where NVIDIA's packages, containers (nvidia-container-toolkit) and WSL put the driver's libraries.
DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib64",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
)
_LDCONFIG_TIMEOUT_S = 10
_ELF64_X86 = (
    b"\x7fELF\x02\x01",
    b"\x3e\x00",
)  # magic, 64-bit little-endian; e_machine EM_X86_64 at offset 18


def is_ours(path: Path) -> bool:
    """True for a library of gpupool's guest runtime. Raises OSError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARKER) >= 0


def is_loadable(path: Path) -> bool:
    """True for a 64-bit x86 ELF file; linker stubs and 32-bit libraries are not."""
    with path.open("rb") as file:
        head = file.read(20)
    return (
        head.startswith(_ELF64_X86[0])
        and head[18:20] == _ELF64_X86[1]
        and "stubs" not in path.parts
    )


def find_real(
    soname: str, directories: Iterable[str] = DIRECTORIES, *, ldconfig: bool = True
) -> tuple[Path | None, list[str]]:
    """The first real library of that name, and a note for each one passed over."""
    notes: list[str] = []
    seen: set[Path] = set()
    for candidate in [
        *(_from_ldconfig(soname, notes) if ldconfig else []),
        *(Path(d) / soname for d in directories),
    ]:
        try:
            resolved = candidate.resolve(strict=True)
            if resolved in seen:
                continue
            seen.add(resolved)
            if not is_loadable(resolved):
                notes.append(f"{candidate} is no 64-bit library")
            elif is_ours(resolved):
                notes.append(f"{candidate} is gpupool's own guest runtime")
            else:
                return candidate.absolute(), notes
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
            notes.append(f"{candidate} cannot be read: {error}")
    return None, notes


def _from_ldconfig(soname: str, notes: list[str]) -> list[Path]:
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            listing = subprocess.run(  # noqa: S603 (a fixed command)
                [program, "-p"],
                capture_output=True,
                text=True,
                timeout=_LDCONFIG_TIMEOUT_S,
                check=True,
            ).stdout
        except FileNotFoundError:
            continue
        except (OSError, subprocess.SubprocessError) as error:
            notes.append(f"{program} -p failed: {error}")
            continue
        pattern = rf"^\s*{re.escape(soname)} \(.*x86-64.*\) => (/.*)$"
        return [Path(path) for path in re.findall(pattern, listing, re.MULTILINE)]
    return []
