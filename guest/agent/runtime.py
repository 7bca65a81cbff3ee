"""Our libcuda.so.1 and libnvidia-ml.so.1, put where every program's dynamic linker finds them.

A line in ld.so.conf.d and a run of ldconfig: no file of another package is touched, and taking both
back leaves the system as it was. Never beside a real driver, whose programs would then be ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from gpupool.guest.agent import place
from gpupool.guest.agent.failure import DRIVER_PRESENT, NO_RUNTIME, AgentError

LIBRARIES = ("libcuda.so", "libnvidia-ml.so")
# Where packages of NVIDIA and distributions put the driver's libraries.
_DRIVER_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib64",
    "usr/lib64/nvidia",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
)
_LDCONFIG_TIMEOUT_S = 120


class Runtime:
    """The guest libraries in `folder`, for the system at `root`, whose paths begin there."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        self.folder = folder
        self.root = root
        self.list_file = root / "etc" / "ld.so.conf.d" / "gpupool.conf"

    def install(self, force: bool) -> bool:
        """True if something was changed. Raises AgentError."""
        for name in LIBRARIES:
            if not (self._at(self.folder) / (name + ".1")).is_file():
                raise AgentError(
                    f"{name}.1 is not in {self.folder}; unpack the whole guest package, or name "
                    "its folder with --lib",
                    NO_RUNTIME,
                )
        driver = self.find_driver()
        if driver and not force:
            raise AgentError(
                f"a real NVIDIA driver is here: {driver}. Programs of this machine use its GPU; "
                "remove that driver, or say --force to put gpupool's libcuda.so.1 before it",
                DRIVER_PRESENT,
            )
        changed = self._link()
        text = f"# gpupool's guest agent wrote this\n{self.folder}\n"
        if place.write(self.list_file, text):
            changed = True
        if changed or not self.is_found():
            self._ldconfig()
        if not self.is_found():
            raise AgentError(
                f"programs do not find libcuda.so.1 in {self.folder}: `ldconfig -p | grep libcuda` "
                "says what comes before it",
                NO_RUNTIME,
            )
        return changed

    def uninstall(self) -> bool:
        """True if it was installed. Raises AgentError."""
        if not place.remove(self.list_file):
            return False
        self._ldconfig()
        return True

    def find_driver(self) -> str:
        """A sign of NVIDIA's own driver; empty if there is none."""
        version = self.root / "proc" / "driver" / "nvidia" / "version"
        if version.exists():
            return str(version)
        listed = [self._at(Path(path).parent) for path in self._listed()]
        for folder in [self.root / name for name in _DRIVER_FOLDERS] + listed:
            library = folder / "libcuda.so.1"
            if library.exists() and not self._is_ours(library):
                return str(library)
        return ""

    def is_found(self) -> bool:
        """Whether a program that loads libcuda.so.1 gets ours."""
        listed = self._listed()
        return bool(listed) and self._is_ours(self._at(Path(listed[0])))

    def _at(self, path: Path) -> Path:
        """Where a path of that system is for us."""
        return self.root / str(path).lstrip("/")

    def _is_ours(self, library: Path) -> bool:
        own = self._at(self.folder) / "libcuda.so.1"
        return os.path.realpath(str(library)) == os.path.realpath(str(own))

    def _link(self) -> bool:
        """Names without a number, which linkers and some programs look for."""
        changed = False
        for name in LIBRARIES:
            link = self._at(self.folder) / name
            if not link.exists():
                try:
                    link.symlink_to(name + ".1")
                except OSError as error:
                    text = f"cannot make {link}: {error.strerror}"
                    raise AgentError(text, NO_RUNTIME) from error
                changed = True
        return changed

    def _listed(self) -> list[str]:
        """Paths of libcuda.so.1 for 64-bit programs in the linker's cache, the first one wins."""
        text = self._run(["-p"])
        return re.findall(r"^\s*libcuda\.so\.1 \(libc6,x86-64[^)]*\) => (\S+)$", text or "", re.M)

    def _ldconfig(self) -> None:
        if self._run([]) is None:
            raise AgentError("ldconfig failed; run it by hand to see why", NO_RUNTIME)

    def _run(self, words: list[str]) -> str | None:
        """Output of ldconfig; None when it fails."""
        tool = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if tool is None:
            text = "there is no ldconfig here; gpupool's guest libraries need a system with glibc"
            raise AgentError(text, NO_RUNTIME)
        elsewhere = [] if self.root == Path("/") else ["-r", str(self.root)]
        done = subprocess.run(  # noqa: S603 (ldconfig, by path)
            [tool, *elsewhere, *words],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_LDCONFIG_TIMEOUT_S,
            check=False,
        )
        return done.stdout if done.returncode == 0 else None
