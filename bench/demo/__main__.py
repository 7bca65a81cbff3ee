"""`./run demo`: one CUDA program on a vGPU of whatever this machine has, told in a few lines.

With an NVIDIA GPU and PyTorch also training steps of ResNet-50. Exits 0 when every result was
right.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.demo.compile import HERE, CompileError, compile_host, compile_ptx

RESNET = """
import json, sys, time
import torch, torchvision
torch.manual_seed(0)
net = torchvision.models.resnet50().cuda()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
x = torch.randn(16, 3, 224, 224, device='cuda'); y = torch.randint(0, 1000, (16,), device='cuda')
losses = []
for _ in range(3):
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward(); optimizer.step()
    losses.append(loss.item()); took = time.perf_counter() - start
print(json.dumps({'losses': losses, 'step_ms': took * 1000}))
sys.exit(0 if losses[-1] < losses[0] else 1)
"""


def run_forwarded(command: list[str], statistics: Path) -> tuple[int, str]:
    """Runs a program through `gpupool run`; returns its exit code and standard output."""
    environment = dict(os.environ, GPUPOOL_STATISTICS_FILE=str(statistics))
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "gpupool.cli", "run", "--", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )
    return done.returncode, done.stdout


def tell(label: str, text: str) -> None:
    """One aligned line of the demo's story."""
    print(f"  {label:<12} {text}", flush=True)


def tell_statistics(statistics: dict[str, Any]) -> None:
    """What went over the wire."""
    waits: dict[str, int] = statistics["waits"]
    total = sum(waits.values())
    often = ", ".join(
        f"{name} {count}" for name, count in sorted(waits.items(), key=lambda w: -w[1])[:4]
    )
    tell("transport", statistics["transport"])
    tell("messages", f"{statistics['messages']} sent, {total} of them waited for ({often})")


def plate(folder: Path) -> bool:
    """The heat demo. True when its result was right."""
    compiler = compile_ptx(HERE / "kernels.cu", folder / "kernels.ptx")
    native = Path(os.environ["GPUPOOL_NATIVE_DIR"])
    compile_host(folder / "host", native / "lib" / "guest")
    print("Heat on a plate: 100 steps of a CUDA kernel, a reduction, and the same on the CPU")
    start = time.perf_counter()
    code, output = run_forwarded(
        [str(folder / "host"), str(folder / "kernels.ptx")], folder / "plate.json"
    )
    took = time.perf_counter() - start
    if code not in (0, 1) or not output:
        tell("failed", f"the program ended with exit code {code}")
        return False
    result = json.loads(output)
    tell("device", f"{result['device']}, a vGPU; kernels compiled by {compiler}")
    tell_statistics(json.loads((folder / "plate.json").read_text()))
    tell(
        "time",
        f"{took:.2f} s in all, {result['setup_s']:.2f} s to connect and load, "
        f"{result['compute_s'] * 1000:.1f} ms for {result['launches']} launches and the copies",
    )
    verdict = "right" if result["right"] else "WRONG"
    tell(
        "result",
        f"{verdict}: heat {result['heat']} (CPU {result['expected_heat']}), "
        f"worst point off by {result['worst_error']}",
    )
    return bool(result["right"])


def resnet(folder: Path) -> bool:
    """Three training steps of ResNet-50. True when the loss fell."""
    print("ResNet-50 in PyTorch: three training steps, unmodified")
    code, output = run_forwarded([sys.executable, "-c", RESNET], folder / "resnet.json")
    if not output:
        tell("failed", f"the program ended with exit code {code}")
        return False
    result = json.loads(output.strip().splitlines()[-1])
    tell_statistics(json.loads((folder / "resnet.json").read_text()))
    losses = " -> ".join(f"{loss:.3f}" for loss in result["losses"])
    tell(
        "step",
        f"{result['step_ms']:.1f} ms; loss {losses}",
    )
    return code == 0


def main() -> int:
    """Runs the demos that this machine can run."""
    with tempfile.TemporaryDirectory(prefix="gpupool-demo-") as name:
        folder = Path(name)
        try:
            right = plate(folder)
        except CompileError as error:
            print(f"demo: cannot compile: {error}", file=sys.stderr)
            return 2
        has_gpu = Path("/dev/nvidiactl").exists()
        if has_gpu and importlib.util.find_spec("torchvision") is not None:
            right = resnet(folder) and right
        elif has_gpu:
            print("ResNet-50: skipped, PyTorch and torchvision are not installed here")
        return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
