"""A client of `bench.opengl`: draws and reads with moderngl, headless through EGL.

    python -m gpupool.bench.workloads.opengl_client

Says who renders, then answers each line of its input, `WORK SECONDS`, by one of JSON: how often a
second the piece of work was done, and the digest of what it made, which must be native's.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDTH = 512
_SMALL = 16
_UPLOAD_BYTES = 16 << 20
_DRAWS = 100
_STILL = 7  # the frame whose pixels are compared
_VERTEX = """#version 330
in vec2 place; in vec3 colour; out vec3 shade; uniform float turn;
void main() {
  float s = sin(turn), k = cos(turn);
  shade = colour; gl_Position = vec4(mat2(k, s, -s, k) * place, 0, 1);
}
"""
_FRAGMENT = """#version 330
in vec3 shade; out vec4 o; uniform sampler2D picture;
void main() { o = vec4(shade * texture(picture, gl_FragCoord.xy / 512.0).rgb, 1); }
"""


@dataclass(frozen=True)
class Work:
    """One piece of it, and what its result is."""

    once: Callable[[int], None]
    result: Callable[[], bytes]


class Scene:
    """A textured triangle, a large and a small picture, and a buffer."""

    def __init__(self) -> None:
        import moderngl
        import numpy as np

        made: Any = moderngl  # whose stubs know backends as dictionaries alone
        self._context: Any = made.create_context(standalone=True, backend="egl")
        context = self._context
        self.says = {
            "renderer": context.info["GL_RENDERER"],
            "version": context.info["GL_VERSION"],
            "code": context.version_code,
            "extensions": len(context.extensions),
        }
        self._program = context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        noise = np.random.default_rng(1).integers(0, 255, (256, 256, 4), dtype=np.uint8)
        picture = context.texture((256, 256), 4, noise.tobytes())
        picture.filter = (moderngl.NEAREST, moderngl.NEAREST)
        picture.use(0)
        corners = [-0.8, -0.8, 1, 0, 0, 0.8, -0.8, 0, 1, 0, 0, 0.8, 0, 0, 1]
        vertices = context.buffer(np.array(corners, "f4"))
        self._array = context.vertex_array(self._program, vertices, "place", "colour")
        self._large = self._target(WIDTH)
        self._small = self._target(_SMALL)
        self._data = np.arange(_UPLOAD_BYTES // 4, dtype="u4").tobytes()
        self._buffer = context.buffer(reserve=_UPLOAD_BYTES)

    def _target(self, width: int) -> Any:
        context, size = self._context, (width, width)
        return context.framebuffer([context.texture(size, 4)], context.depth_renderbuffer(size))

    def _draw(self, turn: float) -> None:
        self._program["turn"] = turn
        self._array.render()

    def _frame(self, number: int) -> bytes:
        self._large.use()
        self._context.clear(0.1, 0.2, 0.3, 1)
        self._draw(number * 0.01)
        pixels: bytes = self._large.read(components=4)
        return pixels

    def _many(self, number: int) -> None:
        self._large.use()
        self._context.clear(0.1, 0.2, 0.3, 1)
        for each in range(_DRAWS):
            self._draw(number * 0.01 + each)
        self._context.finish()

    def _last_of_many(self) -> bytes:
        self._many(_STILL)
        pixels: bytes = self._large.read(components=4)
        return pixels

    def _clear_and_read(self, number: int) -> bytes:
        self._small.use()
        self._context.clear((number & 7) / 7, 0.2, 0.3, 1)
        pixels: bytes = self._small.read(components=4)
        return pixels

    def _upload(self, _number: int) -> None:
        self._buffer.write(self._data)
        # Four bytes back: whatever is still on its way has arrived.
        self._buffer.read(size=4)

    def works(self) -> dict[str, Work]:
        """By name."""
        return {
            "draw_read_512": Work(lambda n: void(self._frame(n)), lambda: self._frame(_STILL)),
            "draws_100_finish": Work(self._many, self._last_of_many),
            "clear_read_16": Work(
                lambda n: void(self._clear_and_read(n)), lambda: self._clear_and_read(_STILL)
            ),
            "upload_16mib": Work(self._upload, lambda: bytes(self._buffer.read())),
        }


def void(_value: object) -> None:
    """What is made of a frame that is only timed."""


def timed(work: Work, seconds: float) -> float:
    """Pieces a second."""
    begin, count, passed = time.perf_counter(), 0, 0.0
    while passed < seconds or count < 2:
        work.once(count)
        count += 1
        passed = time.perf_counter() - begin
    return count / passed


def main() -> None:
    """Answers until the end of its input."""
    scene = Scene()
    works = scene.works()
    for work in works.values():
        work.once(0)  # shaders are compiled, memory is there
    print(json.dumps(scene.says), flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        work = works[name]
        answer = {"rate": timed(work, float(seconds)), "digest": ""}
        answer["digest"] = hashlib.sha256(work.result()).hexdigest()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
