"""The generated path beside others: a vGPU draws by its share, and one thread's waiting for the GPU
holds nobody else up.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import TRANSPORTS, Host, end_host, make_host
from tests.e2e.observe import wait_for_line
from tests.e2e.test_shares import RUNNER, count, leased_when
from tests.opengl.generated import answer, generated

# A picture that takes llvmpipe some milliseconds, in a context of this thread.
SCENE = """
import sys, threading, time
from ctypes import *
from tests.opengl.egl_program import *
def call(name, *values):
    function(name, None, *[c_void_p if value is None else c_int for value in values])(*values)
def shader(kind, text):
    name = function("glCreateShader", c_uint, c_uint)(kind)
    source = (c_char_p * 1)(text.encode())
    function("glShaderSource", None, c_uint, c_int, c_void_p, c_void_p)(name, 1, source, None)
    call("glCompileShader", name)
    return name
def scene(edge, rounds):
    program = function("glCreateProgram", c_uint)()
    corners = "gl_Position = vec4(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1, 0, 1);"
    call("glAttachShader", program, shader(0x8B31, "#version 330\\nvoid main() {" + corners + "}"))
    call("glAttachShader", program, shader(0x8B30, '''#version 330
        uniform int rounds; out vec4 c;
        void main() { float f = gl_FragCoord.x;
          for (int i = 0; i < rounds; ++i) f = sin(f) + 1.0; c = vec4(step(9.0, f), 1, 0, 1); }'''))
    call("glLinkProgram", program)
    call("glUseProgram", program)
    where = function("glGetUniformLocation", c_int, c_uint, c_char_p)(program, b"rounds")
    call("glUniform1i", where, 1)
    vao = c_uint()
    function("glGenVertexArrays", None, c_int, POINTER(c_uint))(1, byref(vao))
    call("glBindVertexArray", vao.value)
    gl.target(edge, edge)
    call("glDrawArrays", 4, 0, 3)  # shaders are compiled by the first that uses them
    call("glFinish")
    call("glUniform1i", where, rounds)
    return lambda: call("glDrawArrays", 4, 0, 3)
gl = Egl()
"""
DRAWER = (
    SCENE
    + """
done = 0
draw = scene(64, 400)
def tell():
    for line in sys.stdin:
        print(done, flush=True)
threading.Thread(target=tell, daemon=True).start()
print("running", flush=True)
while True:
    for _ in range(4):
        draw()
    call("glFinish")
    done += 4
"""
)


def drawing(host: Host, transport: str, percent: int) -> subprocess.Popen[str]:
    """A client that draws without end."""
    share = {"GPUPOOL_COMPUTE_PERCENT": str(percent), "GPUPOOL_POLICY": "hard"}
    way = generated(host, transport)
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=way.environment(share),
    )
    wait_for_line(process, "running")
    return process


def end(*processes: subprocess.Popen[str]) -> None:
    """Kills them."""
    for process in processes:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.softgpu
def test_a_quarter_beside_cuda(own_host: Host) -> None:
    share = {"GPUPOOL_COMPUTE_PERCENT": "75", "GPUPOOL_POLICY": "hard"}
    draws = drawing(own_host, "shm", 25)
    try:
        computes = own_host.start_client("shm", sys.executable, "-c", RUNNER, **share)
        try:
            wait_for_line(computes, "running")
            leased_when(own_host, (15, 32), (50, 85))
            assert count(draws) > 0
        finally:
            end(computes)
    finally:
        end(draws)


@pytest.mark.softgpu
@pytest.mark.parametrize("over", TRANSPORTS)
def test_two_that_draw_by_their_shares(own_host: Host, over: str) -> None:
    few = drawing(own_host, over, 15)
    try:
        many = drawing(own_host, over, 75)
        try:
            leased_when(own_host, (8, 24), (45, 85))
        finally:
            end(many)
    finally:
        end(few)


WAITING = (
    SCENE
    + """
