"""Turns the demo's CUDA C++ into PTX and its host part into a program.

nvcc is used where it is installed; elsewhere NVRTC from PyPI (package nvidia-cuda-nvrtc), through
its C interface.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
# Old enough for every GPU that a current driver serves, and for the software GPU.
VIRTUAL_ARCHITECTURE = "compute_75"


class CompileError(Exception):
    """The compiler refused; the text is its own message."""


def cuda_package_file(*relative: str) -> Path:
    """The first of these files in the installed nvidia-* packages; CompileError when none is."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec is not None else []:
        for name in relative:
            path = Path(root) / name
            if path.exists():
                return path
    raise CompileError(f"none of {', '.join(relative)} is installed; ./run demo installs it")


def compile_ptx(source: Path, output: Path) -> str:
    """Compiles CUDA C++ to PTX text at `output` and returns the compiler's name."""
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        command = [nvcc, "-ptx", f"-arch={VIRTUAL_ARCHITECTURE}", "-o", str(output), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603 - fixed command
        if done.returncode != 0:
            raise CompileError(done.stderr)
        return "nvcc"
    output.write_text(nvrtc_ptx(source.read_text(), source.name))
    return "NVRTC"


def nvrtc_ptx(text: str, name: str, architecture: str = VIRTUAL_ARCHITECTURE) -> str:
    """Compiles CUDA C++ text to PTX with NVRTC; CompileError carries the compiler's log."""
    # NVRTC opens its built-in functions by their bare name: they must be there already.
    ctypes.CDLL(str(cuda_package_file("cu13/lib/libnvrtc-builtins.so.13.0")))
    library = ctypes.CDLL(str(cuda_package_file("cu13/lib/libnvrtc.so.13")))
    program = ctypes.c_void_p()
    _checked(
        library,
        library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), name.encode(), 0, None, None
        ),
    )
    option = f"--gpu-architecture={architecture}".encode()
    options = (ctypes.c_char_p * 1)(option)
    status = library.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    if status != 0:
        _checked(library, library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _checked(library, library.nvrtcGetProgramLog(program, log))
        raise CompileError(log.value.decode(errors="replace"))
    _checked(library, library.nvrtcGetPTXSize(program, ctypes.byref(size)))
    ptx = ctypes.create_string_buffer(size.value)
    _checked(library, library.nvrtcGetPTX(program, ptx))
    _checked(library, library.nvrtcDestroyProgram(ctypes.byref(program)))
    return ptx.value.decode()


def _checked(library: ctypes.CDLL, status: int) -> None:
    if status != 0:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(library.nvrtcGetErrorString(status).decode())


def compile_host(output: Path, library_folder: Path) -> None:
    """Compiles the host program with cuda.h from PyPI and a libcuda.so.1 in `library_folder`."""
    include = cuda_package_file("cu13/include/cuda.h").parent
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        f"-I{include}",
        "-o",
        str(output),
        str(HERE / "host.cpp"),
    ]
    command += [f"-L{library_folder}", "-l:libcuda.so.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603 - fixed command
    if done.returncode != 0:
        raise CompileError(done.stderr)
