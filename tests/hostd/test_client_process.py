"""Real clients: a process and a connection that end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

from gpupool.hostd.adapters.client_process import ClientProcesses, established
from gpupool.hostd.core.ports import Client


def wait_for_end(client: Client, clients: ClientProcesses, end: object = None) -> bool:
    """Whether the end of the client is noticed, after `end()`; within bounds."""

    async def run() -> bool:
        gone = asyncio.Event()
        clients.watch(1, client, gone.set)
        await asyncio.sleep(0.2)
        if callable(end):
            assert not gone.is_set()
            end()
        await asyncio.wait_for(gone.wait(), 20)
        clients.forget(1)
        return True

    return asyncio.run(run())


def test_a_process() -> None:
    clients = ClientProcesses()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        client = clients.identify(process.pid, "")
        assert client.pid == process.pid
        assert client.start_ticks > 0
        assert wait_for_end(client, clients, process.kill)


def test_a_process_that_is_another_by_now() -> None:
    client = Client(os.getpid(), 1)
    assert wait_for_end(client, ClientProcesses())


def test_a_connection() -> None:
    clients = ClientProcesses(look_every_s=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, address = server.accept()
        client = clients.identify(0, f"{address[0]}:{address[1]}")
        assert client.address in established()
        with near:
            assert wait_for_end(client, clients, far.close)


def test_nobody_is_told_after_forget() -> None:
    async def run() -> None:
        clients = ClientProcesses(look_every_s=0.05)
        clients.watch(1, Client(address="192.0.2.1:1"), lambda: fail.append(1))
        clients.watch(2, Client(os.getpid(), 0), lambda: fail.append(2))
        clients.forget(1)
        clients.forget(2)
        await asyncio.sleep(0.3)

    fail: list[int] = []
    asyncio.run(run())
    assert fail == []


def test_addresses_of_both_families(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    head = "  sl  local_address rem_address   st\n"
    table.write_text(
        head + "   0: 0100007F:A91D 0100007F:BBDF 01 x\n   1: 0100007F:A91D 0200007F:0001 08 x\n"
    )
    table6 = tmp_path / "tcp6"
    table6.write_text(
        head + "   0: 00000000000000000000000001000000:1F90 "
        "0000000000000000FFFF00000100007F:0050 01 x\n"
        "   1: 00000000000000000000000001000000:1F90 00000000000000000000000001000000:0051 01 x\n"
    )
    found = established((table, table6, tmp_path / "none"))
    assert found == {"127.0.0.1:48095", "::ffff:127.0.0.1:80", "::1:81"}