import json
what = sys.argv[1]
ready, begun = threading.Event(), threading.Event()
other = gl.create()
drawn = []
def slow():
    gl.make_current(other)
    draw = scene(512, 4000)
    clear(0, 0, 0, 1)
    call("glFinish")
    for _ in range(600):  # alone, with nobody to hold up
        call("glFinish")
    ready.set()
    begun.wait()
    start = time.monotonic()
    draw()
    if what == "finish":
        call("glFinish")
    drawn.append(read(512, 512)[:4].hex() if what == "read" else "")
    drawn.extend((start, time.monotonic()))
thread = threading.Thread(target=slow)
thread.start()
gl.target(16, 16)
clear(1, 0, 0, 1)
ready.wait()
times = []
def turn():
    assert error() == 0
    call("glClearStencil", len(times) % 2)
    value = c_int()
    function("glGetIntegerv", None, c_uint, c_void_p)(0x0B91, byref(value))
    assert value.value == len(times) % 2
    times.append(time.monotonic())
turn()  # from here on not alone any more
begun.set()
while thread.is_alive():
    turn()
thread.join()
pixels, start, end = drawn
quarter = (end - start) / 4
print(json.dumps([pixels, sum(start + quarter < at < end - quarter for at in times)]))
"""
)


@pytest.mark.parametrize("what", ["finish", "read"])
@pytest.mark.parametrize("over", TRANSPORTS)
def test_who_waits_for_the_gpu_holds_nobody_up(host: Host, over: str, what: str) -> None:
    """The other thread goes on in the middle half of the wait: the ends are compiling and flushing.

    llvmpipe itself holds both up now and then, so it may have five tries; a worker that waits there
    lets the other thread have no more than one turn in any of them.
    """
    for _ in range(5):
        pixels, turns = answer(generated(host, over), WAITING, what)
        assert pixels == ("00ff00ff" if what == "read" else "")
        if turns > 20:
            return
    raise AssertionError(f"{turns} turns of the other thread")


MANY = """
import sys, threading
from tests.opengl.egl_program import *
gl = Egl()
gl.target(16, 16)
def frames(count):
    for i in range(count):
        clear(i % 2, 0.5, 0, 1)
        assert read(16, 16)[:4].hex() == ("ff8000ff" if i % 2 else "008000ff")
if sys.argv[1] == "alone":
    frames(800)
else:
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    def take_turns(which, context):
        gl.make_current(context)
        for _ in range(8):
            turns[which].acquire()
            gl.target(16, 16)
            frames(50)
            turns[1 - which].release()
    other = threading.Thread(target=take_turns, args=(1, gl.create()))
    other.start()
    take_turns(0, gl.context)
    other.join()
"""
SAYS = "OpenGL may wait in the driver"


@pytest.mark.parametrize("who", ["alone", "two"])
@pytest.mark.parametrize("over", TRANSPORTS)
def test_only_a_thread_alone_waits_in_the_driver(over: str, who: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        host = make_host(Path(name), more='[log]\nlevel = "debug"\n')
        try:
            generated(host, over).run(sys.executable, "-c", MANY, who)
            assert (SAYS in host.log) == (who == "alone")
        finally:
            end_host(host)


BEGUN = (
    SCENE
    + """
import json
draw = scene(256, 2000)
def drawn(pause):
    call("glFinish")
    time.sleep(0.1)  # the worker has nothing to do
    for number in range(400):  # more than a batch that a draw may end early
        call("glStencilMask", number)
    begin = time.monotonic()
    draw()
    time.sleep(pause)
    waits = time.monotonic()
    call("glFinish")
    end = time.monotonic()
    return waits - begin - pause, end - waits
once = sum(drawn(0))
print(json.dumps([once, min(drawn(3 * once)[1] for _ in range(3))]))
"""
)


@pytest.mark.parametrize("over", TRANSPORTS)
def test_the_gpu_begins_before_the_program_waits(host: Host, over: str) -> None:
    """A large batch that nothing follows is begun with: after a pause nothing is left."""
    whole, left = answer(generated(host, over), BEGUN)
    assert left < whole / 2
