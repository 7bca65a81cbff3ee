"""OpenGL of this machine's programs: the relay that Mesa dials, and the variables that make it.

The relay (gpupool-opengl, beside the agent's libraries) finds the host in guest.toml by itself, as
programs do. It is ours: it ends with the agent, and one that has ended is started again.

Where the machine's administrator wants that, programs without a display take gpupool's own EGL
(libEGL_gpupool.so, beside the relay) and windows go on with the relay.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from gpupool.guest.agent import place
from gpupool.guest.agent.failure import NO_RUNTIME, AgentError

NAME = "gpupool-opengl"
EGL = "libEGL_gpupool.so"
WAYS = ("virgl", "direct", "off")
# Where distributions with GLVND describe Mesa's EGL. GLVND passes over a file that is missing.
_MESA = "/usr/share/glvnd/egl_vendor.d/50_mesa.json"
# Where older Mesa dials, whatever the variables say. Nobody can take it from root in /tmp.
_FIXED = "/tmp/.virgl_test"  # noqa: S108
_END_TIMEOUT_S = 5


class OpenGl:
    """The relay in `folder`, for the system at `root`, whose paths begin there."""

    def __init__(
        self, folder: Path, guest_file: Path, root: Path = Path("/"), way: str = "virgl"
    ) -> None:
        """`way`: one of WAYS."""
        self._way = way
        self._program = folder / NAME
        self._egl = folder / EGL
        self._guest_file = guest_file
        self._socket = root / "run" / "gpupool" / "opengl"
        self._fixed = root / _FIXED.lstrip("/")
        self._shell_file = root / "etc" / "profile.d" / "gpupool-opengl.sh"
        self._vendor_file = root / "etc" / "gpupool" / "10_gpupool.json"
        self._process: subprocess.Popen[bytes] | None = None

    def step(self) -> str:
        """Sees to it that the relay runs and that shells set the variables. What was done, in
        words, or empty. Raises AgentError.
        """
        if self._way == "off":
            return "shells no longer set the variables of OpenGL" if self.uninstall() else ""
        if self._way == "direct" and not self._egl.is_file():
            raise AgentError(
                f"--opengl direct: {EGL} is not in {self._egl.parent}; unpack a guest package that "
                "has it (`gpupool vm package` of this version), or leave the option out",
                NO_RUNTIME,
            )
        if not self._program.is_file():
            return ""  # an older package, or one without
        if self._process is not None and self._process.poll() is None:
            return ""
        self._socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        words = [str(self._program), "serve", "--any-user", "yes", "--parent", str(os.getpid())]
        words += ["--socket", str(self._socket), "--socket", str(self._fixed)]
        self._process = subprocess.Popen(  # noqa: S603 (the package's own)
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "GPUPOOL_GUEST_CONFIG": str(self._guest_file)},
        )
        if self._way == "direct":
            place.write(self._vendor_file, self._vendor_text())
        place.write(self._shell_file, self.shell_text())
        if self._way == "virgl":
            place.remove(self._vendor_file)  # of an agent that was told otherwise
            return f"OpenGL programs find their host at {self._socket}"
        return f"OpenGL programs without a display use {self._egl}, others {self._socket}"

    def shell_text(self) -> str:
        """What login shells set."""
        vendors = f"export __EGL_VENDOR_LIBRARY_FILENAMES={self._vendor_file}:{_MESA}\n"
        return (
            "# gpupool's guest agent wrote this: OpenGL on this machine's vGPU (docs/opengl.md)\n"
            "export GALLIUM_DRIVER=virpipe LIBGL_ALWAYS_SOFTWARE=1\n"
            f"export VTEST_SOCKET_NAME={self._socket}\n"
            + (vendors if self._way == "direct" else "")
        )

    def _vendor_text(self) -> str:
        """What GLVND reads. The whole path: no program's search path has to lead there."""
        about = {"file_format_version": "1.0.0", "ICD": {"library_path": str(self._egl.absolute())}}
        return json.dumps(about, indent=4) + "\n"

    def end(self) -> None:
        """The relay ends; sessions that are under way go on."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def uninstall(self) -> bool:
        """True if it was installed. Raises AgentError."""
        place.remove(self._vendor_file)
        return place.remove(self._shell_file)
