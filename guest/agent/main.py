"""Start, options, and the loop that keeps guest.toml as the host wants it."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path

from gpupool.guest.agent import place
from gpupool.guest.agent.channel import HOST, Channel
from gpupool.guest.agent.failure import DRIVER_PRESENT, NO_RUNTIME, NOT_ALLOWED, AgentError
from gpupool.guest.agent.health import probe
from gpupool.guest.agent.log import Log
from gpupool.guest.agent.opengl import WAYS, OpenGl
from gpupool.guest.agent.runtime import Runtime
from gpupool.guest.agent.terms import Terms
from gpupool.guest.agent.window import SOCKET, Window, is_handed_out

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 60.0
_REFRESH_S = 60.0  # how soon a change at the host is seen
PERMANENT = (NO_RUNTIME, NOT_ALLOWED, DRIVER_PRESENT)  # trying again changes nothing

_HELP = """\
Makes the programs of this virtual machine find the vGPU that its host gives it:
puts gpupool's libcuda.so.1 where the dynamic linker looks, asks the host over vsock
what this machine has, writes /etc/gpupool/guest.toml, and tells the host whether a
program gets its vGPU. Runs on as a service and follows changes at the host."""

_EPILOG = """\
exit codes:
  0   done (--once, --uninstall), or ended by SIGTERM
  2   wrong options
  69  the host cannot be reached: no vsock device, no hostd, or no vGPU for this domain
  72  libcuda.so.1 is not where --lib says, or programs find another one first; or --opengl
      direct, and libEGL_gpupool.so is not there
  74  all is in place, and a program still gets no vGPU; the text says why
  76  the host refuses, or says something that this version does not understand
  77  files below /etc cannot be written: run it as root
  78  a real NVIDIA driver is installed; --force goes on

