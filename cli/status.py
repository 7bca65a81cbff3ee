"""`gpupool status`: the running hostd and its sessions."""

from __future__ import annotations

import json
import sys
from typing import Any

from gpupool.cli import admin, table
from gpupool.cli.parameters import AdminSocket, Json

DESCRIPTION = """\
Shows every hostd that is reachable (the system's and this user's own) and its sessions: one line
for each client program, with the transport it uses and the worker process that serves it.
"""
EPILOG = """\
exit codes: 0 a hostd answered; 1 none did
examples:
  gpupool status
  gpupool status --json | jq '.sessions[] | {id, program, usage}'
"""

_HEADER = (
    *("SESSION", "PROGRAM", "KIND", "PID", "TRANSPORT", "ENDPOINT", "GPUS"),
    *("COMPUTE", "MEMORY", "SINCE", "WORKER", "STATE"),
)


def main(as_json: Json = False, admin_socket: AdminSocket = None) -> int:
    """Prints it."""
    hosts, problems = admin.ask_all(admin_socket, "status")
    if as_json:
        sessions = [
            {**session, "admin_socket": host["admin_socket"]}
            for host in hosts
            for session in host.pop("sessions")
        ]
        print(json.dumps({"hosts": hosts, "sessions": sessions, "problems": problems}, indent=2))
    else:
        for host in hosts:
            _show(host)
        if not hosts and not problems:
            print(
                "no hostd is running (`gpupool run` starts one for you; docs/install.md for the "
                "system's)"
            )
    for line in problems:
        print(f"gpupool status: {line}", file=sys.stderr)
    return 0 if hosts else 1


def _show(host: dict[str, Any]) -> None:
    kind = "this user's hostd" if host["private"] else "hostd"
    print(
        f"{kind} {host['version']}, pid {host['pid']}, {host['gpus']} "
        f"GPU{'s' if host['gpus'] != 1 else ''}"
    )
    for one in host["endpoints"]:
        print(f"  endpoint {one['endpoint']} ({', '.join(one['transports'])})")
    if waiting := host["workers_waiting"]:
        print(f"  {waiting} worker{'s' if waiting != 1 else ''} waiting for the next program")
    if link := host.get("controller"):
        state = (
            "connected" if link["connected"] else f"not connected: {link['problem'] or 'not yet'}"
        )
        print(f"  controller {link['url']}, as node {link['node']} ({state})")
        if link.get("draining"):  # an older hostd does not say
            print("  drained by its controller: no new programs")
        for vgpu, why in link["not_done"].items():
            print(f"  controller's vGPU {vgpu} is not here: {why}")
    for vm in host.get("vms", []):  # an older hostd has none
        vgpus, sessions = ", ".join(vm["vgpus"]) or "none", len(vm["sessions"])
        print(
            f"  virtual machine {vm['name'] or vm['uuid']} ({vm['state']}): vGPU {vgpus}, "
            f"{sessions} session{'s' if sessions != 1 else ''}, agent {vm['health']}"
        )
    for note in host["notes"]:
        print(f"  note: {note}")
    rows = [
        [
            session["id"],
            session["program"] or "?",
            session.get("kind", "cuda"),  # an older hostd has no other
            session["pid"],
            session["transport"],
            session["endpoint"],
            len(session["devices"]),
            f"{session['compute_percent']}%" if session["compute_percent"] else "rest",
            f"{session['memory_mib']} MiB" if session["memory_mib"] else "all",
            session["since"],
            session["worker_pid"],
            session["state"],
        ]
        for session in host["sessions"]
    ]
    if rows:
        table.show(_HEADER, rows)
    else:
        print("  no sessions")
