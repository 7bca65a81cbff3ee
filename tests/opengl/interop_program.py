"""A program whose CUDA and OpenGL work on the same buffers and images; prints what they saw.

Run natively and through gpupool it says the same: `python -m tests.opengl.interop_program PART...`
with the parts named at the end. Needs no more than libEGL.so.1, libcuda.so.1 and Python; the part
`runtime` a libcudart that GPUPOOL_TEST_CUDART names.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from tests.guest.cuda import ARRAY, HOST, SUCCESS, Driver, Memcpy2D
from tests.opengl.egl_program import Egl, clear, digest, egl, error, function, read

ARRAY_BUFFER, COPY_WRITE_BUFFER, STATIC_DRAW = 0x8892, 0x8F37, 0x88E4
TEXTURE_2D, TEXTURE_2D_ARRAY, RGBA8, RGBA, UBYTE = 0x0DE1, 0x8C1A, 0x8058, 0x1908, 0x1401
TRIANGLES, FLOAT = 4, 0x1406
READ_ONLY, WRITE_DISCARD, SURFACE = 1, 2, 4
COUNT = 1500  # so few bytes that the client gathers what OpenGL writes
SIDE = 16

# triangle(data): corners of one that covers everything, as GL_TRIANGLES wants them.
# paint(surface): (4x, 4y, 128, 255) at each pixel of 16x16.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry triangle(.param .u64 data)
{
  .reg .pred %p<3>;
  .reg .b32 %r<2>;
  .reg .f32 %f<3>;
  .reg .b64 %d<4>;
  ld.param.u64 %d1, [data];
  cvta.to.global.u64 %d1, %d1;
  mov.u32 %r1, %tid.x;
  setp.eq.u32 %p1, %r1, 1;
  setp.eq.u32 %p2, %r1, 2;
  selp.f32 %f1, 0f40400000, 0fBF800000, %p1;
  selp.f32 %f2, 0f40400000, 0fBF800000, %p2;
  mul.wide.u32 %d2, %r1, 8;
  add.s64 %d3, %d1, %d2;
  st.global.f32 [%d3], %f1;
  st.global.f32 [%d3+4], %f2;
  ret;
}
"""
PAINT = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry paint(.param .u64 surface)
{
  .reg .b32 %r<9>;
  .reg .b64 %d<2>;
  ld.param.u64 %d1, [surface];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  shl.b32 %r3, %r1, 2;
  shl.b32 %r4, %r2, 10;
  or.b32 %r5, %r3, %r4;
  or.b32 %r6, %r5, 0xff800000;
  sust.b.2d.b32.trap [%d1, {%r3, %r2}], {%r6};
  ret;
}
"""


class Program:
    """Both sides, in one thread."""

    def __init__(self) -> None:
        self.cuda = Driver()
        self.gl = Egl()

    def name(self, what: str) -> int:
        """A new name: glGenBuffers and the like."""
        made = c_uint()
        function(f"glGen{what}", None, c_int, POINTER(c_uint))(1, byref(made))
        return made.value

    def buffer(self, data: bytes) -> int:
        """A buffer that holds this."""
        made = self.name("Buffers")
        function("glBindBuffer", None, c_uint, c_uint)(ARRAY_BUFFER, made)
        store = function("glBufferData", None, c_uint, c_size_t, ctypes.c_char_p, c_uint)
        store(ARRAY_BUFFER, len(data), data, STATIC_DRAW)
        return made

    def contents(self, size: int) -> bytes:
        """Of the bound buffer, as OpenGL reads it."""
        room = ctypes.create_string_buffer(size)
        take = function("glGetBufferSubData", None, c_uint, c_size_t, c_size_t, c_void_p)
        take(ARRAY_BUFFER, 0, size, room)
        return room.raw

    def registered(self, buffer: int, flags: int = 0) -> c_void_p:
        """A buffer's resource."""
        resource = c_void_p()
        self.cuda.call("cuGraphicsGLRegisterBuffer", byref(resource), buffer, flags)
        return resource

    def image(self, texture: int, target: int, flags: int = 0) -> c_void_p:
        """A texture's resource."""
        resource = c_void_p()
        self.cuda.call("cuGraphicsGLRegisterImage", byref(resource), texture, target, flags)
        return resource

    def map(self, *resources: c_void_p, stream: c_void_p | None = None) -> None:
        """Maps them together."""
        all_of = (c_void_p * len(resources))(*[each.value for each in resources])
        self.cuda.call("cuGraphicsMapResources", len(resources), all_of, stream)

    def unmap(self, *resources: c_void_p, stream: c_void_p | None = None) -> None:
        """Unmaps them together."""
        all_of = (c_void_p * len(resources))(*[each.value for each in resources])
        self.cuda.call("cuGraphicsUnmapResources", len(resources), all_of, stream)

    def pointer(self, resource: c_void_p) -> tuple[int, int]:
        """Where a mapped buffer is, and its size."""
        address, size = c_uint64(), c_size_t()
        ask = self.cuda.lib.cuGraphicsResourceGetMappedPointer_v2
        code = ask(byref(address), byref(size), resource)
        assert code == SUCCESS, code
        return address.value, size.value

    def array(self, resource: c_void_p, index: int = 0, level: int = 0) -> c_void_p:
        """A mapped image's array."""
        array = c_void_p()
        self.cuda.call("cuGraphicsSubResourceGetMappedArray", byref(array), resource, index, level)
        return array

    def kernel(self, image: bytes, name: str) -> c_void_p:
        """A kernel of its own module."""
        module, found = c_void_p(), c_void_p()
        self.cuda.call("cuModuleLoadData", byref(module), image)
        self.cuda.call("cuModuleGetFunction", byref(found), module, name.encode())
        return found

    def texture(self, pixels: bytes, target: int = TEXTURE_2D, layers: int = 1) -> int:
        """A texture of SIDE x SIDE that holds these pixels."""
        made = self.name("Textures")
        function("glBindTexture", None, c_uint, c_uint)(target, made)
        if target == TEXTURE_2D:
            make = function("glTexStorage2D", None, *[c_uint] * 5)
            make(target, 1, RGBA8, SIDE, SIDE)
            put = function("glTexSubImage2D", None, *[c_uint] * 8, ctypes.c_char_p)
            put(target, 0, 0, 0, SIDE, SIDE, RGBA, UBYTE, pixels)
        else:
            make = function("glTexStorage3D", None, *[c_uint] * 6)
            make(target, 1, RGBA8, SIDE, SIDE, layers)
            put = function("glTexSubImage3D", None, *[c_uint] * 10, ctypes.c_char_p)
            put(target, 0, 0, 0, 0, SIDE, SIDE, layers, RGBA, UBYTE, pixels)
        return made

    def drawn_from(self, texture: int, layer: int | None = None) -> bytes:
        """A texture's pixels, read through a framebuffer."""
        frame = self.name("Framebuffers")
        function("glBindFramebuffer", None, c_uint, c_uint)(0x8D40, frame)
        if layer is None:
            attach = function("glFramebufferTexture2D", None, *[c_uint] * 4, c_int)
            attach(0x8D40, 0x8CE0, TEXTURE_2D, texture, 0)
        else:
            attach = function("glFramebufferTextureLayer", None, *[c_uint] * 3, c_int, c_int)
            attach(0x8D40, 0x8CE0, texture, 0, layer)
        return read(SIDE, SIDE)

    def copy(self, array: c_void_p, pixels: bytes | None) -> bytes:
        """An array's contents, or these to it."""
        room = ctypes.create_string_buffer(pixels or bytes(SIDE * SIDE * 4), SIDE * SIDE * 4)
        host = ctypes.cast(room, c_void_p).value
        if pixels is None:
            box = Memcpy2D(src_type=ARRAY, src_array=array, dst_type=HOST, dst_host=host)
            box.dst_pitch = SIDE * 4
        else:
            box = Memcpy2D(src_type=HOST, src_host=host, dst_type=ARRAY, dst_array=array)
            box.src_pitch = SIDE * 4
        box.width, box.height = SIDE * 4, SIDE
        self.cuda.call("cuMemcpy2D_v2", byref(box))
        return room.raw


