"""What the guest agent does with the window: finds the device, hands it out, says what is wrong."""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.guest.agent.log import Log
from gpupool.guest.agent.window import NoWindowError, Window, find, is_handed_out

MIB = 1 << 20


def device(folder: Path, name: str, size: int, ids: tuple[str, str] = ("0x1af4", "0x1110")) -> Path:
    """As in /sys/bus/pci/devices."""
    one = folder / name
    one.mkdir()
    (one / "vendor").write_text(ids[0] + "\n")
    (one / "device").write_text(ids[1] + "\n")
    (one / "enable").write_text("0\n")
    (one / "resource2_wc").write_bytes(b"")
    os.truncate(one / "resource2_wc", size)
    return one / "resource2_wc"


def test_the_device_of_that_size(tmp_path: Path) -> None:
    device(tmp_path, "0000:00:01.0", 64 * MIB)
    device(tmp_path, "0000:00:02.0", 128 * MIB, ("0x8086", "0x1110"))
    device(tmp_path, "0000:00:03.0", 128 * MIB, ("0x1af4", "0x1000"))
    wanted = device(tmp_path, "0000:00:04.0", 128 * MIB)
    assert find(128 * MIB, tmp_path) == wanted
    with pytest.raises(NoWindowError, match="no ivshmem device of this machine has the size"):
        find(256 * MIB, tmp_path)
    device(tmp_path, "0000:00:05.0", 128 * MIB)
    with pytest.raises(NoWindowError, match=r"0000:00:04\.0, 0000:00:05\.0 all look like"):
        find(128 * MIB, tmp_path)


def test_a_machine_without_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoWindowError, match="next start"):
            find(MIB, folder)


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    memory = device(tmp_path, "0000:00:04.0", MIB)
    one = Window(Log(), tmp_path / "run" / "window.sock", memory)
    yield one
    one.end()
    assert not (tmp_path / "run" / "window.sock").exists()


def take(path: Path) -> tuple[bytes, list[int]]:
    """As a program does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        data, rights, _, _ = client.recvmsg(64, socket.CMSG_SPACE(4))
        return data, [fd for _, _, raw in rights for fd in array.array("i", raw)]


def test_programs_get_the_descriptor(window: Window, tmp_path: Path) -> None:
    path = window.follow(MIB)
    assert path == str(tmp_path / "run" / "window.sock")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
    assert (tmp_path / "0000:00:04.0" / "enable").read_text() == "1"
    data, (fd,) = take(Path(path))
    assert struct.unpack("<IIQ", data) == (0x574F4457, 0, MIB)
    os.pwrite(fd, b"hello", 4096)
    os.close(fd)
    assert (tmp_path / "0000:00:04.0" / "resource2_wc").read_bytes()[4096:4101] == b"hello"
    assert is_handed_out(Path(path))


def test_it_follows_the_host(
    window: Window, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(window.follow(MIB))
    assert window.follow(0) == ""
    assert take(path) == (b"", [])
    assert not is_handed_out(path)
    for _ in range(3):
        assert window.follow(2 * MIB) == ""
    assert "is not of 2097152 bytes" in window.problem
    assert capsys.readouterr().err.count("no window, all data goes through vsock") == 1
    os.truncate(tmp_path / "0000:00:04.0" / "resource2_wc", 2 * MIB)
    assert window.follow(2 * MIB) == str(path)
    assert window.problem == ""
    data, (fd,) = take(path)
    os.close(fd)
    assert struct.unpack("<IIQ", data)[2] == 2 * MIB


def test_nobody_hands_it_out(tmp_path: Path) -> None:
    assert not is_handed_out(tmp_path / "nothing")
