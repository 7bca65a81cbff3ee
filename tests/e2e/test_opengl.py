"""OpenGL on a vGPU: a program and Mesa on one side, gpupool-renderer on the other."""

from __future__ import annotations

import sys

import pytest

from gpupool.cli import opengl
from tests.conftest import Host, native_dir

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
