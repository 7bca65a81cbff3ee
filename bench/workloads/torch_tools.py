"""What PyTorch's workloads share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpupool.bench.workloads.base import Result, Running, Setting, UnavailableError

_SAMPLES = 256


class Torch:
    """PyTorch and the device that a workload uses, seeded: every mode makes the same numbers."""

    def __init__(self, setting: Setting, only_gpu: bool = False) -> None:
        try:
            import torch
        except ImportError as error:
            raise UnavailableError(f"PyTorch is not installed ({error})") from error
        if only_gpu and setting.torch_device != "cuda":
            raise UnavailableError(f"it needs a GPU, and --torch-device is {setting.torch_device}")
        self.torch: Any = torch
        self.device = setting.torch_device
        self.on_gpu = self.device == "cuda"
        self.small = setting.small
        torch.manual_seed(1)

    def random(self, *shape: int, dtype: Any = None, device: str = "") -> Any:
        """Numbers made on the CPU, so that they are the same everywhere."""
        made = self.torch.randn(*shape)
        return made.to(device or self.device, dtype or self.torch.float32)

    def wait(self) -> None:
        """Everything queued is done."""
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def pinned(self, tensor: Any) -> Any:
        """In pinned memory, where there is a GPU."""
        return tensor.pin_memory() if self.on_gpu else tensor

    def autocast(self) -> Any:
        """bfloat16 where it pays."""
        return self.torch.autocast(self.device, self.torch.bfloat16)

    def running(
        self,
        step: Callable[[], object],
        result: Callable[[], Any],
        operations: int = 1,
        bytes_moved: int = 0,
    ) -> Running:
        """A workload whose result is a tensor, or several."""

        def values() -> Result:
            with self.torch.no_grad():
                return sample(result())

        return Running(step, self.wait, values, self.wait, operations, bytes_moved)


def sample(tensors: Any) -> Result:
    """Evenly spread numbers of tensors, and the mean of each one's magnitude."""
    found: list[float] = []
    for each in tensors if isinstance(tensors, list | tuple) else (tensors,):
        flat = each.detach().float().cpu().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        found += [float(value) for value in flat[::step][:_SAMPLES]]
        found.append(float(flat.abs().mean()))
    return Result(values=tuple(found))
