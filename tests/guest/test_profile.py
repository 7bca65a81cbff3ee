"""`gpupool run --profile`: every call timed, counted and traced, however the program ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpupool.cli import profile_file
from tests.conftest import Host

PRELUDE = """
import ctypes, os, signal, sys, threading
driver = ctypes.CDLL("libcuda.so.1")
def check(result):
    assert result == 0, result
def start():
    check(driver.cuInit(0))
    context = ctypes.c_void_p()
    check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    check(driver.cuCtxSetCurrent(context))
    memory = ctypes.c_uint64()
    check(driver.cuMemAlloc_v2(ctypes.byref(memory), 1 << 21))
    return memory
"""
COPIES = (
    PRELUDE
    + """
memory = start()
large, small = ctypes.create_string_buffer(3 << 19), ctypes.create_string_buffer(16)
for turn in range(4):
    check(driver.cuMemcpyHtoD_v2(memory, large, 3 << 19))
    check(driver.cuMemcpyHtoD_v2(memory, small, 16))
    check(driver.cuMemcpyDtoH_v2(large, memory, 3 << 19))
for turn in range(100):
    check(driver.cuCtxGetDevice(ctypes.byref(ctypes.c_int())))
assert driver.cuMemFree_v2(ctypes.c_uint64(12)) != 0
"""
)


def profiled(
    host: Host, transport: str, folder: Path, text: str, events: int = 65536
) -> list[profile_file.Profile]:
    """Runs Python text with profiling on; the profiles of its processes."""
    done = host.run(
        transport,
        *(sys.executable, "-c", PRELUDE + text),
        GPUPOOL_PROFILE_DIR=str(folder),
        GPUPOOL_PROFILE_EVENTS=str(events),
    )
    assert done.stderr == "", done.stderr
    return [profile_file.read(path) for path in sorted(folder.iterdir())]


def test_counts_times_and_bytes(host: Host, transport: str, tmp_path: Path) -> None:
    (one,) = profiled(host, transport, tmp_path, COPIES)
    assert one.transport == transport
    assert one.ended
    assert one.device
    assert one.messages > 8
    functions = one.functions
    upload, download = functions["cuMemcpyHtoD_v2"], functions["cuMemcpyDtoH_v2"]
    assert (upload.calls, upload.to_device_bytes, upload.from_device_bytes) == (8, 4 * 1572880, 0)
    assert (download.calls, download.to_device_bytes, download.from_device_bytes) == (
        4,
        0,
        4 * (3 << 19),
    )
    assert functions["cuInit"].calls == functions["cuMemFree_v2"].calls == 1
    assert functions["cuInit"].waited_calls == 1  # for the list of devices
    assert functions["cuCtxGetDevice"].calls == 100
    assert functions["cuCtxGetDevice"].waited_calls == functions["cuCtxGetDevice"].waited_ns == 0
    for counter in functions.values():
        assert counter.waited_ns <= counter.total_ns
        assert counter.waited_calls <= counter.calls
        assert counter.longest_ns <= counter.total_ns <= counter.longest_ns * counter.calls
    events = list(one.events())
    assert len(events) == one.events_kept == sum(each.calls for each in functions.values())
    assert [event.function for event in events[-101:]] == ["cuCtxGetDevice"] * 100 + [
        "cuMemFree_v2"
    ]
    assert {event.thread for event in events} == {one.pid}
    ends = [event.start_ns + event.duration_ns for event in events]
    assert ends == sorted(ends)
    for name in functions:
        assert sum(e.duration_ns for e in events if e.function == name) == functions[name].total_ns


def test_nothing_is_written_unasked(host: Host, transport: str, tmp_path: Path) -> None:
    done = host.run(transport, sys.executable, "-c", COPIES, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_killed_program_has_a_profile(host: Host, transport: str, tmp_path: Path) -> None:
    text = "start()\nos.kill(os.getpid(), signal.SIGKILL)"
    (one,) = profiled(host, transport, tmp_path, text)
    assert not one.ended
    assert one.functions["cuMemAlloc_v2"].calls == 1


def test_a_forked_child_leaves_its_parents_profile_alone(
    host: Host, transport: str, tmp_path: Path
) -> None:
    """It has no session: its calls fail and are counted nowhere."""
    text = """
memory = start()
if os.fork() == 0:
    for turn in range(50):
        assert driver.cuMemFree_v2(memory) == 3
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
check(driver.cuMemFree_v2(memory))
os._exit(0)
"""
    (one,) = profiled(host, transport, tmp_path, text)
    assert one.functions["cuMemFree_v2"].calls == 1
    assert not one.ended, "that was the child's exit"


def test_children_have_files_of_their_own(host: Host, transport: str, tmp_path: Path) -> None:
    """A process that becomes another program by exec has two."""
    text = """
start()
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, "-c", %r, "again"])
"""
    text = text % (PRELUDE + "start()")
    first, second = profiled(host, transport, tmp_path, text)
    assert first.pid == second.pid
    assert (first.ended, second.ended) == (False, True)


def test_many_threads_share_what_ended_threads_leave(
    host: Host, transport: str, tmp_path: Path
) -> None:
    text = """
memory = start()
def work():
    for turn in range(3):
        check(driver.cuMemsetD8_v2(memory, 1, 4))
