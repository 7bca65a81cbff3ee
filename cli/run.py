"""`gpupool run`: one program on a vGPU.

Writes nothing of its own to stdout, and to stderr only when it fails itself. The program keeps our
terminal, process group and descriptors; signals reach it once; its exit code is ours.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gpupool.cli import opengl
from gpupool.hostd.adapters import native_files
from gpupool.hostd.endpoint import Endpoint

_TRANSPORTS = ("shm", "tls", "tcp", "vsock", "window")
_NO_VSOCK_HERE = (
    "transport vsock was asked for, but hostd was found on this machine, at a unix socket; inside "
    "a virtual machine name its host's endpoint with --endpoint vsock://2:port"
)
DESCRIPTION = """\
Runs CMD with gpupool's libcuda.so.1 first on its library path. CMD needs no change and no access to
/dev/nvidia*.

Where its GPU comes from, the first that applies:
  1. --controller: the node on which that controller has the vGPU
  2. --endpoint, or GPUPOOL_ENDPOINT
  3. the system's hostd at /run/gpupool/hostd.sock
  4. a hostd of this user, started if there is none, joined by later runs; it leaves when idle
"""
EPILOG = """\
exit codes:
  CMD's own exit code; 128+N if signal N ended it
  125  gpupool itself failed (the reason is on stderr)
  126  CMD cannot be executed
  127  CMD was not found

SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 and SIGWINCH are passed on to CMD. If gpupool run
is killed (SIGKILL), so is CMD.

examples:
  gpupool run -- python train.py
  gpupool run --compute 50 --memory 10G -- ./simulation --steps 1000
  gpupool run --compute 25 --policy hard --wait 600 -- python train.py
  gpupool run --vgpu trainer -- python train.py
  gpupool run --controller https://gpupool.example.org --vgpu trainer -- python train.py
  gpupool run --endpoint tls://gpu7:9177 --token-file ~/.gpupool-token \\
              --tls-fingerprint 3f2a... -- python infer.py
  gpupool run --profile -- python train.py       which calls waited, and a trace of all of them
  gpupool run --print-env            the variables that would be set, for a shell:
                                     eval "$(gpupool run --print-env)"
