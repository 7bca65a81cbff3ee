"""The nouns of the command, and which of them must start at once."""

from __future__ import annotations


class ReaderLeftError(Exception):
    """Nobody reads stdout any more. Typer would take a BrokenPipeError for an exit code of 1."""


# noun -> one line of help
COMMANDS = {
    "run": "run a program on a vGPU of this machine or of another host",
    "devices": "show the GPUs that can be given out",
    "status": "show the running hostd and its sessions",
    "smi": "show this guest's vGPUs, memory, load and processes, as nvidia-smi would",
    "cdi": "write a CDI device that gives containers vGPUs",
    "stop": "end sessions, or tell hostd to leave",
    "bench": "time this GPU natively and through gpupool, and compare",
    "doctor": "say what is missing on this machine and what to do about it",
    "vgpu": "make, show, resize and delete vGPUs with a name",
    "gpu": "show the GPUs, and move them between the pools",
    "session": "show and end the client programs that use vGPUs",
    "vm": "give vGPUs to virtual machines of libvirt, and show them",
    "kata": "give vGPUs to Kata containers, and show them",
    "operation": "show and cancel long actions",
    "host": "install hostd on machines, over ssh",
    "network": "set up bridges and rate limits of this machine, for clients that come over TCP",
    "node": "show, cordon and remove the machines that a controller knows",
    "tenant": "make, show and delete tenants, and set their quotas",
    "token": "make, show and revoke the tokens of a controller",
    "events": "show what happened at a controller, as it happens",
    "hostd": "run the daemon that gives GPUs to programs",
    "controller": "run the daemon that knows all nodes, and places vGPUs",
}
GROUPS = {
    "programs and this machine": (
        *("run", "devices", "status", "smi", "cdi", "stop", "bench", "doctor", "network"),
    ),
    "vGPUs and GPUs, of this machine's hostd or of a controller": (
        *("vgpu", "gpu", "session", "vm", "kata", "operation"),
    ),
    "a controller": ("host", "node", "tenant", "token", "events"),
    "daemons": ("hostd", "controller"),
}
# Read by argparse, without Typer: run starts hostd, and both must start at once; ./run bench and
# `python -m gpupool.controller` read the same options.
PLAIN = ("run", "hostd", "controller", "bench")
