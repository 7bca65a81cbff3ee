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
# In the current context a library is a module, through which one sees without asking for a kernel.
kernels, of_library = (c_void_p * len(NAMES))(), (c_void_p * len(NAMES))()
inside = c_void_p()
d.call("cuLibraryGetModule", byref(inside), library)
d.call("cuModuleEnumerateFunctions", of_library, len(NAMES), inside)
found["library before names"] = loaded(of_library)
d.call("cuLibraryEnumerateKernels", kernels, len(NAMES), library)
named(kernels, "cuKernelGetName")
found["library"] = loaded(of_library)
# Whoever asks for a function gets it loaded: from a module by its name, from a library's kernel.
found["looked up"] = loaded([get_function(d, module, "fill").value])
function = c_void_p()
d.call("cuKernelGetFunction", byref(function), kernels[0])
found["of a kernel"] = loaded([function.value])
found["of the other kernels"] = loaded(of_library)
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
    assert set(found["module"]) == {0}, found
    assert found["library"] == found["library before names"], found
    assert found["looked up"] == found["of a kernel"] == [1], found
