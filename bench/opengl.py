"""OpenGL natively and through gpupool, in one run.

    python -m bench.opengl [--gpu nvidia] [--rounds 5] [--modes native,shm,tcp] [--out report]

Starts a hostd of its own and one process a mode, which take turns within seconds; glmark2
(offscreen, in an X server without a screen) is started anew for each round. What is drawn must be
what native draws. `reference` is virglrenderer's own server, `virgl_test_server`, over a unix
socket; `window` is a virtual machine's window without the machine. Prints Markdown; --out writes
opengl.json and opengl.md as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupool.bench import environment
from gpupool.bench.host import Host, HostError, guest_folder, hostd
from gpupool.bench.opengl_reference import (
    ReferenceError,
    reference_server,
    reference_variables,
    reference_words,
)
from gpupool.bench.opengl_report import NATIVE, Figures, Row, as_json, as_markdown
from gpupool.bench.x_server import x_server

REFERENCE = "reference"
MODES = (NATIVE, REFERENCE, "shm", "window", "tcp", "generated")
# What is not there is left out and named, and no failure.
_OPTIONAL = ("generated", REFERENCE)
SCENES = (
    "build:use-vbo=true",
    "texture:texture-filter=linear",
    "shading:shading=phong",
    "effect2d:kernel=1,1,1,1,1;1,1,1,1,1;1,1,1,1,1;",
    "desktop:effect=shadow:windows=4",
    "buffer:update-fraction=0.5:update-method=map",
)
_WORKS = {
    "draw_read_512": Row("draw and read back 512x512", "frames/s"),
    "draws_100_finish": Row("100 draws and finish", "frames/s"),
    "clear_read_16": Row("clear and read 16x16", "us"),
    "upload_16mib": Row("buffer upload, 16 MiB", "GiB/s", 16 / 1024),
}
# At least: its shaders are compiled in this time, too, and the renderer keeps none on disk.
_SCENE_S = 2.5
_FPS = re.compile(r"FPS: (\d+(?:\.\d+)?)")
_ANSWER_S = 120.0
_CLIENT = (sys.executable, "-m", "gpupool.bench.workloads.opengl_client")


class ModeError(RuntimeError):
    """A mode cannot be measured. The text says why."""


@dataclass(frozen=True)
class Mode:
    """What stands before a program's command line, and its variables."""

    before: tuple[str, ...]
    variables: Mapping[str, str]


