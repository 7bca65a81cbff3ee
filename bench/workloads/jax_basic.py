"""JAX: a chain of compiled steps, and a training step of a small network."""

from __future__ import annotations

import os
from typing import Any

from gpupool.bench.workloads.base import (
    LAUNCH,
    MODEL,
    Result,
    Running,
    Setting,
    UnavailableError,
    Workload,
)


def _jax(setting: Setting) -> Any:
    # Its default is to take three quarters of the GPU's memory, in every mode's process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ImportError as error:
        raise UnavailableError(f"JAX is not installed ({error})") from error
    kind = jax.devices()[0].platform
    if kind == "cpu" and setting.torch_device == "cuda":
        raise UnavailableError("this JAX has no GPU support")
    return jax


def _values(jax: Any, *arrays: Any) -> Result:
    found: list[float] = []
    for each in arrays:
        flat = jax.device_get(each).reshape(-1)
        found += [float(value) for value in flat[:: max(1, flat.size // 256)]]
    return Result(values=tuple(found))


def _chain(setting: Setting) -> Running:
    """A compiled step on the result of the one before: bound by dispatch."""
    jax = _jax(setting)
    np = jax.numpy
    start = np.linspace(0.0, 1.0, 64 if setting.small else 4096)
    step_of = jax.jit(lambda x: np.sin(x) * 0.5 + x * 0.25)
    state = [step_of(start)]
    count = 5 if setting.small else 100

    def step() -> None:
        for _ in range(count):
            state[0] = step_of(state[0])

    def result() -> Result:
        x = start
        for _ in range(5):
            x = step_of(x)
        return _values(jax, x)

    return Running(step, lambda: state[0].block_until_ready(), result, operations=count)


def _train(setting: Setting) -> Running:
    """Three layers, gradient descent, the loss read."""
    jax = _jax(setting)
    np = jax.numpy
    width = 16 if setting.small else 1024
    keys = jax.random.split(jax.random.PRNGKey(1), 5)
    x = jax.random.normal(keys[0], (width // 2, width))
    y = jax.random.normal(keys[1], (width // 2, width))
    first = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[2:]]

    def loss(weights: Any) -> Any:
        z = x
        for each in weights:
            z = np.tanh(z @ each)
        return ((z - y) ** 2).mean()

    @jax.jit
    def update(weights: Any) -> Any:
        value, slopes = jax.value_and_grad(loss)(weights)
        return value, [w - 0.1 * s for w, s in zip(weights, slopes, strict=True)]

    state = [first]

    def step() -> float:
        value, state[0] = update(state[0])
        return float(value)

    def result() -> Result:
        weights, losses = first, []
        for _ in range(3):
            value, weights = update(weights)
            losses.append(value)
        return _values(jax, np.stack(losses), weights[0])

    return Running(step, lambda: state[0][0].block_until_ready(), result)


WORKLOADS = (
    Workload("jax_chain", LAUNCH, _chain, 1e-4, "jax"),
    Workload("jax_train", MODEL, _train, 2e-2, "jax"),
)