"""

TLS_CA = "who may sign the host's certificate (GPUPOOL_TLS_CA; default: this system's CAs)"
TLS_FINGERPRINT = (
    "the host's certificate itself (GPUPOOL_TLS_FINGERPRINT); `gpupool hostd --certificate` on the "
    "host prints it"
)
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_SYSTEM_SOCKET = "/run/gpupool/hostd.sock"
_TRACE = "gpupool-trace.json"
_SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel, e.g. by the terminal
_PR_SET_PDEATHSIG = 1
_MOST_WAIT_S = 7 * 86400
_MEMORY = re.compile(r"([0-9]+)\s*(|M|MiB|G|GiB)")


class RunError(RuntimeError):
    """gpupool cannot run the program. The text says why and what to do."""


def compute_percent(text: str) -> int:
    """1 to 100. For argparse."""
    number = int(text.removesuffix("%")) if text.removesuffix("%").isdecimal() else 0
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is a percentage of one GPU from 1 to 100"
        )
    return number


def memory_mib(text: str) -> int:
    """MiB, or with a unit: 512, 512M, 10G. For argparse."""
    match = _MEMORY.fullmatch(text)
    number = int(match[1]) * (1024 if match[2].startswith("G") else 1) if match else 0
    if not 1 <= number <= 1 << 24:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is an amount of GPU memory in MiB, or like 512M or 10G"
        )
    return number


def wait_s(text: str) -> int:
    """Seconds, 0 to a week. For argparse."""
    if not text.isdecimal() or int(text) > _MOST_WAIT_S:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is a whole number of seconds up to {_MOST_WAIT_S}"
        )
    return int(text)


def endpoint(text: str) -> Endpoint | str:
    """unix:/path, tls://host:port and the like. For argparse."""
    if text.startswith("rdma://"):  # no endpoint of hostd's: `main` puts a relay in its place
        return text
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def trace_path(text: str) -> Path:
    """The FILE of --profile. For argparse."""
    if not text.endswith(".json"):
        # `gpupool run --profile CMD` without the `--` would take CMD for FILE.
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is a file name that ends in .json; write -- before CMD"
        )
    return Path(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `gpupool run`."""
    parser.add_argument(
        "--compute", type=compute_percent, metavar="P", help="compute share in percent of one GPU"
    )
    parser.add_argument(
        "--memory", type=memory_mib, metavar="M", help="GPU memory quota in MiB, or like 512M, 10G"
    )
    parser.add_argument(
        "--policy",
        choices=("elastic", "hard"),
        help="elastic (default): the share, and more while others leave it idle; hard: never more",
    )
    parser.add_argument(
        "--vgpu",
        metavar="NAME",
        help="use this vGPU of the host (`gpupool vgpu list` there); several, each on another GPU, "
        "with commas between: as many devices",
    )
    parser.add_argument(
        "--wait",
        type=wait_s,
        metavar="SECONDS",
        help="wait so long when no GPU has room (default: do not wait)",
    )
    parser.add_argument(
        "--transport",
        choices=_TRANSPORTS,
        help="use this one or fail (default: the best that works)",
    )
    parser.add_argument(
        "--endpoint",
        type=endpoint,
        metavar="E",
        help="unix:/path/to/socket, tls://host:port, tcp://host:port or "
        "vsock://2:port; "
        "rdma://host:port goes through UCX (docs/rdma.md)",
    )
    parser.add_argument(
        "--controller",
        metavar="URL",
        help="dial the node that this controller names for --vgpu; its token is the one in "
        "cli.toml (docs/cli.md)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="token for the endpoint (GPUPOOL_TOKEN_FILE)",
    )
    add_tls_arguments(parser)
    parser.add_argument(
        "--profile",
        nargs="?",
        const=_TRACE,
        type=trace_path,
        metavar="FILE.json",
        help="time every CUDA call: a table on stderr when CMD has ended, and a trace for "
        f"chrome://tracing in FILE.json (default: {_TRACE} here)",
    )
    parser.add_argument(
        "--json", action="store_true", help="with --profile: JSON on stderr, not a table"
    )
    parser.add_argument(
        "--opengl",
        choices=opengl.CHOICES,
        default="auto",
        help="OpenGL of CMD on the vGPU, too: where this machine's Mesa can (auto, the default), "
        "or the reason why not (yes); without a display at native speed (direct); or not at all "
        "(docs/opengl.md)",
    )
    parser.add_argument(
        "--print-env",
        action="store_true",
        help="print shell commands that set the variables; run nothing",
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- CMD", help="the program and its arguments"
    )


def add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    """What a host at tls:// is held to."""
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help=TLS_CA)
    parser.add_argument("--tls-fingerprint", metavar="SHA256", help=TLS_FINGERPRINT)


def tls_variables(ca: Path | None, fingerprint: str | None) -> dict[str, str]:
    """These as variables."""
    variables = {}
    if ca is not None:
        variables["GPUPOOL_TLS_CA"] = str(ca.absolute())
    if fingerprint is not None:
        variables["GPUPOOL_TLS_FINGERPRINT"] = fingerprint
    return variables