for turn in range(50):
    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
"""
    # A thread without a context of its own: the memset fails, and is a call all the same.
    text = text.replace("check(driver.cuMemsetD8_v2(memory, 1, 4))",
                        "driver.cuMemsetD8_v2(memory, 1, 4)")  # fmt: skip
    (one,) = profiled(host, transport, tmp_path, text)
    assert one.functions["cuMemsetD8_v2"].calls == 600
    assert one.calls_left_out == 0
    threads = {event.thread for event in one.events() if event.function == "cuMemsetD8_v2"}
    assert len(threads) == 200
    assert one.path.stat().st_size < 30 << 20, "a part of the file for every thread"


def test_more_threads_than_there_is_room_for(host: Host, transport: str, tmp_path: Path) -> None:
    """What is not counted is told."""
    text = """
memory = start()
device = ctypes.c_int()
everybody = threading.Barrier(301)
def work():
    driver.cuCtxGetDevice(ctypes.byref(device))
    everybody.wait()
threads = [threading.Thread(target=work) for _ in range(300)]
for each in threads:
    each.start()
everybody.wait()
for each in threads:
    each.join()
threading.Thread(target=lambda: driver.cuCtxGetDevice(ctypes.byref(device))).start()
"""
    (one,) = profiled(host, transport, tmp_path, text, 16)
    assert one.calls_left_out == 301 - 256
    assert one.functions["cuCtxGetDevice"].calls == 301 - one.calls_left_out


def test_the_newest_calls_stay(host: Host, transport: str, tmp_path: Path) -> None:
    text = """
memory = start()
device = ctypes.c_int()
for turn in range(1100):
    driver.cuCtxGetDevice(ctypes.byref(device))
check(driver.cuMemFree_v2(memory))
"""
    (one,) = profiled(host, transport, tmp_path, text, 1000)
    every = sum(each.calls for each in one.functions.values())
    assert one.functions["cuCtxGetDevice"].calls == 1100
    assert (one.events_kept, one.events_dropped) == (1000, every - 1000)
    functions = {event.function for event in one.events()}
    assert functions == {"cuCtxGetDevice", "cuMemFree_v2"}, "cuInit and others were first"


def test_a_folder_that_cannot_be_written(host: Host, transport: str) -> None:
    """The program runs on."""
    done = host.run(
        transport, sys.executable, "-c", COPIES, GPUPOOL_PROFILE_DIR="/proc/self/nowhere"
    )
    assert done.returncode == 0
    assert "cannot write the profile /proc/self/nowhere/" in done.stderr


def command(host: Host, transport: str, folder: Path, *words: str) -> Any:
    """`gpupool run --profile` in `folder`."""
    environment = host.client_environment(transport)
    environment["GPUPOOL_NATIVE_DIR"] = str(host.native)
    return subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "run", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command(host: Host, transport: str, tmp_path: Path) -> None:
    done = command(host, transport, tmp_path, "--profile", "--", sys.executable, "-c",
                   COPIES + "print('out')\nsys.exit(7)")  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "out\n")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("gpupool: 1 process on ")
    assert f" over {transport}: " in lines[0]
    assert lines[1].split()[:3] == ["function", "calls", "waited"]
    waiting = [float(line.split()[3]) for line in lines[2:-2]]
    assert waiting == sorted(waiting, reverse=True)
    assert lines[-2].startswith("all ")
    assert str(tmp_path / "gpupool-trace.json") in lines[-1]
    trace = json.loads((tmp_path / "gpupool-trace.json").read_text())
    events = [each for each in trace["traceEvents"] if each["ph"] == "X"]
    assert sum(each["name"] == "cuCtxGetDevice" for each in events) == 100
    assert min(each["ts"] for each in events) == 0
    copies = [each for each in events if each["name"] == "cuMemcpyDtoH_v2"]
    assert all(each["args"]["from_device_bytes"] == 3 << 19 for each in copies)
    assert any(each["cat"] == "waits" and each["args"]["waited_us"] > 0 for each in copies)


def test_the_command_as_json(host: Host, transport: str, tmp_path: Path) -> None:
    """Two processes, one of which is killed."""
    text = (
        PRELUDE
        + """
import subprocess
start()
if len(sys.argv) == 1:
    subprocess.run([sys.executable, "-c", os.environ["TEXT"], "again"])
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    done = command(host, transport, tmp_path, "--profile=mine.json", "--json", "--", "env",
                   f"TEXT={text}", sys.executable, "-c", text)  # fmt: skip
    assert done.returncode == 0
    told = json.loads(done.stderr)
    assert sorted(each["ended"] for each in told["processes"]) == [False, True]
    assert told["functions"]["cuInit"]["calls"] == 2
    assert told["functions"]["cuInit"]["waited_ns"] > 0
    assert len(told["notes"]) == 1
    assert told["trace"] == str(tmp_path / "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text())["traceEvents"]


def test_a_program_without_cuda(host: Host, transport: str, tmp_path: Path) -> None:
    done = command(host, transport, tmp_path, "--profile", "--", "true")
    assert done.returncode == 0
    assert "no process opened a session" in done.stderr
    assert json.loads((tmp_path / "gpupool-trace.json").read_text())["traceEvents"] == []
