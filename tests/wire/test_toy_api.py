"""The generator on an API of ten functions: its text against goldens, its code in a round trip.

After a wanted change of a template run `GPUPOOL_REGENERATE=1 pytest tests/wire/test_toy_api.py` and
read the diff.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpupool.wire.codegen import emit, headers, model

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / "toy"
GOLDEN = ROOT / "tests" / "golden" / "codegen"


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """Everything the generator writes for the toy API."""
    header = headers.read(TOY / "include", sources=("cuda.h", "cudaTypedefs.h"))
    return emit.render(model.load(TOY / "api", header), ROOT / "templates" / "cuda")


@pytest.mark.parametrize("name", [*emit.OUTPUTS, emit.COVERAGE_TEMPLATE])
def test_output_is_as_the_golden(name: str, outputs: dict[str, str]) -> None:
    golden = GOLDEN / f"{name}.golden"
    if os.environ.get("GPUPOOL_REGENERATE"):
        emit.write_changed(golden, outputs[name])
    assert outputs[name] == golden.read_text(encoding="utf-8"), f"{golden} differs"


def test_calls_arrive_and_answers_return(outputs: dict[str, str], tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    for name in emit.OUTPUTS:
        (tmp_path / name).write_text(outputs[name], encoding="utf-8")
    sources = [tmp_path / name for name in emit.OUTPUTS if name.endswith(".cpp")]
    command = [
        compiler, "-std=c++20", "-O0", "-fsanitize=undefined,address", "-fno-sanitize-recover=all",
        "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror",
        f"-I{TOY / 'cpp'}", f"-I{TOY / 'include'}", f"-I{tmp_path}", f"-I{ROOT}",
        *map(str, sources), str(TOY / "cpp" / "round_trip.cpp"), "-ldl",
        "-o", str(tmp_path / "round_trip"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run(
        [str(tmp_path / "round_trip")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr


def test_only_changed_files_are_written(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.hpp"
    assert emit.write_changed(path, "one\n")
    before = path.stat().st_mtime_ns
    assert not emit.write_changed(path, "one\n")
    assert path.stat().st_mtime_ns == before
    assert emit.write_changed(path, "two\n")
