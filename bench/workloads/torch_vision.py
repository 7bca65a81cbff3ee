"""ResNet-50 (He et al., 2015), written out here so that nothing but PyTorch is needed."""

from __future__ import annotations

from typing import Any

from gpupool.bench.workloads.base import MODEL, Running, Setting, Workload
from gpupool.bench.workloads.torch_tools import Torch

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and number of blocks
_CLASSES = 1000


def resnet50(torch: Any, stages: tuple[tuple[int, int], ...] = _STAGES) -> Any:
    """The network on the CPU."""
    nn = torch.nn
    # A base that mypy does not know: torch is not there where the types are checked.
    base: Any = nn.Module

    class Bottleneck(base):  # type: ignore[misc]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            after = width * 4
            self.body = nn.Sequential(
                *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
                *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)),
                *(nn.ReLU(True), nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)),
            )
            self.side = (
                nn.Sequential(
                    nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
                )
                if stride != 1 or before != after
                else nn.Identity()
            )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.side(x))

    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for number, (width, blocks) in enumerate(stages):
        for block in range(blocks):
            layers.append(Bottleneck(before, width, 2 if block == 0 and number > 0 else 1))
            before = width * 4
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, _CLASSES)]
    return nn.Sequential(*layers)


def _network(t: Torch) -> Any:
    t.torch.manual_seed(1)
    return resnet50(t.torch, ((8, 1), (16, 1)) if t.small else _STAGES).to(t.device)


def _train(setting: Setting) -> Running:
    """A step: batch in, forward in bfloat16, backward, SGD, the loss read."""
    t = Torch(setting)
    batch, size = (2, 32) if setting.small else (32, 224)
    images = t.random(batch, 3, size, size, device="cpu")
    labels = t.torch.randint(0, _CLASSES, (batch,))

    def trainer() -> Any:
        net = _network(t)
        optimizer = t.torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

        def step() -> float:
            x, y = images.to(t.device, non_blocking=True), labels.to(t.device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with t.autocast():
                loss = t.torch.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            return float(loss.item())

        return step

    def result() -> object:
        # Training goes other ways from other last bits, so only its first steps are compared.
        with t.torch.enable_grad():
            fresh = trainer()
            return t.torch.tensor([fresh() for _ in range(3)])

    return t.running(trainer(), result)


def _infer(setting: Setting) -> Running:
    """One image there, its answer back."""
    t = Torch(setting)
    net = _network(t).eval()
    size = 32 if setting.small else 224
    image = t.random(1, 3, size, size, device="cpu")

    def step() -> object:
        with t.torch.inference_mode():
            return net(image.to(t.device)).cpu()

    return t.running(step, step)


WORKLOADS = (
    Workload("resnet50_train", MODEL, _train, 2e-2, "torch", duration_factor=3),
    Workload("resnet50_infer", MODEL, _infer, 2e-2, "torch", duration_factor=2),
)
