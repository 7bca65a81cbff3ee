"""A program that nvcc built with its static runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Host

SOURCE = """
#include <cstdio>
#include <vector>

__device__ int calls;
__constant__ int offset;

__global__ void scale(const float* from, float* to, int count, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i] * factor + offset;
  if (i == 0) atomicAdd(&calls, 1);
}

#define OK(call)                                                        \\
  if (const cudaError_t error = (call); error != cudaSuccess) {         \\
    std::printf("%s: %s\\\\n", #call, cudaGetErrorString(error));       \\
    return 1;                                                           \\
  }

int main() {
  const int count = 100000;
  std::vector<float> numbers(count);
  for (int i = 0; i < count; ++i) numbers[i] = static_cast<float>(i);
  float *from, *to;
  const int three = 3;
  int called = 0;
  OK(cudaMalloc(&from, count * sizeof(float)));
  OK(cudaMalloc(&to, count * sizeof(float)));
  OK(cudaMemcpyToSymbol(offset, &three, sizeof three));
  OK(cudaMemcpy(from, numbers.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  for (int i = 0; i < 5; ++i) scale<<<(count + 255) / 256, 256>>>(from, to, count, 2.0f);
  OK(cudaGetLastError());
  OK(cudaMemcpy(numbers.data(), to, count * sizeof(float), cudaMemcpyDeviceToHost));
  OK(cudaMemcpyFromSymbol(&called, calls, sizeof called));
  for (int i = 0; i < count; ++i)
    if (numbers[i] != 2.0f * i + 3) return 2;
  return called == 5 ? 0 : 3;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with PTX alone inside so that every GPU can run it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("nvcc")
    (folder / "scale.cu").write_text(SOURCE)
    target = "arch=compute_75,code=compute_75"
    subprocess.run(
        [nvcc, "-gencode", target, "-cudart", "static", "-o", "scale", "scale.cu"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder / "scale"


def test_it_computes_the_right_numbers(host: Host, transport: str, program: Path) -> None:
    done = host.run(transport, str(program))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{host.log[-3000:]}"
