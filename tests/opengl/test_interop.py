"""CUDA and OpenGL on the same buffers and images: one program, one session, one worker."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TRANSPORTS, Host
from tests.opengl.generated import generated
from tests.opengl.ways import Way

ALREADY_MAPPED, NOT_MAPPED, NOT_AS_ARRAY, NOT_AS_POINTER = 208, 211, 212, 213
INVALID_VALUE, INVALID_HANDLE = 1, 400


@pytest.fixture(params=TRANSPORTS)
def way(request: pytest.FixtureRequest, host: Host) -> Way:
    """Over each transport in turn."""
    return generated(host, request.param)


def said(way: Way, part: str, **variables: str) -> Any:
    """What one part of the program says."""
    program = (sys.executable, "-m", "tests.opengl.interop_program", part)
    done = way.run(*program, variables=variables)
    return json.loads(done.stdout.splitlines()[-1])[part]


def test_a_kernel_and_opengl_take_turns_on_a_buffer(way: Way) -> None:
    """What OpenGL has written when it is mapped the kernel sees, and the other way round."""
    assert said(way, "buffer") == [[6000, True, True]] * 3 + [0]


def test_opengl_draws_what_a_kernel_has_computed(way: Way) -> None:
    before, after, same, _, error = said(way, "draw")
    assert before == "000000ff"
    assert after == "4080bfff"
    assert (same, error) == (64 * 64, 0)


def test_an_image_is_an_array_while_it_is_mapped(way: Way) -> None:
    assert said(way, "image") == [True, True, True, True, True, 0]


@pytest.mark.parametrize(
    "library", ["cuda_runtime/lib/libcudart.so.12", "cu13/lib/libcudart.so.13"]
)
def test_nvidias_runtime_finds_its_functions(way: Way, library: str) -> None:
    found = importlib.util.find_spec("nvidia")
    folders = [] if found is None else found.submodule_search_locations or []
    paths = [Path(folder, library) for folder in folders]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        pytest.skip(f"{library} is not installed (PyPI: nvidia-cuda-runtime)")
    assert said(way, "runtime", GPUPOOL_TEST_CUDART=str(path)) == [6000, True, True, 0]


def test_mistakes_are_answered_as_the_driver_does(way: Way) -> None:
    assert said(way, "errors") == {
        "buffer that is none": INVALID_VALUE,
        "pointer, not mapped": NOT_MAPPED,
        "unmap, not mapped": NOT_MAPPED,
        "map twice": ALREADY_MAPPED,
        "flags while mapped": ALREADY_MAPPED,
        "array of a buffer": NOT_AS_ARRAY,
        "pointer of an image": NOT_AS_POINTER,
        "a level too high": INVALID_VALUE,
        "array, not mapped": NOT_MAPPED,
        "unmap twice": NOT_MAPPED,
        "no context": INVALID_VALUE,
    }


def test_what_is_gone_is_refused(way: Way) -> None:
    assert said(way, "gone") == {
        "copy after unmap": INVALID_VALUE,
        "map after unregister": INVALID_HANDLE,
        "unregister twice": INVALID_HANDLE,
        "no handle": INVALID_HANDLE,
    }


def test_a_resource_ends_with_the_last_context_of_its_object(way: Way) -> None:
    assert said(way, "contexts") == [True, INVALID_HANDLE, True]


def test_the_devices_of_a_context_are_the_sessions(way: Way) -> None:
    assert said(way, "devices") == [0]
