"""Draws scenes with moderngl, headless: `python -m tests.opengl.scenes_moderngl FILE [SCENE...]`.

FILE (.npz) gets every scene's pixels or numbers under the scene's name; the standard output is one
JSON object with what OpenGL said of itself and why a scene could not be drawn. Nothing here knows
which OpenGL it gets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import moderngl
import numpy as np

SIZE = 256
_NO_POSITION = """#version 330
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1); }
"""
_COLOURED = """#version 330
in vec2 in_place; in vec3 in_colour; out vec3 colour;
uniform float angle;
void main() {
  float s = sin(angle), k = cos(angle);
  colour = in_colour; gl_Position = vec4(mat2(k, s, -s, k) * in_place, 0, 1);
}
"""
_PLAIN = "#version 330\nin vec3 colour; out vec4 o; void main() { o = vec4(colour, 1); }"
_CORNERS = np.array([-0.8, -0.8, 1, 0, 0, 0.8, -0.8, 0, 1, 0, 0, 0.8, 0, 0, 1], "f4")

Context = Any
Scene = Callable[[Context], "np.ndarray[Any, Any]"]


def _target(context: Context, components: int = 4, dtype: str = "f1", samples: int = 0) -> Context:
    if samples:
        return context.framebuffer(
            [context.renderbuffer((SIZE, SIZE), components, samples=samples)],
            context.depth_renderbuffer((SIZE, SIZE), samples=samples),
        )
    return context.framebuffer(
        [context.texture((SIZE, SIZE), components, dtype=dtype)],
        context.depth_renderbuffer((SIZE, SIZE)),
    )


def _pixels(target: Context, dtype: str = "f1") -> np.ndarray[Any, Any]:
    kind = {"f1": np.uint8, "f4": np.float32, "u4": np.uint32}[dtype]
    data = target.read(components=4, dtype=dtype)
    return np.frombuffer(data, kind).reshape(SIZE, SIZE, 4)


def _noise(*shape: int) -> bytes:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8).tobytes()


def triangle(context: Context) -> np.ndarray[Any, Any]:
    """Interpolated colours."""
    program = context.program(vertex_shader=_COLOURED, fragment_shader=_PLAIN)
    array = context.vertex_array(program, context.buffer(_CORNERS), "in_place", "in_colour")
    target = _target(context)
    target.use()
    context.clear(0.1, 0.2, 0.3, 1)
    program["angle"] = 0.3
    array.render()
    return _pixels(target)


def textures(context: Context) -> np.ndarray[Any, Any]:
    """Nearest, linear and mipmapped lookups, a cube map, a texture array and a 3D texture."""
    program = context.program(
        vertex_shader=_NO_POSITION,
        fragment_shader="""#version 330
uniform sampler2D near, smooth_, small; uniform samplerCube cube; uniform sampler2DArray layers;
uniform sampler3D solid; out vec4 o;
void main() {
  vec2 at = gl_FragCoord.xy / 256.0; vec2 two = at * 2.0; int part = int(two.x) + 2 * int(two.y);
  vec2 uv = fract(two);
  if (part == 0) o = texture(near, uv);
  else if (part == 1) o = mix(texture(smooth_, uv * 0.5), textureLod(small, uv, 2.0), 0.5);
  else if (part == 2) o = texture(cube, vec3(uv * 2.0 - 1.0, 0.7));
  else o = mix(texture(layers, vec3(uv, 1)), texture(solid, vec3(uv, 0.4)), 0.5);
}""",
    )
    made = {
        "near": context.texture((32, 32), 4, _noise(32, 32, 4)),
        "smooth_": context.texture((32, 32), 3, _noise(32, 32, 3)),
        "small": context.texture((64, 64), 4, _noise(64, 64, 4)),
        "cube": context.texture_cube((16, 16), 4, _noise(6, 16, 16, 4)),
        "layers": context.texture_array((16, 16, 3), 4, _noise(3, 16, 16, 4)),
        "solid": context.texture3d((8, 8, 8), 4, _noise(8, 8, 8, 4)),
    }
    made["near"].filter = (moderngl.NEAREST, moderngl.NEAREST)
    made["small"].build_mipmaps()
    for number, (name, texture) in enumerate(made.items()):
        texture.use(number)
        program[name] = number
    target = _target(context)
    target.use()
    context.clear()
    context.vertex_array(program, []).render(moderngl.TRIANGLES, vertices=3)
    return _pixels(target)


def framebuffers(context: Context) -> np.ndarray[Any, Any]:
    """Two attachments at once, float and integer; the second pass reads both."""
    first = context.program(
        vertex_shader=_COLOURED,
        fragment_shader="""#version 330
