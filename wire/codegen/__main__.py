"""Command line of the generator: `python -m gpupool.wire.codegen --out BUILD/generated`.

Exit codes: 0 done, 1 the description is wrong or (with --verify) docs/coverage.md is stale, 2 wrong
arguments. Writes nothing but the files of emit.OUTPUTS, and docs/coverage.md when asked.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __package__ in (
    None,
    "",
):  # run by path: in pip's isolated build nothing of gpupool is installed
    package = types.ModuleType("gpupool")
    package.__path__ = [str(ROOT)]
    sys.modules["gpupool"] = package

from gpupool.wire.codegen import (  # noqa: E402
    emit,
    headers,
    model,
    nvml,
    opengl,
    opengl_emit,
    spec,
)

INCLUDE_FOLDERS = ("cu13/include", "cuda_runtime/include")


def find_include_dir() -> Path | None:
    """The include folder of the installed nvidia-cuda-runtime wheel."""
    found = importlib.util.find_spec("nvidia")
    if found is None or found.submodule_search_locations is None:
        return None
    for folder in found.submodule_search_locations:
        for relative in INCLUDE_FOLDERS:
            candidate = Path(folder) / relative
            if (candidate / "cuda.h").is_file():
                return candidate
    return None


def write_opengl(api: Path, templates: Path, out: Path | None, coverage: Path | None) -> int:
    """The outputs for OpenGL; returns the exit code."""
    registry = opengl.find_registry()
    if registry is None:
        print("gl.xml not found: install the PyPI package glad2", file=sys.stderr)
        return 1
    try:
        outputs = opengl_emit.render(opengl.load(registry, api), templates)
    except spec.SpecError as error:
        print(error, file=sys.stderr)
        return 1
    if out is not None:
        for name in opengl_emit.OPENGL_OUTPUTS:
            emit.write_changed(out / name, outputs[name])
    if coverage is not None:
        emit.write_changed(coverage, outputs[opengl_emit.OPENGL_COVERAGE])
    return 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gpupool.wire.codegen", description=__doc__)
    parser.add_argument("--api", type=Path, default=ROOT / "wire" / "api")
    parser.add_argument("--templates", type=Path, default=ROOT / "templates" / "cuda")
    parser.add_argument("--include", type=Path, help="folder with cuda.h; default: the wheel's")
    parser.add_argument("--compiler", default="g++", help="whose preprocessor reads cuda.h")
    parser.add_argument("--out", type=Path, help="where the C++ files go")
    parser.add_argument("--coverage", type=Path, help="write docs/coverage.md here")
    parser.add_argument("--verify", type=Path, help="fail if this docs/coverage.md is stale")
    parser.add_argument(
        "--nvml", type=Path, help="write what the guest's NVML lacks here, only that"
    )
    parser.add_argument("--print-include", action="store_true", help="print the folder of cuda.h")
    parser.add_argument("--opengl", type=Path, help="write the C++ files of OpenGL here, only them")
    parser.add_argument("--opengl-coverage", type=Path, help="write docs/opengl-coverage.md here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the generator; returns the exit code."""
    arguments = read_arguments(argv)
    if arguments.opengl is not None or arguments.opengl_coverage is not None:
        return write_opengl(
            arguments.api,
            arguments.templates.parent / "opengl",
            arguments.opengl,
            arguments.opengl_coverage,
        )
    return write_cuda(arguments)


def write_cuda(arguments: argparse.Namespace) -> int:
    """The outputs for CUDA and NVML; returns the exit code."""
    include = arguments.include or find_include_dir()
    if include is None:
        print("cuda.h not found: install the PyPI package nvidia-cuda-runtime", file=sys.stderr)
        return 1
    if arguments.print_include:
        print(include)
        return 0
    try:
        if arguments.nvml is not None:
            templates = arguments.templates.parent / "nvml"
            text = nvml.rest(include, arguments.compiler, arguments.api, templates)
            emit.write_changed(arguments.nvml, text)
            return 0
        header = headers.read(include, arguments.compiler)
        outputs = emit.render(model.load(arguments.api, header), arguments.templates)
    except (spec.SpecError, headers.HeaderError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.out is not None:
        for name in emit.OUTPUTS:
            emit.write_changed(arguments.out / name, outputs[name])
    if arguments.coverage is not None:
        emit.write_changed(arguments.coverage, outputs[emit.COVERAGE_TEMPLATE])
    if arguments.verify is not None:
        current = arguments.verify.read_text(encoding="utf-8") if arguments.verify.is_file() else ""
        if current != outputs[emit.COVERAGE_TEMPLATE]:
            print(
                f"{arguments.verify} is stale: run `python -m gpupool.wire.codegen --coverage "
                f"{arguments.verify}`",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
