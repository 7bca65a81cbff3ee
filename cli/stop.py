"""`gpupool stop`: ends sessions, or tells hostd to leave."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpupool.cli import admin

DESCRIPTION = """\
Ends sessions by their number (`gpupool status`): the worker is told to stop, and the client program
gets CUDA_ERROR_DEVICE_UNAVAILABLE from then on. With --hostd the daemon leaves instead; running
sessions go on.
"""
EPILOG = "exit codes: 0 done; 1 no such session, or no hostd"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `gpupool stop`."""
    parser.add_argument(
        "sessions", nargs="*", type=int, metavar="SESSION", help="numbers of sessions to end"
    )
    parser.add_argument(
        "--kill", action="store_true", help="kill the workers instead of asking them"
    )
    parser.add_argument("--hostd", action="store_true", help="tell the daemon to leave")
    parser.add_argument(
        "--admin-socket",
        metavar="PATH",
        help="ask the hostd behind this socket (needed if there are two)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Does it."""
    if bool(arguments.sessions) == arguments.hostd:
        print("gpupool stop: give session numbers, or --hostd", file=sys.stderr)
        return 2
    hosts, problems = admin.ask_all(arguments.admin_socket, "status")
    if len(hosts) != 1:
        many = "more than one hostd runs; name one with --admin-socket: " + ", ".join(
            h["admin_socket"] for h in hosts
        )
        print(
            f"gpupool stop: {many if hosts else '; '.join(problems) or 'no hostd is running'}",
            file=sys.stderr,
        )
        return 1
    path = Path(hosts[0]["admin_socket"])
    try:
        if arguments.hostd:
            admin.call(path, "stop")
        for session in arguments.sessions:
            admin.call(path, "end", session=session, kill=arguments.kill)
    except admin.AdminError as error:
        print(f"gpupool stop: {error}", file=sys.stderr)
        return 1
    return 0
