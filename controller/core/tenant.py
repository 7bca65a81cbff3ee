"""A tenant, and how much of the pool it may hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.vgpu import NAME


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits; None: no limit. An on-demand vGPU counts as one always, its share while held."""

    vgpus: int | None = None
    compute_percent: int | None = None  # summed over all its vGPUs: 250 is two and a half GPUs
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What a tenant holds now."""

    vgpus: int = 0
    compute_percent: int = 0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it is kept."""

    id: str
    name: str
    quota: Quota = field(default_factory=Quota)
    use: Use = field(default_factory=Use)
    version: int = 1
    created_ms: int = 0


def check_name(name: str) -> None:
    """Raises RefusedError."""
    if not NAME.fullmatch(name):
        raise RefusedError(
            Kind.INVALID,
            f"The name {name!r} is not allowed: 1 to 63 of a-z, 0-9, '.', '_', '-', beginning and "
            "ending with a letter or digit.",
        )


def over_quota(tenant: Tenant, asked: Use) -> RefusedError:
    """The refusal that says which limit is in the way and what is left of each."""
    rows = [
        ("vgpus", asked.vgpus, tenant.use.vgpus, tenant.quota.vgpus),
        (
            "compute_percent",
            asked.compute_percent,
            tenant.use.compute_percent,
            tenant.quota.compute_percent,
        ),
        ("memory_mib", asked.memory_mib, tenant.use.memory_mib, tenant.quota.memory_mib),
    ]
    beyond = [
        f"{name}: asked {more}, in use {used} of {limit}"
        for name, more, used, limit in rows
        if limit is not None and more > 0 and used + more > limit
    ]
    left = {name: None if limit is None else limit - used for name, _, used, limit in rows}
    return RefusedError(
        Kind.QUOTA,
        f"The quota of tenant {tenant.name!r} does not allow it ({'; '.join(beyond)}). Delete "
        "vGPUs, ask for less, or ask an administrator for a larger quota.",
        {"left": left},
    )
