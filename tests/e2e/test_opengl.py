"""OpenGL on a vGPU: a program and Mesa on one side, gpupool-renderer on the other."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from gpupool.cli import opengl
from tests.conftest import Host, native_dir
from tests.e2e.observe import wait_for_line

CLEAR = """
import moderngl
context = moderngl.create_context(standalone=True, backend="egl")
frame = context.framebuffer([context.texture((64, 48), 4)])
frame.use()
context.clear(0.25, 0.5, 0.75, 1)
pixels = frame.read(components=4)
print(context.info["GL_RENDERER"].split()[0], len(pixels), set(pixels[0::4]), set(pixels[1::4]))
"""


@pytest.fixture(scope="session", autouse=True)
def needed() -> None:
    """Skips where something is missing, and says what."""
    pytest.importorskip("moderngl")
    if not (native_dir() / "libexec" / "gpupool-renderer").exists():
        pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")
    if not any(opengl.has(path, b"virpipe") for path in opengl.drivers()):
        pytest.skip("there is no Mesa with virpipe (libgl1-mesa-dri)")


def run(*words: str) -> tuple[str, ...]:
    """`gpupool run` with OpenGL."""
    return (sys.executable, "-m", "gpupool.cli", "run", "--opengl", "yes", "--", *words)


def test_a_program_draws(host: Host, transport: str) -> None:
    done = host.run(transport, *run(sys.executable, "-c", CLEAR))
    assert done.returncode == 0, f"{done.stderr}\n{host.log[-3000:]}"
    assert done.stdout == "virgl 12288 {64} {128}\n"
    assert done.stderr == ""
    host.wait_until(lambda: not host.sessions(), "the session to end")


# So many small pictures in six seconds.
SPIN = """
import moderngl, struct, time
context = moderngl.create_context(standalone=True, backend="egl")
program = context.program(
    vertex_shader="#version 330\\nin vec2 p; void main() { gl_Position = vec4(p, 0, 1); }",
    fragment_shader='''#version 330
out vec4 o;
void main() {
  float a = 0;
  for (int i = 0; i < 200; ++i) a += sin(gl_FragCoord.x * float(i));
  o = vec4(a);
}''',
)
corners = context.buffer(struct.pack("6f", -1, -1, 3, -1, -1, 3))
picture = context.vertex_array(program, corners, "p")
frame = context.framebuffer([context.texture((64, 64), 4)])
frame.use()
picture.render()
frame.read()
print("begun", flush=True)
input()
count, end_s = 0, time.monotonic() + 6
while time.monotonic() < end_s:
    picture.render()
    context.finish()
    count += 1
print(count)
"""


def test_programs_draw_by_their_shares(own_host: Host) -> None:
    programs = []
    try:
        for share in ("15", "75"):
            words = run(sys.executable, "-c", SPIN)
            variables = {"GPUPOOL_COMPUTE_PERCENT": share, "GPUPOOL_POLICY": "hard"}
            programs.append(own_host.start_client("shm", *words, **variables))
        for one in programs:
            wait_for_line(one, "begun")
        for one in programs:  # at the same time
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        few, many = (int(one.communicate(timeout=60)[0]) for one in programs)
    finally:
        for one in programs:
            one.kill()
            one.wait(timeout=60)
    assert many > 2 * few  # five times, on a quiet machine


def test_a_full_vgpu_is_out_of_memory_in_opengl(host: Host) -> None:
    text = """
import moderngl
context = moderngl.create_context(standalone=True, backend="egl")
context.texture((1024, 1024), 4)
print(context.error)
context.texture((8192, 8192), 4)
print(context.error)
context.texture((1024, 1024), 4)
print(context.error)
"""
    done = host.run("shm", *run(sys.executable, "-c", text), GPUPOOL_MEMORY_MIB="64")
    assert done.stdout.split() == ["GL_NO_ERROR", "GL_OUT_OF_MEMORY", "GL_NO_ERROR"], done.stderr


def relays(place: str = "/tmp") -> set[Path]:  # noqa: S108
    """Folders of those that no `gpupool run` has started."""
    return set(Path(place).glob("gpupool-opengl-??????"))


def test_a_program_draws_without_gpupool_run(host: Host, transport: str) -> None:
    relay = native_dir() / "lib" / "guest" / "gpupool-opengl"
    before = relays()
    done = host.run(transport, str(relay), "run", "--", sys.executable, "-c", CLEAR)
    assert (done.stdout, done.stderr) == ("virgl 12288 {64} {128}\n", "")
    assert host.run(transport, str(relay), "run", "--", "/bin/sh", "-c", "exit 7").returncode == 7
    assert host.run(transport, str(relay), "run", "--", "/no/program").returncode == 127
    host.wait_until(lambda: relays() <= before, "the relays' folders to go")


def test_a_relay_lies_where_temporary_files_shall_and_leaves_nothing(host: Host) -> None:
    relay = native_dir() / "lib" / "guest" / "gpupool-opengl"
    # Not tmp_path: the name of a socket is short.
    with tempfile.TemporaryDirectory() as place:
        program = "import os; print(os.environ['VTEST_SOCKET_NAME'])"
        done = host.run("shm", str(relay), "run", "--", sys.executable, "-c", program, TMPDIR=place)
        assert done.stdout.startswith(f"{place}/gpupool-opengl-"), done.stderr
        host.wait_until(lambda: not relays(place), "the relay's folder to go")
        # No descriptor is left for its socket: it does not start, and takes its folder away.
        starved = ["/bin/sh", "-c", f"ulimit -n 4; exec {relay} run -- /bin/true"]
        done = host.run("shm", *starved, TMPDIR=place)
        assert (done.returncode, "cannot listen at" in done.stderr) == (125, True), done.stderr
        assert not relays(place)
        long = Path(place) / ("x" * 90)
        long.mkdir()
        done = host.run("shm", str(relay), "run", "--", "/bin/true", TMPDIR=str(long))
        assert (done.returncode, done.stderr) == (0, "")