in vec3 colour; layout(location=0) out vec4 a; layout(location=1) out uvec4 b;
void main() { a = vec4(colour * 3.0 - 1.0, 1); b = uvec4(colour * 60000.0, 7); }""",
    )
    floats = context.texture((SIZE, SIZE), 4, dtype="f4")
    whole = context.texture((SIZE, SIZE), 4, dtype="u4")
    floats.filter = whole.filter = (moderngl.NEAREST, moderngl.NEAREST)
    both = context.framebuffer([floats, whole])
    both.use()
    both.clear()
    first["angle"] = -0.5
    context.vertex_array(first, context.buffer(_CORNERS), "in_place", "in_colour").render()
    second = context.program(
        vertex_shader=_NO_POSITION,
        fragment_shader="""#version 330
uniform sampler2D floats; uniform usampler2D whole; out vec4 o;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  o = texelFetch(floats, at, 0) * 0.5 + vec4(texelFetch(whole, at, 0)) / 120000.0;
}""",
    )
    second["floats"], second["whole"] = 0, 1
    floats.use(0)
    whole.use(1)
    target = _target(context)
    target.use()
    context.vertex_array(second, []).render(moderngl.TRIANGLES, vertices=3)
    return _pixels(target)


def instances(context: Context) -> np.ndarray[Any, Any]:
    """A thousand instances with depth, blending, an index buffer and a uniform block."""
    program = context.program(
        vertex_shader="""#version 330
in vec2 corner; in vec4 place; out vec4 colour;
layout(std140) uniform Look { vec4 tint; vec2 scale; };
void main() {
  colour = tint * vec4(fract(place.xyz * 3.0), 1.0);
  gl_Position = vec4(corner * scale + place.xy, place.z, 1);
}""",
        fragment_shader="#version 330\nin vec4 colour; out vec4 o; void main() { o = colour; }",
    )
    look = context.buffer(np.array([1, 0.9, 0.8, 0.5, 0.05, 0.05, 0, 0], "f4"))
    look.bind_to_uniform_block(0)
    program["Look"].binding = 0
    corners = context.buffer(np.array([-1, -1, 1, -1, 1, 1, -1, 1], "f4"))
    places = np.random.default_rng(2).uniform(-1, 1, (1000, 4)).astype("f4")
    array = context.vertex_array(
        program,
        [(corners, "2f", "corner"), (context.buffer(places), "4f/i", "place")],
        index_buffer=context.buffer(np.array([0, 1, 2, 0, 2, 3], "i4")),
    )
    target = _target(context)
    target.use()
    context.clear(0, 0, 0, 1)
    context.enable(moderngl.DEPTH_TEST | moderngl.BLEND)
    context.blend_func = moderngl.SRC_ALPHA, moderngl.ONE_MINUS_SRC_ALPHA
    array.render(instances=1000)
    context.disable(moderngl.DEPTH_TEST | moderngl.BLEND)
    return _pixels(target)


def geometry(context: Context) -> np.ndarray[Any, Any]:
    """A geometry shader that makes quads of points."""
    program = context.program(
        vertex_shader="#version 330\nin vec2 at; void main() { gl_Position = vec4(at, 0, 1); }",
        geometry_shader="""#version 330
layout(points) in; layout(triangle_strip, max_vertices=4) out; out vec3 colour;
void main() {
  for (int i = 0; i < 4; i++) {
    vec2 corner = vec2(i & 1, i >> 1) * 0.1;
    colour = vec3(corner * 10.0, float(gl_PrimitiveIDIn & 7) / 7.0);
    gl_Position = gl_in[0].gl_Position + vec4(corner, 0, 0);
    EmitVertex();
  }
  EndPrimitive();
}""",
        fragment_shader=_PLAIN,
    )
    points = np.random.default_rng(3).uniform(-1, 0.9, (200, 2)).astype("f4")
    target = _target(context)
    target.use()
    context.clear()
    context.vertex_array(program, context.buffer(points), "at").render(moderngl.POINTS)
    return _pixels(target)


def multisample(context: Context) -> np.ndarray[Any, Any]:
    """Four samples a pixel, resolved by a blit."""
    program = context.program(vertex_shader=_COLOURED, fragment_shader=_PLAIN)
    array = context.vertex_array(program, context.buffer(_CORNERS), "in_place", "in_colour")
    many, one = _target(context, samples=4), _target(context)
    many.use()
    context.clear(0.2, 0.2, 0.2, 1)
    program["angle"] = 0.7
    array.render()
    context.copy_framebuffer(one, many)
    return _pixels(one)


def feedback(context: Context) -> np.ndarray[Any, Any]:
    """Transform feedback into a buffer, and a query of how many primitives there were."""
    program = context.program(
        vertex_shader="""#version 330