Without --once only 2, 72, 77 and 78 end it: the rest is tried again, after 1 second, then
2, 4, and so on up to a minute; each trouble is said once.
"""


class Agent:
    """One agent; `step` is everything that it does."""

    def __init__(
        self,
        channel: Channel,
        runtime: Runtime,
        opengl: OpenGl,
        guest_file: Path,
        log: Log,
        force: bool,
        window: Window | Path | None,
    ) -> None:
        """`window`: what hands it out; a path: where another agent may."""
        self._window = window
        self._channel = channel
        self._runtime = runtime
        self._opengl = opengl
        self._guest_file = guest_file
        self._log = log
        self._force = force
        self._known: Terms | None = None
        self._healthy = False

    def step(self) -> None:
        """Brings this machine to what the host says. Raises AgentError."""
        if self._known is None and self._runtime.install(self._force):
            self._log.info(f"programs find libcuda.so.1 in {self._runtime.folder}")
        terms = Terms.parse(self._channel.ask({"method": "terms"}))
        if place.write(self._guest_file, terms.guest_file(self._window_socket(terms))):
            self._log.info(f"wrote {self._guest_file}: {terms.endpoint}")
        if done := self._opengl.step():
            self._log.info(done)
        if terms != self._known:
            vgpus = "; ".join(str(one) for one in terms.vgpus) or "none"
            self._log.info(f"host {terms.version}, vGPUs: {vgpus}")
            self._healthy = False
        self._known = terms
        if not self._healthy:
            self._tell_health()

    def _window_socket(self, terms: Terms) -> str:
        """For guest.toml."""
        if isinstance(self._window, Window):
            return self._window.follow(terms.window_bytes)
        known = self._window is not None and terms.window_bytes and is_handed_out(self._window)
        return str(self._window) if known else ""

    def _tell_health(self) -> None:
        try:
            count = probe(self._guest_file)
        except AgentError as error:
            detail = str(error)[:200]
            self._channel.ask({"method": "health", "state": "failed", "detail": detail})
            raise
        self._healthy = True
        problem = self._window.problem if isinstance(self._window, Window) else ""
        detail = f"{count} vGPUs" + (f"; {problem}"[:150] if problem else "")
        self._channel.ask({"method": "health", "state": "ready", "detail": detail})
        self._log.info(f"ready: programs see {count} vGPUs")


def main(arguments: list[str] | None = None) -> int:
    """The command. The exit code is in --help."""
    options = _parser().parse_args(arguments)
    log = Log()
    runtime = Runtime(options.lib)
    opengl = OpenGl(options.lib, options.config, way=options.opengl)
    try:
        if options.uninstall:
            return _uninstall(runtime, opengl, options.config, log)
        window = _window(options, log)
        try:
            config = options.config
            agent = Agent(options.channel, runtime, opengl, config, log, options.force, window)
            return _run(agent, log, options.wait if options.once else None)
        finally:
            if isinstance(window, Window):
                window.end()
    except AgentError as error:
        log.error(str(error))
        return error.code
    finally:
        opengl.end()


def _window(options: argparse.Namespace, log: Log) -> Window | Path | None:
    """What `Agent` is to do about it. With --once nobody would be there to hand it out."""
    if options.no_window:
        return None
    path: Path = options.window_socket
    return path if options.once else Window(log, path, options.window)


def _run(agent: Agent, log: Log, wait_s: float | None) -> int:
    """Steps until SIGTERM; with `wait_s`, until one has succeeded. Raises AgentError."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    start_s = time.monotonic()
    delay_s = _FIRST_DELAY_S
    while not ended.is_set():
        try:
            agent.step()
        except AgentError as error:
            late = wait_s is not None and time.monotonic() - start_s + delay_s > wait_s
            if late or error.code in PERMANENT:
                raise
            log.trouble(str(error))
            ended.wait(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            continue
        log.well()
        if wait_s is not None:
            break
        delay_s = _FIRST_DELAY_S
        ended.wait(_REFRESH_S)
    return 0


def _uninstall(runtime: Runtime, opengl: OpenGl, guest_file: Path, log: Log) -> int:
    """Takes back what `step` has installed; the libraries themselves stay where they are."""
    if runtime.uninstall():
        log.info(f"programs no longer find libcuda.so.1 in {runtime.folder}")
    if opengl.uninstall():
        log.info("shells no longer set the variables of OpenGL")
    if place.remove(guest_file):
        log.info(f"removed {guest_file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpupool-guest-agent",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--once", action="store_true", help="end as soon as a program of this machine gets its vGPU"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="with --once: how long to go on trying (default: 30)",
    )
    parser.add_argument(
        "--lib",
        type=Path,
        default=_default_lib(),
        metavar="FOLDER",
        help="the folder with libcuda.so.1 and libnvidia-ml.so.1 (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/gpupool/guest.toml"),
        metavar="FILE",
        help="the file that programs read (default: %(default)s)",
    )
    parser.add_argument(
        "--channel",
        type=_channel,
        default=HOST,
        metavar="WHERE",
        help="where the host answers: vsock://CID:PORT or unix:/path (default: %(default)s)",
    )
    parser.add_argument(
        "--no-window",
        action="store_true",
        help="do not hand out the window that this machine shares with its host: all data goes "
        "through vsock, where programs of other users of this machine cannot see it",
    )
    parser.add_argument(
        "--window",
        type=Path,
        metavar="FILE",
        help="the window itself (default: the ivshmem device of the size that the host says)",
    )
    parser.add_argument(
        "--window-socket",
        type=Path,
        default=SOCKET,
        metavar="PATH",
        help="where programs get it (default: %(default)s)",
    )
    parser.add_argument(
        "--opengl",
        choices=WAYS,
        default="virgl",
        help="what login shells set for OpenGL: Mesa's driver virpipe (virgl, the default); for "
        "programs without a display gpupool's own EGL, at native speed (direct); or nothing (off)",
    )
    parser.add_argument(
        "--force", action="store_true", help="install beside a real NVIDIA driver, and before it"
    )
    parser.add_argument(
        "--uninstall", action="store_true", help="take back what was installed, and end"
    )
    return parser


def _channel(text: str) -> Channel:
    try:
        return Channel(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _default_lib() -> Path:
    """`lib` beside the zipapp that runs."""
    return Path(sys.argv[0]).resolve().parent / "lib"