class Client:
    """A process that lives through the run (workloads/opengl_client.py)."""

    def __init__(self, mode: Mode, log: Path) -> None:
        """Raises ModeError."""
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 (our own program)
                [*mode.before, *_CLIENT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(mode.variables),
                bufsize=0,
            )
        self.says = self._line()

    def ask(self, work: str, seconds: float) -> dict[str, Any]:
        """A rate and a digest. Raises ModeError."""
        if self._process.stdin is None:
            raise ModeError("a client without input")
        with contextlib.suppress(BrokenPipeError):  # the answer is missing then, and says so
            self._process.stdin.write(f"{work} {seconds}\n".encode())
        return self._line()

    def _line(self) -> dict[str, Any]:
        out = self._process.stdout
        if out is None or not select.select([out], [], [], _ANSWER_S)[0]:
            raise ModeError(f"its client says nothing for {_ANSWER_S:g} s")
        text = out.readline()
        if not text:
            said = self._log.read_text(errors="replace").strip().splitlines()
            code = self._process.wait(_ANSWER_S)
            raise ModeError(f"its client ended with {code}: {said[-1] if said else 'no word'}")
        told: dict[str, Any] = json.loads(text)
        return told

    def end(self) -> None:
        """Closes its input, which ends it; kills it should it not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Bench:
    """One run."""

    def __init__(self, figures: Figures, arguments: argparse.Namespace, folder: Path) -> None:
        self.figures = figures
        self._arguments, self._folder = arguments, folder
        self._servers = contextlib.ExitStack()
        self._modes: dict[str, Mode] = {}
        self._clients: dict[str, Client] = {}

    def prepare(self, host: Host) -> None:
        """A client for each mode; modes that cannot be are told."""
        for name in list(self.figures.modes):
            try:
                self._modes[name] = self._mode(name, host)
                self._clients[name] = Client(self._modes[name], self._folder / f"{name}.log")
                self.figures.says[name] = self._clients[name].says
            except ModeError as error:
                self._modes.pop(name, None)
                self.figures.modes.remove(name)
                self.figures.skipped[name] = str(error)
                if name not in _OPTIONAL:
                    self.figures.failed.append(f"{name}: {error}")

    def _mode(self, name: str, host: Host) -> Mode:
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(_root()), *([before] if before else [])])
        variables = {**os.environ, "PYTHONPATH": path}
        nvidia = self._arguments.gpu == "nvidia"
        if name == NATIVE:
            own = (
                ("__GLX_VENDOR_LIBRARY_NAME", "nvidia")
                if nvidia
                else ("LIBGL_ALWAYS_SOFTWARE", "1")
            )
            return Mode((), {**variables, own[0]: own[1]})
        if name == REFERENCE:
            return self._reference(variables)
        variables |= host.environment("shm" if name == "generated" else name)
        if name == "generated":
            library = guest_folder() / "libEGL_gpupool.so"
            if not library.exists():
                raise ModeError(f"{library.name} is not built")
            # Found by the loader in LD_LIBRARY_PATH, as the guest's libcuda is.
            variables["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(guest_folder() / "10_gpupool.json")
            variables["GPUPOOL_OPENGL_WINDOWS"] = "1"
            return Mode((), variables)
        if self._arguments.mesa_vendor:
            variables["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(self._arguments.mesa_vendor)
        run = (sys.executable, "-m", "gpupool.cli", "run", "--opengl", "yes", "--")
        return Mode(run, variables)

    def _reference(self, variables: Mapping[str, str]) -> Mode:
        software = {} if self._arguments.gpu == "nvidia" else {"LIBGL_ALWAYS_SOFTWARE": "1"}
        server = reference_server(self._folder, {**variables, **software})
        try:
            socket = self._servers.enter_context(server)
            vendor = self._arguments.mesa_vendor
            chosen = {"__EGL_VENDOR_LIBRARY_FILENAMES": str(vendor)} if vendor else {}
            return Mode(
                reference_words(socket), reference_variables(socket, {**variables, **chosen})
            )
        except ReferenceError as error:
            raise ModeError(str(error)) from error

    def works(self) -> None:
        """Rows of the long-living clients."""
        for work, row in _WORKS.items():
            if self._arguments.only and work not in self._arguments.only:
                continue
            self.figures.rows.append(row)
            for mode in self._turns():
                try:
                    told = self._clients[mode].ask(work, self._arguments.seconds)
                except ModeError as error:
                    self._fail(mode, f"{row.name}: {error}")
                    continue
                row.rates.setdefault(mode, []).append(told["rate"])
                if row.digests.setdefault(mode, told["digest"]) != told["digest"]:
                    self._fail(mode, f"{row.name}: its result changes from round to round")

    def glmark(self, display: str) -> None:
        """A row for each scene; processes are started anew."""
        # The generated path has no compatibility profile, which glmark2 itself asks for.
        wanted = "glmark2-es2" if "generated" in self._clients else "glmark2"
        program = shutil.which(wanted) or ""
        for scene in SCENES:
            if self._arguments.only and "glmark2" not in self._arguments.only:
                return
            name = scene.partition(":")[0]
            row = Row(f"{wanted} {name}", "frames/s")
            self.figures.rows.append(row)
            if not program or not display:
                row.skipped = f"{'Xvfb' if program else wanted} is not installed"
                continue
            for mode in self._turns():
                try:
                    rate = self._scene(mode, scene, program, display)
                except ModeError as error:
                    self._fail(mode, f"{row.name}: {error}")
                    continue
                row.rates.setdefault(mode, []).append(rate)

    def _turns(self) -> Iterator[str]:
        """Modes, each round beginning with another one."""
        for number in range(self._arguments.rounds):
            modes = list(self._clients)
            turn = number % len(modes) if modes else 0
            yield from modes[turn:] + modes[:turn]

    def _scene(self, mode: str, scene: str, program: str, display: str) -> float:
        how = self._modes[mode]
        command = [*how.before, program, "--off-screen", "--size", "800x600"]
        command += [*self._arguments.glmark_options.split(), "-b"]
        done = subprocess.run(  # noqa: S603 (glmark2)
            [*command, f"{scene}:duration={max(_SCENE_S, self._arguments.seconds)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_S,
            env={**how.variables, "DISPLAY": display},
        )
        found = _FPS.search(done.stdout)
        if done.returncode or found is None:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ModeError(f"glmark2 ended with {done.returncode}: {said[-1] if said else ''}")
        return float(found.group(1))

    def _fail(self, mode: str, why: str) -> None:
        text = f"{mode}: {why}"
        if text not in self.figures.failed:
            self.figures.failed.append(text)

    def end(self) -> None:
        """Lets every client leave."""
        for client in self._clients.values():
            client.end()
        self._servers.close()


def _root() -> Path:
    """Where `gpupool` is imported from."""
    import gpupool

    return Path(str(gpupool.__file__)).absolute().parent.parent


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.opengl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--gpu", default="auto", choices=("auto", "nvidia", "software"))
    made.add_argument("--modes", default=",".join(MODES), metavar="M,...", help="%(default)s")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    made.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of one round")
    made.add_argument(
        "--only", type=lambda text: text.split(","), metavar="W,...",
        help=f"of: {', '.join(_WORKS)}, glmark2",
    )  # fmt: skip
    made.add_argument(
        "--mesa-vendor", type=Path, metavar="FILE", help="EGL's vendor file of the guest's Mesa"
    )
    made.add_argument("--glmark-options", default="", metavar="TEXT", help="e.g. --data-path=DIR")
    made.add_argument("--set", action="append", default=[], metavar="K=V", help="of hostd, TOML")
    made.add_argument("--commit", default="", metavar="ID", help="for a checkout without git")
    made.add_argument("--out", type=Path, metavar="FOLDER")
    return made


def main() -> int:
    """1 when something failed or a result was wrong."""
    arguments = parser().parse_args()
    if arguments.gpu == "auto":
        arguments.gpu = "nvidia" if Path("/dev/nvidiactl").exists() else "software"
    modes = arguments.modes.split(",")
    if unknown := set(modes) - set(MODES):
        print(f"unknown mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
        return 2
    figures = Figures(environment.facts(arguments.commit), modes)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpupool-bench-")))
        bench = Bench(figures, arguments, place)
        try:
            host = stack.enter_context(
                hostd(
                    place / "host",
                    arguments.gpu,
                    ("limits.generated_opengl = true", *arguments.set),
                    ("shm", "tcp", *(["window"] if "window" in modes else [])),
                )
            )
            stack.callback(bench.end)
            bench.prepare(host)
            bench.works()
            has_x = shutil.which("Xvfb") is not None
            bench.glmark(stack.enter_context(x_server()) if has_x else "")
        except HostError as error:
            figures.failed.append(str(error))
    text = as_markdown(figures)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "opengl.json").write_text(json.dumps(as_json(figures), indent=1) + "\n")
        (arguments.out / "opengl.md").write_text(text + "\n")
    print(text, flush=True)
    return 1 if figures.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
