"""Unmodified PyTorch on a vGPU of an NVIDIA GPU, compared with the same program run natively."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Host

pytestmark = pytest.mark.gpu

# Three training steps from one seed; then what the process has of the driver.
TRAIN = """
import json, os
import torch, torchvision
torch.manual_seed(0)
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = False
net = torchvision.models.resnet50().cuda()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
x, y = torch.randn(16, 3, 224, 224).cuda(), torch.randint(0, 1000, (16,)).cuda()
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
descriptors = "/proc/self/fd"
targets = [os.readlink(f"{descriptors}/{fd}") for fd in os.listdir(descriptors)
           if os.path.lexists(f"{descriptors}/{fd}")]
mapped = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(json.dumps({
    "losses": losses,
    "nodes": [t for t in targets if t.startswith("/dev/nvidia")]
    + [m for m in mapped if m.startswith("/dev/nvidia")],
    "libcuda": [m for m in mapped if "/libcuda.so" in m],
}))
"""


# A tensor goes to another process and back; each sees what the other writes.
SHARE = """
import torch
import torch.multiprocessing as mp

def work(tensors, sums):
    for _ in range(20):
        tensor = tensors.get()
        tensor += 1
        sums.put(tensor.double().sum().item())
        del tensor

if __name__ == "__main__":
    context = mp.get_context("spawn")
    tensors, sums = context.Queue(), context.Queue()
    child = context.Process(target=work, args=(tensors, sums))
    child.start()
    for turn in range(20):
        tensor = torch.full((1 << 20,), turn, device="cuda")
        tensors.put(tensor)
        assert sums.get(timeout=100) == (turn + 1) * (1 << 20), turn
        assert int(tensor[12345]) == turn + 1
    child.join(100)
    print("ok", child.exitcode)
"""


def native(python: str, *arguments: str) -> str:
    """Standard output of a program run on the GPU itself."""
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=True, timeout=280
    )
    return done.stdout


def test_resnet_trains_with_the_native_losses(
    nvidia_host: Host, framework_python: str, transport: str
) -> None:
    expected = json.loads(native(framework_python, "-c", TRAIN).splitlines()[-1])
    done = nvidia_host.run(transport, framework_python, "-c", TRAIN, timeout_s=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found["nodes"] == []
    assert found["libcuda"] == [str((nvidia_host.native / "lib/guest/libcuda.so.1").resolve())]


@pytest.mark.timeout(600)
def test_libraries_agree_with_the_cpu(
    nvidia_host: Host, framework_python: str, transport: str, tmp_path: Path
) -> None:
    """cuBLAS, cuFFT, cuSOLVER, cuSPARSE, cuDNN, sorting, random numbers, graphs, bf16, Triton."""
    (tmp_path / "gpupool").symlink_to(ROOT / "gpupool")
    names = ("libraries", "torch_graph_50_layers", "cublas_4096_bf16", "torch_compile_softmax")
    done = nvidia_host.run(
        transport,
        *(framework_python, "-m", "gpupool.bench.agent", *names),
        timeout_s=500,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in told] == list(names)
    assert not [each for each in told if "skip" in each]


def test_no_device_file_is_needed(nvidia_host: Host, framework_python: str, tmp_path: Path) -> None:
    """In a mount namespace where every NVIDIA node is /dev/null. Needs root for the namespace."""
    if os.geteuid() != 0:
        pytest.skip("not root: cannot hide the device files")
    program = "import torch; print((torch.ones(4, device='cuda') + 1).sum().item())"
    (tmp_path / "program.py").write_text(program)
    hide = 'for n in /dev/nvidia*; do [ -c "$n" ] && mount --bind /dev/null "$n"; done; exec "$@"'
    done = nvidia_host.run(
        "shm",
        *("unshare", "-m", "sh", "-c", hide, "sh"),
        *(framework_python, str(tmp_path / "program.py")),
    )
    assert (done.stdout, done.returncode) == ("8.0\n", 0), done.stderr


@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_processes_share_tensors(
    nvidia_host: Host, framework_python: str, transport: str, tmp_path: Path, allocator: str
) -> None:
    """torch.multiprocessing: cuIpc handles and events, or exported physical memory."""
    (tmp_path / "share.py").write_text(SHARE)
    done = nvidia_host.run(
        transport,
        framework_python,
        str(tmp_path / "share.py"),
        timeout_s=280,
        PYTORCH_CUDA_ALLOC_CONF=allocator,
    )
    assert done.stdout == "ok 0\n", done.stderr
