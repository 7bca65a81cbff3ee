"""Many simulated nodes in one process: `python -m bench.simulated_nodes --target 127.0.0.1:9181`.

For `bench.control_plane`, which runs it beside itself: the nodes' own processor time is then not in
the times of whoever asks. Writes a line of JSON about all nodes every half second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpupool.wire.proto import quiet_forks
from gpupool.wire.proto.node import node_api

quiet_forks()

from gpupool.bench.simulated_node import SimulatedNode, cards, channel  # noqa: E402

_NODES_A_CONNECTION = 50


def make(number: int, gpus: int, token: str) -> SimulatedNode:
    """The node of that number, as `bench.control_plane` fills them in."""
    name = f"node-{number:05d}"
    labels = {"zone": f"z{number % 8}"}
    return SimulatedNode(node_api(), name, cards(name, gpus), token, labels)


async def serve(target: str, count: int, gpus: int, token: str) -> None:
    """Until cancelled."""
    nodes = [make(number, gpus, token) for number in range(count)]
    channels = [channel(target) for _ in range(-(-count // _NODES_A_CONNECTION))]
    tasks = [
        asyncio.create_task(one.run([channels[number // _NODES_A_CONNECTION]]))
        for number, one in enumerate(nodes)
    ]
    while not any(task.done() for task in tasks):
        print(json.dumps(summary(nodes)), flush=True)
        await asyncio.sleep(0.5)
    for task in tasks:
        if task.done():
            task.result()


def summary(nodes: Sequence[SimulatedNode]) -> dict[str, float]:
    """All of them together."""
    return {
        "at_s": time.time(),
        "connected": sum(one.connected.is_set() for one in nodes),
        "vgpus": sum(len(one.vgpus) for one in nodes),
        "reports": sum(one.reports for one in nodes),
        "registrations": sum(one.registrations for one in nodes),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with the process that started it."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulated_nodes", description=__doc__)
    parser.add_argument("--target", required=True, help="host:port of nodes.listen")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--token-file", type=Path, required=True)
    asked = parser.parse_args(arguments)
    token = asked.token_file.read_text().strip()
    try:
        asyncio.run(serve(asked.target, asked.nodes, asked.gpus, token))
    except (BrokenPipeError, KeyboardInterrupt):
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
