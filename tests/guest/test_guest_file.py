"""guest.toml, as the guest runtime reads it where the environment names no endpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Host

CU_INIT = 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))'


def ask(host: Host, file: Path, program: str = CU_INIT, **variables: str) -> tuple[str, str]:
    """What a program prints that has nothing but this file; its output and its errors."""
    unset = {"GPUPOOL_ENDPOINT": "", "GPUPOOL_TRANSPORT": "", "GPUPOOL_GUEST_CONFIG": str(file)}
    client = host.start_client("shm", sys.executable, "-c", program, **(unset | variables))
    output, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors
    return output.strip(), errors


def write(folder: Path, text: str) -> Path:
    """A file with this text."""
    file = folder / "guest.toml"
    file.write_text(text)
    return file


def test_the_endpoint_is_dialled(host: Host, tmp_path: Path) -> None:
    text = f"""# written by a test

endpoint = "unix:{host.folder}/hostd.sock"  # the host
  transport="shm"
window_socket\t= "/run/gpupool/window.sock"
"""
    file = write(tmp_path, text)
    assert ask(host, file) == ("0", "")
    counted = ask(host, file, "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())")
    assert counted == ("1", "")


def test_the_last_line_needs_no_end(host: Host, tmp_path: Path) -> None:
    assert ask(host, write(tmp_path, f'endpoint = "unix:{host.folder}/hostd.sock"'))[0] == "0"


def test_the_environment_comes_first(host: Host, tmp_path: Path) -> None:
    """The file is not even read."""
    file = write(tmp_path, "nonsense")
    assert ask(host, file, GPUPOOL_ENDPOINT=f"unix:{host.folder}/hostd.sock") == ("0", "")


def test_a_transport_of_the_environment_comes_first(host: Host, tmp_path: Path) -> None:
    file = write(tmp_path, f'endpoint = "unix:{host.folder}/hostd.sock"\ntransport = "vsock"\n')
    code, errors = ask(host, file)
    assert code == "100"
    assert "offers shm" in errors
    assert ask(host, file, GPUPOOL_TRANSPORT="shm") == ("0", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "endpoint is missing"),
        ('transport = "shm"\n', "endpoint is missing"),
        ("endpoint\n", "line 1 is not key"),
        ("endpoint =\n", "line 1 is not key"),
        ('= "unix:/x"\n', "line 1 "),
        ("endpoint = unix:/x\n", "line 1 is not key"),
        ('endpoint = "unix:/x\n', "line 1 is not key"),
        ('endpoint = ""\n', "line 1 is not key"),
        ('endpoint = "unix:/x" more\n', "line 1 is not key"),
        ('endpoint = "unix:\\u0041"\n', "line 1 is not key"),
        ('endpoint = "unix:/x\0y"\n', "line 1 is not key"),
        ('endpoint = "unix:/x"\r\n', "line 1 is not key"),
        ('\n# one\nendpiont = "unix:/x"\n', "line 3 has an unknown key"),
        ('endpoint = "unix:/x"\nendpoint = "unix:/y"\n', "line 2 repeats a key"),
        ("[endpoint]\n", "line 1 is not key"),
        ("# " + "x" * 5000, "longer than 4096 bytes"),
        ('endpoint = "serial:/dev/ttyS0"\n', "endpoint in"),
        ('endpoint = "vsock://2"\n', "endpoint in"),
        ("\xff\xfe\n", "line 1 is not key"),
    ],
)
def test_what_cannot_be_understood_is_named_once(
    host: Host, tmp_path: Path, text: str, words: str
) -> None:
    file = write(tmp_path, text)
    code, errors = ask(host, file, f"{CU_INIT}\n{CU_INIT}")
    assert code.split() == ["100", "100"]
    assert words in errors
    assert str(file) in errors
    assert errors.count("\n") == 1, errors


def test_a_named_file_must_be_there(host: Host, tmp_path: Path) -> None:
    code, errors = ask(host, tmp_path / "guest.toml")
    assert code == "100"
    assert "guest.toml: No such file" in errors


def test_a_pipe_keeps_nobody_waiting(host: Host, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "guest.toml")
    code, errors = ask(host, tmp_path / "guest.toml")
    assert code == "100"
    assert "is no regular file" in errors


def test_programs_that_never_call_cuda_never_read_it(host: Host, tmp_path: Path) -> None:
    assert ask(
        host, write(tmp_path, "nonsense"), 'import ctypes; ctypes.CDLL("libcuda.so.1"); print(1)'
    ) == ("1", "")
