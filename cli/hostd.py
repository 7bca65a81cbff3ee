"""`gpupool hostd`: runs the daemon in the foreground."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from gpupool import __version__
from gpupool.hostd import config, private

DESCRIPTION = """\
Runs hostd in the foreground: gives each client program a worker process on this machine's GPUs.
Meant to be started by systemd (docs/install.md). SIGTERM stops it and leaves the workers running;
the next hostd finds them again.
"""
EPILOG = """\
exit codes: 0 stopped; 1 could not start (the reason is on stderr); 2 the configuration is wrong
example:    gpupool hostd --config ./hostd.toml --check
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `gpupool hostd`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default: {config.DEFAULT_PATH} if it exists"
    )
    parser.add_argument(
        "--check", action="store_true", help="check the configuration, say what it is, and leave"
    )
    parser.add_argument(
        "--certificate",
        action="store_true",
        help="print the fingerprint of each tls endpoint's certificate, made if missing, and leave",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="default: log.level of the file",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), help="default: log.format of the file"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="serve only this user, from a folder of theirs, and leave when idle: what `gpupool "
        "run` starts",
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="N",
        help="descriptor that gets `ready` or the reason why not",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs until stopped."""
    settings = None
    try:
        chosen = (
            config.load(arguments.config)
            if arguments.config or not arguments.private
            else config.parse({})
        )
        if arguments.private:
            folder = private.directory()
            private.prepare(folder)
            chosen = config.private(
                chosen,
                folder,
                private.gpu_choice(),
                private.idle_timeout_s(),
                private.sandbox_mode(),
            )
            settings = private.settings(__version__)
    except (config.ConfigError, private.PrivateDirError) as error:
        _tell(arguments.ready_fd, str(error))
        print(f"gpupool hostd: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        _show(chosen)
        return 0
    if arguments.certificate:
        return _certificates(chosen)
    return _serve(arguments, chosen, settings)


def _serve(
    arguments: argparse.Namespace, chosen: config.Config, settings: dict[str, str] | None
) -> int:
    from gpupool.hostd import log
    from gpupool.hostd import main as daemon
    from gpupool.hostd.core.ports import PortError

    chosen = replace(  # the workers' lines, too
        chosen,
        log_level=arguments.log_level or chosen.log_level,
        log_format=arguments.log_format or chosen.log_format,
    )
    log.set_up(chosen.log_level, chosen.log_format, chosen.log_priorities)
    try:
        daemon.serve(chosen, settings, lambda: _tell(arguments.ready_fd, "ready"))
    except (PortError, OSError) as error:
        _tell(arguments.ready_fd, str(error))
        print(f"gpupool hostd: {error}", file=sys.stderr)
        return 1
    return 0


def _tell(ready_fd: int | None, text: str) -> None:
    if ready_fd is not None:
        os.write(ready_fd, text.encode() + b"\n")
        os.close(ready_fd)


def _certificates(chosen: config.Config) -> int:
    from gpupool.hostd.adapters import certificate
    from gpupool.hostd.core.ports import PortError

    found = 0
    try:
        for one in chosen.endpoints:
            if one.certificate is not None and one.key is not None:
                certificate.prepare(one.certificate, one.key, one.endpoint.host)
                print(f"{one.endpoint} {certificate.fingerprint(one.certificate)}")
                print(f"  certificate: {one.certificate}")
                found += 1
    except PortError as error:
        print(f"gpupool hostd: {error}", file=sys.stderr)
        return 1
    if not found:
        print("gpupool hostd: the configuration has no endpoint tls://", file=sys.stderr)
    return 0 if found else 1


def _show(chosen: config.Config) -> None:
    print(f"gpu            {chosen.gpu}")
    print(f"devices        {', '.join(chosen.devices) or 'all'}")
    print(f"state_dir      {chosen.state_dir}")
    print(f"admin_socket   {chosen.admin_socket}")
    for one in chosen.endpoints:
        transports = ",".join(sorted(kind.word for kind in one.transports))
        print(f"endpoint       {one.endpoint} ({transports}{', token' if one.token_file else ''})")
    print(f"sandbox        {chosen.sandbox.mode}")
    print(f"max_sessions   {chosen.limits.max_sessions}")
    print(f"window         {chosen.limits.window_mib} MiB a session")