in float a; out float b; out vec2 c; void main() { b = a * 2.0 + 1.0; c = vec2(a, -a); }""",
        varyings=["b", "c"],
    )
    values = np.arange(512, dtype="f4")
    result = context.buffer(reserve=512 * 3 * 4)
    with context.query(primitives=True) as query:
        context.vertex_array(program, context.buffer(values), "a").transform(result)
    found = np.frombuffer(result.read(), "f4")
    return np.append(found, np.float32(query.primitives))


def buffers(context: Context) -> np.ndarray[Any, Any]:
    """Writes, partial writes, copies between buffers and reads of a few MiB."""
    data = np.random.default_rng(4).integers(0, 256, 3 << 20, dtype=np.uint8)
    one, two = context.buffer(data.tobytes()), context.buffer(reserve=3 << 20)
    one.write(data[:4097].tobytes(), offset=1 << 20)
    context.copy_buffer(two, one, size=2 << 20, read_offset=1 << 20, write_offset=4096)
    two.clear(size=4096, chunk=b"gpu1")
    return np.frombuffer(two.read(size=(2 << 20) + 4096), np.uint8)


def compute(context: Context) -> np.ndarray[Any, Any]:
    """A compute shader over a storage buffer, shared memory and an image."""
    shader = context.compute_shader("""#version 430
layout(local_size_x=64) in;
layout(std430, binding=0) buffer A { float a[]; };
layout(rgba8, binding=1) writeonly uniform image2D picture;
shared float sums[64];
void main() {
  uint at = gl_GlobalInvocationID.x, here = gl_LocalInvocationID.x;
  sums[here] = a[at]; barrier();
  a[at] = a[at] * 2.0 + sums[63u - here];
  imageStore(picture, ivec2(at & 63u, at >> 6), vec4(float(here) / 64.0, 0.5, 0, 1));
}""")
    picture = context.texture((64, 64), 4)
    picture.bind_to_image(1, read=False, write=True)
    numbers = context.buffer(np.arange(4096, dtype="f4"))
    numbers.bind_to_storage_buffer(0)
    shader.run(64)
    context.memory_barrier()
    found = np.frombuffer(numbers.read(), "f4")
    return np.concatenate([found, np.frombuffer(picture.read(), np.uint8).astype("f4")])


SCENES: dict[str, tuple[int, Scene]] = {  # the version of OpenGL that each needs
    "triangle": (330, triangle),
    "textures": (330, textures),
    "framebuffers": (330, framebuffers),
    "instances": (330, instances),
    "geometry": (330, geometry),
    "multisample": (330, multisample),
    "feedback": (330, feedback),
    "buffers": (330, buffers),
    "compute": (430, compute),
}


def main() -> None:
    """Draws all of them, or those named."""
    names = sys.argv[2:] or list(SCENES)
    made: Any = moderngl  # whose stubs know backends as dictionaries alone
    context: Context = made.create_context(standalone=True, backend="egl")
    told: dict[str, Any] = {
        "renderer": context.info["GL_RENDERER"],
        "version": context.info["GL_VERSION"],
        "code": context.version_code,
        "extensions": len(context.extensions),
        "skipped": {},
    }
    drawn = {}
    for name in names:
        needs, scene = SCENES[name]
        if context.version_code < needs:
            told["skipped"][name] = f"OpenGL {context.version_code}"
            continue
        drawn[name] = scene(context)
        if (error := context.error) != "GL_NO_ERROR":
            raise RuntimeError(f"{name}: {error}")
    np.savez(sys.argv[1], allow_pickle=False, **drawn)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
