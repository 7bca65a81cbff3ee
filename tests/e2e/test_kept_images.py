"""Code images over a network: each travels once, and nobody notices but by the bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Host
from tests.e2e.observe import wait_for_line
from tests.e2e.proxy import proxy

PROGRAM = """
import os, sys
from tests.guest.test_module import PRELUDE
exec(PRELUDE)
seeds, value = [int(seed) for seed in os.environ["SEEDS"].split()], int(os.environ["VALUE"])
import random
def image(seed):  # a kernel that adds `value`, in an image of one size that compresses badly
    text = PTX.decode().replace("add.s32 %r2, %r2, %r3;", f"add.s32 %r2, %r2, {value};")
    noise = random.Random(seed).randbytes(400_000).hex()
    return f"// {noise}\\n".encode() + text.encode() + b"\\0"
for seed in seeds:
    for load, get in ((load_module, get_function), (load_library, get_kernel)):
        function = get(d, load(d, image(seed)), "fill")
        out = d.alloc(400)
        equal(launch(d, function, (4, 1, 1), (32, 1, 1), fill_parameters(out, 100, 41, 9)), 0)
        equal(d.download(out, 400), struct.pack("<i", 41 + value) * 100)
print("right", flush=True)
sys.stdin.readline()
"""
IMAGE = 800_000  # bytes, and a little more


def kept(host: Host) -> list[Path]:
    """Files of images that are kept, whole ones."""
    return [file for file in host.folder.glob("cache/*/gpupool-images/*") if len(file.name) == 64]


def sent(host: Host, seeds: str, value: int = 1, setting: str = "on", files: int = 0) -> int:
    """Runs the program through a proxy until so many images are kept; the bytes that it sent."""
    with proxy(host.port) as flow:
        client = host.start_client(
            "tcp",
            *(sys.executable, "-c", PROGRAM),
            SEEDS=seeds,
            VALUE=str(value),
            GPUPOOL_KEEP_IMAGES=setting,
            GPUPOOL_ENDPOINT=flow.endpoint,
        )
        wait_for_line(client, "right")
        host.wait_until(lambda: len(kept(host)) >= files, f"{files} images to be kept")
        _, errors = client.communicate("\n", timeout=60)
        assert client.returncode == 0, errors
        return sum(link.up for link in flow.links)


@pytest.fixture
def keeping_host(own_host: Host) -> Host:
    """A host whose tenants have cache folders of their own."""
    if os.geteuid() != 0:
        pytest.skip("not root: images would be kept in this user's home")
    return own_host


def test_an_image_travels_once(keeping_host: Host) -> None:
    assert sent(keeping_host, "1 2", files=2) > 2 * IMAGE
    assert sent(keeping_host, "1 2", files=2) < 100_000
    # Another of the same size is sent, and then kept as well.
    assert IMAGE < sent(keeping_host, "1 2 3", files=3) < 3 * IMAGE
    assert sent(keeping_host, "3 1", files=3) < 100_000
    # The same size and another content: the result is that content's.
    assert sent(keeping_host, "1", value=2, files=4) > IMAGE


def test_a_damaged_image_is_sent_again(keeping_host: Host) -> None:
    sent(keeping_host, "1", files=1)
    (file,) = kept(keeping_host)
    with file.open("r+b") as damaged:
        damaged.seek(500_000)
        damaged.write(b"?")
    assert sent(keeping_host, "1", files=1) > IMAGE
    assert "a kept code image was damaged" in keeping_host.log
    assert sent(keeping_host, "1", files=1) < 100_000


def test_nothing_is_kept_unless_it_is_wanted(keeping_host: Host) -> None:
    for setting in ("", "auto", "off"):  # this machine is no network
        assert sent(keeping_host, "1", setting=setting) > 2 * IMAGE  # twice: module and library
    done = keeping_host.run(
        "shm", sys.executable, "-c", PROGRAM, SEEDS="1", VALUE="1", GPUPOOL_KEEP_IMAGES="on"
    )
    assert done.returncode == 0, done.stderr
    assert kept(keeping_host) == []
