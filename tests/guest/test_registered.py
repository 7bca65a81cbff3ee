"""cuMemHostRegister: private memory is bookkeeping, shared memory is reached by kernels as well."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ROOT, Host
from tests.guest.test_memory import PRELUDE

SHARED = """
import fcntl
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = c_void_p
libc.mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, ctypes.c_long]
SHARED, PRIVATE, ANONYMOUS = 1, 2, 32
def map_file(fd, size, flags=SHARED, at=0):
    got = libc.mmap(None, size, 3, flags, fd, at)
    assert got != c_void_p(-1).value
    return got
def memfd(size):
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd
def register(p, size, flags=2):
    d.call("cuMemHostRegister_v2", c_void_p(p), c_size_t(size), c_uint(flags))
def device_pointer(p):
    device = c_uint64()
    code = lib.cuMemHostGetDevicePointer_v2(byref(device), c_void_p(p), c_uint(0))
    return device.value if code == 0 else -code
def add_one(p, n):
    d.launch(d.function("add_one"), (n + 255) // 256, 256, c_uint64(p), c_uint(n))
"""


def run(host: Host, transport: str, text: str, **variables: str) -> str:
    """Runs a program on a vGPU."""
    return host.run_python(transport, PRELUDE + SHARED + text, PYTHONPATH=str(ROOT), **variables)


def test_kernels_reach_shared_memory(host: Host) -> None:
    """A memfd, a part of one, and a file of /dev/shm that is closed already."""
    run(host, "shm", """
n = 40000
def check(p, first):
    numbers = (c_uint * n).from_address(p)
    numbers[:] = range(n)
    register(p, 4 * n)
    equal(device_pointer(p), p)
    equal(device_pointer(p + 4), p + 4)
    equal(d.attribute(3, p + 4), p + 4)                # DEVICE_POINTER
    equal(d.attribute(2, p), HOST)
    for turn in range(2):
        add_one(p, n)
        d.synchronize()
    equal(list(numbers), [i + 2 for i in range(n)])
    plain = d.alloc(4 * n)                              # copies go on as before
    d.call("cuMemcpyHtoD_v2", c_uint64(plain), c_void_p(p), c_size_t(4 * n))
    equal(d.download(plain, 4 * n), bytes(numbers))
    d.call("cuMemcpyDtoDAsync_v2", plain, p, 4 * n, None)
    d.call("cuMemHostUnregister", c_void_p(p))
    equal(device_pointer(p), -INVALID_VALUE)
fd = memfd(1 << 20)
p = map_file(fd, 1 << 20)
for turn in range(3):                                   # again and again, at the same address
    check(p, 0)
os.close(fd)
name = f"/dev/shm/gpupool-test-{os.getpid()}"
fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
try:
    os.ftruncate(fd, 1 << 20)
    q = map_file(fd, (1 << 20) - 65536, at=65536)
    os.close(fd)
    check(q + 8192 + 12, 0)                             # not on a page
    equal(os.stat(name).st_size, 1 << 20)
finally:
    os.unlink(name)
""")  # fmt: skip


def test_private_memory_is_bookkeeping(host: Host, transport: str) -> None:
    """Its pages are the program's alone: copies work, kernels cannot have it. Over TCP all is."""
    run(host, transport, """
size = 1 << 20
fd = memfd(size)
places = [map_file(-1, size, PRIVATE | ANONYMOUS), map_file(fd, size, PRIVATE)]
if os.environ["GPUPOOL_TRANSPORT"] == "tcp":
    places.append(map_file(fd, size))
plain = d.alloc(size)
for p in places:
    register(p, size)
    equal(device_pointer(p), -NOT_SUPPORTED)
    data = pattern(size)
    write_host(p, data)
    d.call("cuMemcpyHtoD_v2", c_uint64(plain), c_void_p(p), c_size_t(size))
    equal(d.download(plain, size), data)
    equal(lib.cuMemHostRegister_v2(c_void_p(p + 4096), c_size_t(16), 0), ALREADY_REGISTERED)
    d.call("cuMemHostUnregister", c_void_p(p))
""")  # fmt: skip


PEER = """
fd = int(sys.argv[1])
p = map_file(fd, 4096)
register(p, 4096)
numbers = (c_uint * 1024).from_address(p)
def turn():
    add_one(p, 1024)
    d.synchronize()
if sys.argv[2] == "first":
    turn()
print("done", flush=True)
sys.stdin.readline()
turn()
print(list(numbers) == [3] * 1024, flush=True)
"""


def test_two_sessions_share_a_file(host: Host) -> None:
    """As NCCL's processes on one host do: each has it registered, kernels of both work in it."""
    import os
    import subprocess

    fd = os.memfd_create("test")
    os.ftruncate(fd, 4096)
    text = PRELUDE + SHARED + PEER
    environment = dict(host.client_environment("shm"), PYTHONPATH=str(ROOT))

    def start(which: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", text, str(fd), which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=(fd,),
        )

    first, second = start("first"), start("second")
    try:
        for each in (first, second):
            assert each.stdout is not None
            assert each.stdout.readline() == "done\n"
        out, _ = first.communicate("go\n", timeout=60)
        assert out == "False\n"  # only this one's turns so far
        out, _ = second.communicate("go\n", timeout=60)
        assert out == "True\n"
        assert os.pread(fd, 4, 0) == b"\x03\0\0\0"
    finally:
        os.close(fd)
        for each in (first, second):
            if each.poll() is None:
                each.kill()
                each.wait()


@pytest.mark.softgpu
def test_a_file_cut_short_ends_that_session_only(own_host: Host) -> None:
    """The NVIDIA GPU has the pages pinned and would not notice."""
    other = own_host.start_client("shm", sys.executable, "-c", PRELUDE + """
print("up", flush=True)
sys.stdin.readline()
data = pattern(1 << 20)
a = d.alloc(len(data))
d.upload(a, data)
equal(d.download(a, len(data)), data)
print("fine")
""")  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    run(own_host, "shm", """
fd = memfd(1 << 20)
p = map_file(fd, 1 << 20)
register(p, 1 << 20)
add_one(p, 1000)
d.synchronize()
os.ftruncate(fd, 0)
add_one(p, 1000)
equal(lib.cuCtxSynchronize(), 46)                       # CUDA_ERROR_DEVICE_UNAVAILABLE
equal(lib.cuCtxSynchronize(), 46)
""")  # fmt: skip
    out, errors = other.communicate("go\n", timeout=60)
    assert out == "fine\n", errors
    assert "memory that the client shared is gone" in own_host.log


def test_rubbish_on_the_control_socket_ends_the_session(own_host: Host) -> None:
    """The worker takes descriptors there and nothing else."""
    run(own_host, "shm", """
import socket
for name in os.listdir("/proc/self/fd"):
    try:
        if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
            continue
    except OSError:
        continue
    socket.socket(fileno=os.dup(int(name))).send(b"hello")
while lib.cuCtxSynchronize() != 46:
    d.result("cuMemAlloc_v2", byref(c_uint64()), 512)
""")  # fmt: skip
    assert "what is no descriptor" in own_host.log
