"""For programs that tests run: a headless context of EGL's, and functions of OpenGL by name."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_uint, c_void_p
from typing import Any

NONE = 0x3038
COLOR_BUFFER_BIT = 0x4000
RGBA, UNSIGNED_BYTE = 0x1908, 0x1401
OPENGL_API, OPENGL_ES_API = 0x30A2, 0x30A0

egl = ctypes.CDLL("libEGL.so.1")
for _name in ("eglGetProcAddress", "eglGetPlatformDisplay", "eglCreateContext"):
    getattr(egl, _name).restype = c_void_p
egl.eglCreatePbufferSurface.restype = c_void_p
egl.eglGetProcAddress.argtypes = [c_char_p]
egl.eglQueryString.restype = c_char_p


def function(name: str, returns: Any, *parameters: Any) -> Callable[..., Any]:
    """A function by its name, as eglGetProcAddress finds it."""
    address = egl.eglGetProcAddress(name.encode())
    assert address, name
    return ctypes.CFUNCTYPE(returns, *parameters)(address)


class Egl:
    """A display of the first device, and a context that is current without a surface."""

    def __init__(self, api: int = OPENGL_API, major: int = 3, minor: int = 3) -> None:
        devices = (c_void_p * 8)()
        count = c_int()
        query = function("eglQueryDevicesEXT", c_uint, c_int, c_void_p, c_void_p)
        assert query(8, devices, byref(count))
        assert count.value >= 1
        platform = function("eglGetPlatformDisplayEXT", c_void_p, c_uint, c_void_p, c_void_p)
        self.display = c_void_p(platform(0x313F, devices[0], None))
        assert self.display.value
        assert egl.eglInitialize(self.display, None, None)
        assert egl.eglBindAPI(api)
        core = [0x30FD, 1] if api == OPENGL_API else []
        self.attributes = (c_int * 7)(0x3098, major, 0x30FB, minor, *core, NONE)
        self.context = self.create()
        self.make_current(self.context)

    def create(self, share: c_void_p | None = None) -> c_void_p:
        """Another context."""
        made = c_void_p(egl.eglCreateContext(self.display, None, share, self.attributes))
        assert made.value, hex(egl.eglGetError())
        return made

    def make_current(self, context: c_void_p | None, surface: c_void_p | None = None) -> None:
        """In this thread."""
        assert egl.eglMakeCurrent(self.display, surface, surface, context), hex(egl.eglGetError())

    def target(self, width: int, height: int) -> None:
        """A framebuffer with a colour texture, bound."""
        name = c_uint()
        function("glGenTextures", None, c_int, POINTER(c_uint))(1, byref(name))
        function("glBindTexture", None, c_uint, c_uint)(0x0DE1, name.value)
        function("glTexStorage2D", None, c_uint, c_int, c_uint, c_int, c_int)(
            0x0DE1, 1, 0x8058, width, height
        )
        frame = c_uint()
        function("glGenFramebuffers", None, c_int, POINTER(c_uint))(1, byref(frame))
        function("glBindFramebuffer", None, c_uint, c_uint)(0x8D40, frame.value)
        function("glFramebufferTexture2D", None, c_uint, c_uint, c_uint, c_uint, c_int)(
            0x8D40, 0x8CE0, 0x0DE1, name.value, 0
        )
        status = function("glCheckFramebufferStatus", c_uint, c_uint)(0x8D40)
        assert status == 0x8CD5, hex(status)
        function("glViewport", None, c_int, c_int, c_int, c_int)(0, 0, width, height)


def clear(red: float, green: float, blue: float, alpha: float) -> None:
    """Fills the colour buffer."""
    function("glClearColor", None, c_float, c_float, c_float, c_float)(red, green, blue, alpha)
    function("glClear", None, c_uint)(COLOR_BUFFER_BIT)


def read(width: int, height: int) -> bytes:
    """The colour buffer's pixels."""
    pixels = ctypes.create_string_buffer(width * height * 4)
    function("glReadPixels", None, c_int, c_int, c_int, c_int, c_uint, c_uint, c_void_p)(
        0, 0, width, height, RGBA, UNSIGNED_BYTE, pixels
    )
    return pixels.raw


def error() -> int:
    """What glGetError answers."""
    found: int = function("glGetError", c_uint)()
    return found


def digest(data: bytes) -> str:
    """A short name of what was drawn."""
    return hashlib.sha256(data).hexdigest()[:16]