def main(arguments: argparse.Namespace) -> int:
    """The program's exit code, or 125 to 127."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if bool(words) == arguments.print_env:
        print(
            "gpupool run: give a program after `--` (or --print-env without one); see --help",
            file=sys.stderr,
        )
        return 2
    if arguments.json and arguments.profile is None:
        print("gpupool run: --json belongs to --profile; see --help", file=sys.stderr)
        return 2
    if arguments.print_env and arguments.profile is not None:
        print("gpupool run: --profile needs a program, after `--`; see --help", file=sys.stderr)
        return 2
    if arguments.controller is not None:
        if arguments.vgpu is None or arguments.endpoint is not None:
            text = "--controller needs --vgpu, and no --endpoint; see --help"
            print(f"gpupool run: {text}", file=sys.stderr)
            return 2
        return _by_controller(words, arguments)
    if isinstance(arguments.endpoint, str):
        return _over_rdma(words, arguments)
    return _run(words, arguments)


def _by_controller(words: list[str], arguments: argparse.Namespace) -> int:
    """The same at the endpoint that the controller names."""
    from gpupool.cli import places
    from gpupool.cli.backend import BackendError

    try:
        arguments.endpoint = Endpoint.parse(places.endpoint(arguments.controller, arguments.vgpu))
    except (BackendError, ValueError) as error:
        print(f"gpupool run: {error}", file=sys.stderr)
        return FAILED
    return _run(words, arguments)


def _over_rdma(words: list[str], arguments: argparse.Namespace) -> int:
    """The same with a relay in between, for as long as the program runs."""
    from gpupool.cli import rdma

    if arguments.print_env:
        print("gpupool run: an rdma:// endpoint needs a program; see docs/rdma.md", file=sys.stderr)
        return 2
    try:
        relay = rdma.Relay(arguments.endpoint)
    except rdma.RelayError as error:
        print(f"gpupool run: {error}", file=sys.stderr)
        return FAILED
    with relay:
        arguments.endpoint = relay.endpoint
        return _run(words, arguments)


def _run(words: list[str], arguments: argparse.Namespace) -> int:
    try:
        variables = environment(arguments, os.environ)
    except RunError as error:
        print(f"gpupool run: {error}", file=sys.stderr)
        return FAILED
    if arguments.print_env:
        return _print(variables)
    try:
        wanted, private = opengl.wanted(arguments.opengl)
        own = opengl.direct() if arguments.opengl == "direct" else {}
        if not wanted:
            return _go(words, variables | own, arguments)
        with opengl.Relay({**os.environ, **variables}, arguments.opengl, private=private) as relay:
            variables |= relay.variables(os.environ) | own
            return _go(relay.words(words), variables, arguments)
    except opengl.OpenGlError as error:
        print(f"gpupool run: --opengl: {error}", file=sys.stderr)
        return FAILED


def _go(words: list[str], variables: Mapping[str, str], arguments: argparse.Namespace) -> int:
    if arguments.profile is None:
        return execute(words, {**os.environ, **variables})
    return _profiled(words, variables, arguments)


def _profiled(words: list[str], variables: Mapping[str, str], arguments: argparse.Namespace) -> int:
    from gpupool.cli import profile

    try:
        profiling = profile.Profiling(arguments.profile, arguments.json)
    except OSError as error:
        print(f"gpupool run: --profile {arguments.profile}: {error.strerror}", file=sys.stderr)
        return FAILED
    code = execute(words, {**os.environ, **variables, **profiling.variables})
    profiling.finish()
    return code


def environment(arguments: argparse.Namespace, given: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for the program.

    Starts or joins a private hostd where needed. Raises RunError.
    """
    native = native_files.locate(given)
    if native.guest_dir is None:
        raise RunError(
            f"the guest library libcuda.so.1 was not found in {native.root}; run `gpupool doctor`"
        )
    variables = {
        "LD_LIBRARY_PATH": _library_path(native.guest_dir, given.get("LD_LIBRARY_PATH", ""))
    }
    transport = arguments.transport or given.get("GPUPOOL_TRANSPORT", "")
    if transport not in ("", *_TRANSPORTS):
        raise RunError(
            f"GPUPOOL_TRANSPORT is {transport!r}; this version has shm, tls, tcp, vsock and window"
        )
    if arguments.transport:
        variables["GPUPOOL_TRANSPORT"] = transport
    if arguments.compute is not None:
        variables["GPUPOOL_COMPUTE_PERCENT"] = str(arguments.compute)
    if arguments.memory is not None:
        variables["GPUPOOL_MEMORY_MIB"] = str(arguments.memory)
    variables |= _vgpu_variables(arguments, given)
    if arguments.token_file is not None:
        variables["GPUPOOL_TOKEN_FILE"] = str(arguments.token_file.absolute())
    variables |= tls_variables(arguments.tls_ca, arguments.tls_fingerprint)
    if arguments.endpoint is not None:
        return {**variables, "GPUPOOL_ENDPOINT": str(arguments.endpoint)}
    if given.get("GPUPOOL_ENDPOINT"):
        return variables
    return {**variables, **_local_endpoint(transport)}


