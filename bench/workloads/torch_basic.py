"""PyTorch's small operations: launches, .item(), copies, and single calls of its libraries."""

from __future__ import annotations

from gpupool.bench.workloads.base import (
    GPU,
    ITEM,
    LAUNCH,
    PAGEABLE,
    PINNED,
    QUERY,
    SMALL_COPY,
    Running,
    Setting,
    Workload,
)
from gpupool.bench.workloads.torch_tools import Torch

_MIB = 1 << 20


def _add(setting: Setting) -> Running:
    """The smallest launch that PyTorch makes."""
    t = Torch(setting)
    a, ones = t.torch.zeros(64, device=t.device), t.torch.ones(64, device=t.device)
    count = 10 if setting.small else 100

    def step() -> None:
        for _ in range(count):
            a.add_(1)

    def result() -> object:
        ones.fill_(1)
        for _ in range(100):
            ones.add_(1)
        return ones

    return t.running(step, result, operations=count)


def _item(setting: Setting) -> Running:
    t = Torch(setting)
    a = t.torch.ones(64, device=t.device)
    return t.running(lambda: a[0].item(), lambda: t.torch.tensor([a[k].item() for k in range(8)]))


def _item_of_new(setting: Setting) -> Running:
    """A reduction and its number: what a training loop does with its loss."""
    t = Torch(setting)
    a = t.random(4096)
    return t.running(lambda: a.sum().item(), lambda: t.torch.tensor([a.sum().item()]))


def _synchronize(setting: Setting) -> Running:
    t = Torch(setting, only_gpu=True)
    a = t.torch.ones(64, device=t.device)
    return t.running(t.torch.cuda.synchronize, lambda: a + 1)


def _copy_4k(setting: Setting) -> Running:
    t = Torch(setting)
    host, device = t.random(1024, device="cpu"), t.torch.empty(1024, device=t.device)
    return t.running(lambda: device.copy_(host), lambda: device, bytes_moved=4096)


def _to_device(setting: Setting, pinned: bool) -> Running:
    t = Torch(setting)
    host = t.random((_MIB if setting.small else 64 * _MIB) // 4, device="cpu")
    host = t.pinned(host) if pinned else host
    device = t.torch.empty_like(host, device=t.device)
    return t.running(
        lambda: device.copy_(host, non_blocking=pinned),
        lambda: device,
        bytes_moved=host.numel() * 4,
    )


def _to_host(setting: Setting, pinned: bool) -> Running:
    t = Torch(setting)
    device = t.random((_MIB if setting.small else 64 * _MIB) // 4)
    host = t.torch.empty_like(device, device="cpu")
    host = t.pinned(host) if pinned else host

    def result() -> object:
        t.wait()
        return host

    return t.running(
        lambda: host.copy_(device, non_blocking=pinned), result, bytes_moved=host.numel() * 4
    )


def _matmul(setting: Setting) -> Running:
    t = Torch(setting)
    size = 64 if setting.small else 4096
    a = t.random(size, size, dtype=t.torch.bfloat16)
    return t.running(lambda: a @ a, lambda: a @ a)


def _matmul_small(setting: Setting) -> Running:
    """cuBLAS bound by launches: a hundred products of 128 x 128."""
    t = Torch(setting)
    a = t.random(128, 128) / 16
    count = 4 if setting.small else 100

    def step() -> None:
        for _ in range(count):
            t.torch.mm(a, a)

    return t.running(step, lambda: t.torch.mm(a, a), operations=count)


def _convolution(setting: Setting) -> Running:
    t = Torch(setting)
    batch, size = (1, 8) if setting.small else (8, 56)
    x, w = t.random(batch, 64, size, size), t.random(64, 64, 3, 3) / 24
    conv = t.torch.nn.functional.conv2d
    count = 2 if setting.small else 20

    def step() -> None:
        for _ in range(count):
            conv(x, w, padding=1)

    return t.running(step, lambda: conv(x, w, padding=1), operations=count)


def _fft(setting: Setting) -> Running:
    t = Torch(setting)
    x = t.random(4 if setting.small else 64, 4096)
    count = 2 if setting.small else 20

    def step() -> None:
        for _ in range(count):
            t.torch.fft.rfft(x)

    return t.running(step, lambda: t.torch.fft.rfft(x).abs(), operations=count)


WORKLOADS = (
    Workload("torch_add", LAUNCH, _add, 1e-6, "torch"),
    Workload("item", ITEM, _item, 1e-6, "torch"),
    Workload("sum_item", ITEM, _item_of_new, 1e-4, "torch"),
    Workload("torch_synchronize", QUERY, _synchronize, 1e-6, "torch"),
    Workload("torch_h2d_4KiB", SMALL_COPY, _copy_4k, 0.0, "torch"),
    Workload("torch_h2d_pageable_64MiB", PAGEABLE, lambda s: _to_device(s, False), 0.0, "torch"),
    Workload("torch_d2h_pageable_64MiB", PAGEABLE, lambda s: _to_host(s, False), 0.0, "torch"),
    Workload("torch_h2d_pinned_64MiB", PINNED, lambda s: _to_device(s, True), 0.0, "torch"),
    Workload("torch_d2h_pinned_64MiB", PINNED, lambda s: _to_host(s, True), 0.0, "torch"),
    Workload("cublas_4096_bf16", GPU, _matmul, 1e-2, "torch"),
    Workload("cublas_128", LAUNCH, _matmul_small, 1e-3, "torch"),
    Workload("cudnn_convolution", LAUNCH, _convolution, 1e-2, "torch"),
    Workload("cufft_4096", LAUNCH, _fft, 1e-3, "torch"),
)
