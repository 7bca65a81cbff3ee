"""Locks and token files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gpupool.hostd.adapters.listener import Lock, listen, read_token
from gpupool.hostd.core.ports import PortError
from gpupool.hostd.endpoint import VSOCK_ANY, Endpoint


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.try_take()
    assert not second.try_take()
    first.release()
    assert second.try_take()
    second.release()


def test_a_token_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert len(token) == 48
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(path) == token
    assert read_token(path, fresh=True) != token


@pytest.mark.parametrize("content", ["", "short", "x" * 65, "x" * 500])
def test_a_token_of_a_wrong_length(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(PortError, match="allowed are 16 to 64"):
        read_token(path)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 32)
    path.chmod(0o640)
    with pytest.raises(PortError, match="mode 0640: others can read it"):
        read_token(path)


def test_a_token_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x" * 32)
    (tmp_path / "token").symlink_to(tmp_path / "real")
    with pytest.raises(PortError, match="token file"):
        read_token(tmp_path / "token")


def test_a_file_where_the_socket_should_be(short_path: Path) -> None:
    (short_path / "sock").touch()
    with pytest.raises(PortError, match="is no socket"):
        listen(Endpoint(path=str(short_path / "sock")), 0o600)
    assert (short_path / "sock").exists()


@pytest.mark.skipif(not Path("/dev/vsock").exists(), reason="this kernel has no vsock")
def test_a_vsock_port_has_one_listener() -> None:
    with listen(Endpoint(cid=VSOCK_ANY, port=49177), 0) as listener:
        assert listener.getsockname() == (VSOCK_ANY, 49177)
        with pytest.raises(PortError, match=r"cannot listen at vsock://any:49177"):
            listen(Endpoint(cid=VSOCK_ANY, port=49177), 0)


def test_a_tcp_address_that_is_not_ours() -> None:
    with pytest.raises(PortError, match=r"cannot listen at tcp://192\.0\.2\.1:1"):
        listen(Endpoint(host="192.0.2.1", port=1), 0)
