"""`gpupool stop`: ends sessions, or tells hostd to leave."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpupool.cli import admin
from gpupool.cli.parameters import AdminSocket

DESCRIPTION = """\
Ends sessions by their number (`gpupool status`): the worker is told to stop, and the client program
gets CUDA_ERROR_DEVICE_UNAVAILABLE from then on. With --hostd the daemon leaves instead; running
sessions go on.
"""
EPILOG = """\
exit codes: 0 done; 1 no such session, or no hostd, or more than one (name it with --admin-socket)
examples:
  gpupool stop 3 4
  gpupool stop --hostd
"""


def main(
    sessions: Annotated[
        list[int] | None, typer.Argument(metavar="SESSION", help="numbers of sessions to end")
    ] = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="kill the workers instead of asking them")
    ] = False,
    hostd: Annotated[bool, typer.Option("--hostd", help="tell the daemon to leave")] = False,
    admin_socket: AdminSocket = None,
) -> int:
    """Does it."""
    if bool(sessions) == hostd:
        print("gpupool stop: give session numbers, or --hostd", file=sys.stderr)
        return 2
    hosts, problems = admin.ask_all(admin_socket, "status")
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
        if hostd:
            admin.call(path, "stop")
        for session in sessions or []:
            admin.call(path, "end", session=session, kill=kill)
    except admin.AdminError as error:
        print(f"gpupool stop: {error}", file=sys.stderr)
        return 1
    return 0
