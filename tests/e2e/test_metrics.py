"""What a real session counts, through `gpupool status --json` and over HTTP."""

from __future__ import annotations

import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Host, end_host, free_port, make_host

CLIENT = """
import sys
from ctypes import byref, c_void_p
from tests.guest.cuda import *
from tests.guest.kernels import *
d = Driver()
module = c_void_p()
d.call("cuModuleLoadData", byref(module), PTX)
nothing = get_function(d, module, "nothing")
out = d.alloc(1 << 20)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(500):
    assert launch(d, nothing) == 0
for turn in range(3):
    d.upload(out, bytes(1 << 20))
    d.upload(out, bytes(16))
    d.download(out, 1 << 19)
d.call("cuCtxSynchronize")
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def counted_host() -> Iterator[tuple[Host, int]]:
    """A hostd with a Prometheus endpoint, and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        one = make_host(Path(name), more=f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
        yield one, port
        end_host(one)


def scrape(port: int, name: str) -> dict[str, float]:
    """Samples of one name, by the label `direction` ("" without)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        sample.labels.get("direction", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_a_session_counts(counted_host: tuple[Host, int], transport: str) -> None:
    host, port = counted_host
    client = host.start_client(transport, sys.executable, "-c", CLIENT)
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    (before,) = host.sessions()
    client.stdin.write("\n")
    client.stdin.flush()
    assert client.stdout.readline() == "done\n"

    def grown(name: str) -> int:
        (session,) = host.sessions()
        difference: int = session["counters"][name] - before["counters"][name]
        return difference

    host.wait_until(lambda: grown("launches") == 500, "the launches to be counted")
    host.wait_until(lambda: grown("to_device_bytes") == 3 * ((1 << 20) + 16), "the uploads")
    host.wait_until(lambda: grown("from_device_bytes") == 3 << 19, "the downloads")
    assert grown("messages") >= 500
    assert 0 < grown("busy_ns") < 60 * 10**9
    (session,) = host.sessions()
    assert session["counters"]["answers"] > 0
    assert scrape(port, "gpupool_session_launches_total") == {"": 500}
    copied = scrape(port, "gpupool_session_copied_bytes_total")
    assert copied == {
        "to_device": session["counters"]["to_device_bytes"],
        "from_device": session["counters"]["from_device_bytes"],
    }
    assert scrape(port, "gpupool_session_memory_bytes")[""] >= 1 << 20
    assert scrape(port, "gpupool_sessions") == {"": 1}
    client.communicate("\n", timeout=60)
    host.wait_until(lambda: not host.sessions(), "the session to end")
    assert scrape(port, "gpupool_session_launches_total") == {}
    assert scrape(port, "gpupool_launches_total") == {"": 500}, "what it did stays in the sums"
    assert scrape(port, "gpupool_sessions_ended_total") == {"": 1}
