"""What `manual/look_up.cpp` relies on: asking the driver for names of functions loads none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.gpu

PROGRAM = """
import json
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p
from tests.guest.cuda import Driver
from tests.guest.kernels import NAMES, get_function, get_kernel, load_library, load_module
d = Driver()
state, name = c_int(), c_char_p()
def loaded(functions):
    states = []
    for function in functions:
        d.call("cuFuncIsLoaded", byref(state), c_void_p(function))
        states.append(state.value)
    return states
def named(functions, call):
    for function in functions:
        d.call(call, byref(name), c_void_p(function))
module, library = load_module(d), load_library(d)
functions = (c_void_p * len(NAMES))()
d.call("cuModuleEnumerateFunctions", functions, len(NAMES), module)
named(functions, "cuFuncGetName")
found = {"module": loaded(functions)}
kernels = (c_void_p * len(NAMES))()
d.call("cuLibraryEnumerateKernels", kernels, len(NAMES), library)
named(kernels, "cuKernelGetName")
in_context = []
for kernel in kernels:
    function = c_void_p()
    d.call("cuKernelGetFunction", byref(function), c_void_p(kernel))
    in_context.append(function.value)
found["library"] = loaded(in_context)
found["looked up"] = loaded([get_function(d, module, "fill").value])
print(json.dumps(found))
"""


def test_names_load_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "CUDA_MODULE_LOADING": "LAZY"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert set(found["module"]) == {0}
    assert set(found["library"]) == {0}