def _vgpu_variables(arguments: argparse.Namespace, given: Mapping[str, str]) -> dict[str, str]:
    """Which vGPU, and how long to wait for it."""
    variables = {}
    if arguments.policy is not None:
        variables["GPUPOOL_POLICY"] = arguments.policy
    if arguments.wait:
        variables["GPUPOOL_WAIT_S"] = str(arguments.wait)
    asks = any(given.get(name) for name in ("GPUPOOL_COMPUTE_PERCENT", "GPUPOOL_MEMORY_MIB"))
    asks = asks or arguments.compute is not None or arguments.memory is not None
    if arguments.vgpu is not None:
        variables["GPUPOOL_VGPU"] = arguments.vgpu
    elif asks and given.get("GPUPOOL_VGPU", "~").startswith("~"):
        # One vGPU for all processes of CMD, not one for each.
        variables["GPUPOOL_VGPU"] = f"~{os.urandom(16).hex()}"
    return variables


def _library_path(guest_dir: Path, before: str) -> str:
    # An empty part would mean the current folder: none is added.
    return f"{guest_dir}:{before}" if before else str(guest_dir)


def _local_endpoint(transport: str) -> dict[str, str]:
    """The system's hostd if it answers, else this user's own."""
    from gpupool.cli import private_hostd

    if _answers(_SYSTEM_SOCKET):
        if transport in ("tcp", "tls"):
            raise RunError(
                f"transport {transport} was asked for, but the system's hostd was found at a unix "
                f"socket, which offers shm; name its {transport.upper()} endpoint with --endpoint "
                f"{transport}://host:port and --token-file"
            )
        if transport in ("vsock", "window"):
            raise RunError(_NO_VSOCK_HERE)
        return {"GPUPOOL_ENDPOINT": f"unix:{_SYSTEM_SOCKET}"}
    try:
        if transport in ("vsock", "window"):
            raise RunError(_NO_VSOCK_HERE)
        one = private_hostd.join().endpoint(transport or "shm")
    except private_hostd.StartError as error:
        raise RunError(str(error)) from error
    chosen = {
        "GPUPOOL_ENDPOINT": one["endpoint"],
        "GPUPOOL_TOKEN_FILE": one["token_file"],
        "GPUPOOL_TLS_FINGERPRINT": one["fingerprint"],
    }
    return {name: value for name, value in chosen.items() if value}


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _print(variables: Mapping[str, str]) -> int:
    import shlex

    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def execute(words: list[str], variables: Mapping[str, str]) -> int:
    """Runs the program to its end and passes signals on. Its exit code, 128+N for signal N."""
    # A signal that our parent had ignored (nohup) stays ignored, for us and for the program.
    forwarded = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    waited_for = forwarded | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    parent = os.getpid()

    def prepare_child() -> None:
        _die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        child = subprocess.Popen(  # noqa: S603 (running what the user names is the point)
            words, env=dict(variables), close_fds=False, preexec_fn=prepare_child
        )
    except FileNotFoundError as error:
        print(f"gpupool run: {words[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"gpupool run: {words[0]}: {error.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE
    while child.poll() is None:
        arrived = signal.sigwaitinfo(
            waited_for
        )  # SIGCHLD is among them: this ends when the program does
        if arrived.si_signo != signal.SIGCHLD and not _had_it(arrived, child.pid):
            child.send_signal(arrived.si_signo)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _had_it(arrived: signal.struct_siginfo, child: int) -> bool:
    """True when the program got this signal without us: the terminal signals a whole group; or it
    sent it itself.
    """
    if arrived.si_code == _SI_KERNEL:
        try:
            return os.getpgid(child) == os.getpgrp()
        except ProcessLookupError:
            return True
    return arrived.si_pid == child


def _die_with_parent(parent: int) -> None:
    """In the child before exec: SIGKILL when gpupool run is killed.

    Set for CMD itself, not for what it starts.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(FAILED)