def numbers(first: int) -> bytes:
    """COUNT integers in a row."""
    return struct.pack(f"{COUNT}i", *range(first, first + COUNT))


def pixels(seed: int) -> bytes:
    """SIDE x SIDE pixels that differ."""
    return bytes((seed + 7 * i) % 251 for i in range(SIDE * SIDE * 4))


def part_buffer(program: Program) -> list[Any]:
    """OpenGL writes, a kernel adds one, OpenGL reads; and the same again with one resource."""
    cuda = program.cuda
    buffer = program.buffer(numbers(0))
    resource = program.registered(buffer)
    add_one = cuda.function("add_one")
    seen = []
    for turn in range(3):
        program.map(resource)
        address, size = program.pointer(resource)
        cuda.launch(add_one, (COUNT + 127) // 128, 128, c_uint64(address), c_uint(COUNT))
        there = ctypes.create_string_buffer(size)
        cuda.call("cuMemcpyDtoH_v2", there, address, c_size_t(size))
        program.unmap(resource)
        read_back = program.contents(4 * COUNT)
        seen.append([size, there.raw == read_back, read_back == numbers(1 + 1000 * turn)])
        # Gathered in the client when the next map is asked for.
        put = function("glBufferSubData", None, c_uint, c_size_t, c_size_t, ctypes.c_char_p)
        put(ARRAY_BUFFER, 0, 4 * COUNT, numbers(1000 * (turn + 1)))
    cuda.call("cuGraphicsUnregisterResource", resource)
    return [*seen, error()]


def part_draw(program: Program) -> list[Any]:
    """A kernel writes a triangle's corners on a stream of its own; OpenGL draws it."""
    shaders = []
    for kind, text in (
        (0x8B31, b"#version 330\nin vec2 at; void main() { gl_Position = vec4(at, 0, 1); }"),
        (0x8B30, b"#version 330\nout vec4 c; void main() { c = vec4(0.25, 0.5, 0.75, 1); }"),
    ):
        shader = function("glCreateShader", c_uint, c_uint)(kind)
        source = function("glShaderSource", None, c_uint, c_int, c_void_p, c_void_p)
        source(shader, 1, (ctypes.c_char_p * 1)(text), None)
        function("glCompileShader", None, c_uint)(shader)
        shaders.append(shader)
    linked = function("glCreateProgram", c_uint)()
    for shader in shaders:
        function("glAttachShader", None, c_uint, c_uint)(linked, shader)
    function("glLinkProgram", None, c_uint)(linked)
    program.gl.target(64, 64)
    clear(0, 0, 0, 1)
    rays = program.name("VertexArrays")
    function("glBindVertexArray", None, c_uint)(rays)
    buffer = program.buffer(bytes(24))
    point = function("glVertexAttribPointer", None, *[c_uint] * 3, ctypes.c_ubyte, c_int, c_void_p)
    point(0, 2, FLOAT, 0, 0, None)
    function("glEnableVertexAttribArray", None, c_uint)(0)
    function("glUseProgram", None, c_uint)(linked)
    draw = function("glDrawArrays", None, c_uint, c_int, c_int)
    draw(TRIANGLES, 0, 3)
    before = read(64, 64)
    stream = c_void_p()
    program.cuda.call("cuStreamCreate", byref(stream), 1)
    resource = program.registered(buffer, WRITE_DISCARD)
    program.map(resource, stream=stream)
    address = c_uint64(program.pointer(resource)[0])
    places = (c_void_p * 1)(ctypes.addressof(address))
    kernel = program.kernel(PTX, "triangle")
    program.cuda.call("cuLaunchKernel", kernel, 1, 1, 1, 3, 1, 1, 0, stream, places, None)
    program.unmap(resource, stream=stream)
    draw(TRIANGLES, 0, 3)
    after = read(64, 64)
    program.cuda.call("cuGraphicsUnregisterResource", resource)
    return [before[:4].hex(), after[:4].hex(), after.count(after[:4]), digest(after), error()]


def part_image(program: Program) -> list[Any]:
    """An image that OpenGL has written is read as an array, written as one, and drawn from."""
    texture = program.texture(pixels(1))
    resource = program.image(texture, TEXTURE_2D)
    program.map(resource)
    array = program.array(resource)
    first = program.copy(array, None) == pixels(1)
    program.copy(array, pixels(2))
    program.unmap(resource)
    second = program.drawn_from(texture) == pixels(2)
    program.cuda.call("cuGraphicsUnregisterResource", resource)
    layers = program.texture(pixels(3) + pixels(4), TEXTURE_2D_ARRAY, 2)
    layered = program.image(layers, TEXTURE_2D_ARRAY)
    program.map(layered)
    third = program.copy(program.array(layered, 1), None) == pixels(4)
    program.copy(program.array(layered, 1), pixels(5))
    program.unmap(layered)
    fourth = program.drawn_from(layers, 0) == pixels(3), program.drawn_from(layers, 1) == pixels(5)
    return [first, second, third, *fourth, error()]


def part_surface(program: Program) -> list[Any]:
    """A kernel draws into an image through a surface. The software GPU has none."""
    texture = program.texture(pixels(1))
    resource = program.image(texture, TEXTURE_2D, SURFACE)
    program.map(resource)
    array = program.array(resource)
    about = (c_uint64 * 18)(0, array.value or 0)  # CUDA_RESOURCE_DESC of an array
    surface = c_uint64()
    program.cuda.call("cuSurfObjectCreate", byref(surface), byref(about))
    program.cuda.launch(program.kernel(PAINT, "paint"), SIDE, SIDE, surface)
    program.cuda.call("cuSurfObjectDestroy", surface)
    program.unmap(resource)
    got = program.drawn_from(texture)
    wanted = b"".join(bytes((4 * x, 4 * y, 128, 255)) for y in range(SIDE) for x in range(SIDE))
    return [got == wanted, digest(got), error()]


def part_errors(program: Program) -> dict[str, int]:
    """What wrong calls answer."""
    cuda = program.cuda
    out, address, size = c_void_p(), c_uint64(), c_size_t()
    buffer = program.registered(program.buffer(numbers(0)))
    image = program.image(program.texture(pixels(1)), TEXTURE_2D)
    one, other = (c_void_p * 1)(buffer.value), (c_void_p * 1)(image.value)

    def point(resource: c_void_p) -> int:
        ask = "cuGraphicsResourceGetMappedPointer_v2"
        return cuda.result(ask, byref(address), byref(size), resource)

    def array(resource: c_void_p, level: int = 0) -> int:
        return cuda.result("cuGraphicsSubResourceGetMappedArray", byref(out), resource, 0, level)

    said = {
        "buffer that is none": cuda.result("cuGraphicsGLRegisterBuffer", byref(out), 9999, 0),
        "pointer, not mapped": point(buffer),
        "unmap, not mapped": cuda.result("cuGraphicsUnmapResources", 1, one, None),
    }
    program.map(buffer, image)
    said["map twice"] = cuda.result("cuGraphicsMapResources", 1, one, None)
    said["flags while mapped"] = cuda.result("cuGraphicsResourceSetMapFlags_v2", buffer, 1)
    said["array of a buffer"] = array(buffer)
    said["pointer of an image"] = point(image)
    said["a level too high"] = array(image, 5)
    program.unmap(buffer, image)
    said["array, not mapped"] = array(image)
    said["unmap twice"] = cuda.result("cuGraphicsUnmapResources", 1, other, None)
    cuda.call("cuGraphicsUnregisterResource", buffer)
    cuda.call("cuGraphicsUnregisterResource", image)
    program.gl.make_current(None)
    said["no context"] = cuda.result("cuGraphicsGLRegisterBuffer", byref(out), 1, 0)
    return said


def part_gone(program: Program) -> dict[str, int]:
    """Handles and addresses that are no more; the driver follows such handles, so not native."""
    cuda = program.cuda
    resource = program.registered(program.buffer(numbers(0)))
    one = (c_void_p * 1)(resource.value)
    program.map(resource)
    address, size = program.pointer(resource)
    room = ctypes.create_string_buffer(size)
    program.unmap(resource)
    said = {"copy after unmap": cuda.result("cuMemcpyDtoH_v2", room, address, c_size_t(size))}
    cuda.call("cuGraphicsUnregisterResource", resource)
    said["map after unregister"] = cuda.result("cuGraphicsMapResources", 1, one, None)
    said["unregister twice"] = cuda.result("cuGraphicsUnregisterResource", resource)
    said["no handle"] = cuda.result("cuGraphicsUnregisterResource", c_void_p(4711))
    return said


def part_contexts(program: Program) -> list[Any]:
    """A resource lives as long as a context of OpenGL that shares its object."""
    cuda, gl = program.cuda, program.gl
    resource = program.registered(program.buffer(numbers(0)))
    other = program.name("Buffers"), c_void_p(gl.context.value)
    gl.context = gl.create(share=other[1])
    gl.make_current(gl.context)
    assert egl.eglDestroyContext(gl.display, other[1])
    program.map(resource)
    address, _ = program.pointer(resource)
    cuda.launch(cuda.function("add_one"), 50, 128, c_uint64(address), c_uint(COUNT))
    program.unmap(resource)
    function("glBindBuffer", None, c_uint, c_uint)(ARRAY_BUFFER, other[0] - 1)
    seen: list[Any] = [program.contents(4 * COUNT) == numbers(1)]
    program.map(resource)
    last, gl.context = gl.context, gl.create()
    gl.make_current(gl.context)
    assert egl.eglDestroyContext(gl.display, last)
    seen.append(cuda.result("cuGraphicsUnregisterResource", resource))
    again = program.registered(program.buffer(numbers(5)))
    program.map(again)
    program.unmap(again)
    seen.append(program.contents(4 * COUNT) == numbers(5))
    return seen


def part_runtime(program: Program) -> list[Any]:
    """A buffer and an image through NVIDIA's runtime."""
    runtime = ctypes.CDLL(os.environ["GPUPOOL_TEST_CUDART"])

    def ok(result: int) -> None:
        assert result == 0, result

    buffer = program.buffer(numbers(0))
    texture = program.texture(pixels(1))
    both = (c_void_p * 2)()
    ok(runtime.cudaGraphicsGLRegisterBuffer(byref(both, 0), buffer, 0))
    ok(runtime.cudaGraphicsGLRegisterImage(byref(both, 8), texture, TEXTURE_2D, 0))
    ok(runtime.cudaGraphicsMapResources(2, both, None))
    address, size, array = c_void_p(), c_size_t(), c_void_p()
    ok(runtime.cudaGraphicsResourceGetMappedPointer(byref(address), byref(size), c_void_p(both[0])))
    ok(runtime.cudaMemcpy(address, numbers(7), size, 1))
    ok(runtime.cudaGraphicsSubResourceGetMappedArray(byref(array), c_void_p(both[1]), 0, 0))
    ok(
        runtime.cudaMemcpy2DToArray(
            array, c_size_t(0), c_size_t(0), pixels(6), c_size_t(SIDE * 4), c_size_t(SIDE * 4),
            c_size_t(SIDE), 1,
        )
    )  # fmt: skip
    ok(runtime.cudaGraphicsUnmapResources(2, both, None))
    seen = [program.contents(4 * COUNT) == numbers(7), program.drawn_from(texture) == pixels(6)]
    for resource in both:
        ok(runtime.cudaGraphicsUnregisterResource(c_void_p(resource)))
    return [size.value, *seen, error()]


def part_devices(program: Program) -> list[Any]:
    """CUDA's devices of the context of OpenGL."""
    count, devices = c_uint(), (c_int * 8)()
    program.cuda.call("cuGLGetDevices_v2", byref(count), devices, 8, 1)
    return [devices[i] for i in range(count.value)]


PARTS: dict[str, Callable[[Program], Any]] = {
    "buffer": part_buffer,
    "draw": part_draw,
    "image": part_image,
    "surface": part_surface,
    "runtime": part_runtime,
    "devices": part_devices,
    "errors": part_errors,
    "gone": part_gone,
    "contexts": part_contexts,
}


def main() -> None:
    """Prints a JSON object, by part."""
    print(json.dumps({name: PARTS[name](Program()) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
