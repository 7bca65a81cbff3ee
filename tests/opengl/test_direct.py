"""`gpupool-opengl run --direct`: the generated path without gpupool's Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import TRANSPORTS, Host, native_dir
from tests.opengl.generated import answer, generated
from tests.opengl.test_generated import CLEAR
from tests.opengl.test_pixels import compare, drawn
from tests.opengl.ways import Way

RELAY, EGL = "gpupool-opengl", "libEGL_gpupool.so"
VENDOR = "print(json.dumps(egl.eglQueryString(gl.display, 0x3053).decode()))\n"
TIMEOUT_S = 60


def through(way: Way, libraries: Path) -> Way:
    """The same host by the relay of that folder, and nothing said of where the libraries are."""
    own = ("LD_LIBRARY_PATH", "__EGL_VENDOR_LIBRARY_FILENAMES")
    return replace(
        way,
        name=f"direct-{way.name}",
        variables={name: value for name, value in way.variables.items() if name not in own},
        before=(str(libraries / RELAY), "run", "--direct", "--"),
        hidden=(*way.hidden, *own),
    )


@pytest.fixture(params=TRANSPORTS)
def way(request: pytest.FixtureRequest, host: Host) -> Way:
    """Over each transport in turn."""
    return through(generated(host, request.param), host.native / "lib" / "guest")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for TMPDIR: the name of a socket is short."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        yield Path(name)


def test_a_program_draws_what_it_draws_natively(native: Way, way: Way) -> None:
    assert answer(way, CLEAR) == answer(native, CLEAR)
    assert "gpupool" in answer(way, CLEAR + VENDOR).lower()
    assert "gpupool" not in answer(native, CLEAR + VENDOR).lower()


def test_scenes_of_moderngl_are_the_same(native: Way, way: Way, tmp_path: Path) -> None:
    says, pictures = drawn(way, "moderngl", tmp_path)
    compare(drawn(native, "moderngl", tmp_path)[1], pictures)
    assert "virgl" not in str(says)


def test_cuda_is_found_too_and_shares_buffers(way: Way) -> None:
    """The loader's libcuda.so.1 is the one whose session our EGL takes."""
    done = way.run(sys.executable, "-m", "tests.opengl.interop_program", "buffer")
    assert json.loads(done.stdout.splitlines()[-1])["buffer"]


WINDOWS = """
import json
from tests.opengl.egl_program import *
library = ctypes.CDLL("libX11.so.6")
library.XOpenDisplay.restype = c_void_p
platform = function("eglGetPlatformDisplayEXT", c_void_p, c_uint, c_void_p, c_void_p)
display = c_void_p(platform(0x31D5, library.XOpenDisplay(None), None))
assert egl.eglInitialize(display, None, None)
assert egl.eglBindAPI(OPENGL_API)
config, count = c_void_p(), c_int()
wanted = (c_int * 3)(0x3040, 8, NONE)  # OpenGL can draw with it
assert egl.eglChooseConfig(display, wanted, byref(config), 1, byref(count))
context = c_void_p(egl.eglCreateContext(display, config, None, None))
assert egl.eglMakeCurrent(display, None, None, context)
print(json.dumps(function("glGetString", c_char_p, c_uint)(0x1F01).decode()))
"""


def test_windows_are_virgls(way: Way, display: str, host: Host) -> None:
    if not (host.native / "libexec" / "gpupool-renderer").exists():
        pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")
    there = replace(way, variables={**way.variables, "DISPLAY": display})
    assert answer(there, WINDOWS).startswith("virgl")


def test_odd_names_of_folders_and_nothing_left(host: Host, short: Path) -> None:
    libraries = short / 'a "quoted" \\ folder'
    shutil.copytree(host.native / "lib" / "guest", libraries)
    way = through(generated(host, "shm"), libraries)
    for place in (short / "ordinary", short / "with:colon"):
        place.mkdir()
        there = replace(way, variables={**way.variables, "TMPDIR": str(place)})
        assert "gpupool" in answer(there, CLEAR + VENDOR).lower()
        host.wait_until(lambda place=place: not list(place.iterdir()), "its folder to go")


def refusal(libraries: Path, place: Path) -> str:
    """Why the relay of that folder runs nothing."""
    done = subprocess.run(
        [str(libraries / RELAY), "run", "--direct", "--", "/bin/echo", "it was run"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(place)},
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert not list(place.iterdir())
    return done.stderr


def test_what_is_missing_is_said(short: Path) -> None:
    source = native_dir() / "lib" / "guest"
    if not (source / EGL).exists():
        pytest.skip(f"{source / EGL} is not built")
    libraries, place = short / "libraries", short / "place"
    for folder in (libraries, place):
        folder.mkdir()
    shutil.copy(source / RELAY, libraries)
    said = refusal(libraries, place)
    assert f"--direct: {EGL}: cannot open shared object file" in said
    assert "install gpupool" in said
    (libraries / EGL).write_bytes(b"no library")
    assert f"{libraries / EGL}: file too short" in refusal(libraries, place)
    shutil.copy(source / EGL, libraries)
    assert f"libcuda.so.1 is not beside {libraries / EGL}" in refusal(libraries, place)


@pytest.mark.parametrize(
    "words", [("serve", "--direct", "--socket", "/x"), ("run", "--direct"), ()]
)
def test_wrong_command_lines(words: tuple[str, ...]) -> None:
    relay = str(native_dir() / "lib" / "guest" / RELAY)
    done = subprocess.run([relay, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (64, "")
    assert "gpupool-opengl --help has the rest" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("run", "--help")])
def test_help(words: tuple[str, ...]) -> None:
    relay = str(native_dir() / "lib" / "guest" / RELAY)
    done = subprocess.run([relay, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run [--direct] -- PROGRAM" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
