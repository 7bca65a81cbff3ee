"""What comes in over REST: bodies of requests, checked once, here."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gpupool.controller.core.gpu import Pool
from gpupool.controller.core.token import Role
from gpupool.controller.core.vgpu import (
    DEFAULT_PRIORITY,
    HIGHEST_PRIORITY,
    MOST_IN_A_GROUP,
    MOST_LABELS,
    MOST_MEMORY_MIB,
    NAME,
    Ask,
    Mode,
    Policy,
    Selector,
    Share,
    Strategy,
)

Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$", max_length=63)]
Word = Annotated[str, StringConstraints(pattern=r"^[ -~]+$", min_length=1, max_length=63)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=63)]
Percent = Annotated[int, Field(ge=0, le=100)]
Memory = Annotated[int, Field(ge=0, le=MOST_MEMORY_MIB)]
Priority = Annotated[int, Field(ge=0, le=HIGHEST_PRIORITY)]
Limit = Annotated[int, Field(ge=0, le=1 << 40)]


class Given(BaseModel):
    """A request's body: what it does not know is an error, and "5" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SelectorIn(Given):
    """Which GPUs are good enough."""

    models: list[Word] = Field(default=[], max_length=16)
    gpu_memory_mib: Memory = 0
    node: str = Field(default="", max_length=63, pattern=r"^[ -~]*$")
    labels: dict[Label, Label] = Field(default={}, max_length=MOST_LABELS)

    def inside(self) -> Selector:
        """For the core."""
        return Selector(tuple(self.models), self.gpu_memory_mib, self.node, self.labels)


class VgpuSpec(Given):
    """One vGPU that is wanted."""

    name: Name
    compute_percent: Percent = Field(default=0, description="0: only what others leave")
    memory_mib: Memory = Field(default=0, description="0: not limited")
    policy: Annotated[Policy, Field(strict=False)] = Policy.ELASTIC
    priority: Priority = DEFAULT_PRIORITY

    def ask(self, mode: Mode) -> Ask:
        """For the core."""
        share = Share(self.compute_percent, self.memory_mib)
        return Ask(self.name, share, self.policy, self.priority, mode)


class VgpuIn(VgpuSpec):
    """POST /vgpus."""

    tenant: Word | None = Field(default=None, description="its name or id; not for tenants' tokens")
    mode: Annotated[Mode, Field(strict=False)] = Mode.RESERVED
    selector: SelectorIn = SelectorIn()
    strategy: Annotated[Strategy, Field(strict=False)] = Strategy.BINPACK


class GroupRequest(Given):
    """POST /vgpus/group: all of them, or none."""

    vgpus: list[VgpuSpec] = Field(min_length=1, max_length=MOST_IN_A_GROUP)
    tenant: Word | None = None
    mode: Annotated[Mode, Field(strict=False)] = Mode.RESERVED
    selector: SelectorIn = SelectorIn()
    strategy: Annotated[Strategy, Field(strict=False)] = Strategy.BINPACK
    same_node: bool = True
    distinct_gpus: bool = True


class VgpuPatch(Given):
    """PATCH /vgpus/{id}; what is left out stays."""

    compute_percent: Percent | None = None
    memory_mib: Memory | None = None
    policy: Annotated[Policy | None, Field(strict=False)] = None
    priority: Priority | None = None


class NodePatch(Given):
    """PATCH /nodes/{id}."""

    cordoned: bool = Field(description="true: nothing new is placed there")


class DrainIn(Given):
    """PUT /nodes/{id}/drain."""

    deadline_s: int | None = Field(
        default=None, ge=0, le=86400 * 30, description="then end what still runs; null: wait"
    )


class GpuPatch(Given):
    """PATCH /gpus/{id}: to the other pool."""

    pool: Annotated[Pool, Field(strict=False, description='"pooled" or "native"')]
    deadline_s: int | None = Field(
        default=None, ge=0, le=86400 * 30, description="then end what still runs; null: wait"
    )


class QuotaModel(Given):
    """Limits; null: none."""

    vgpus: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    compute_percent: Limit | None = None
    memory_mib: Limit | None = None


class TenantIn(Given):
    """POST /tenants."""

    name: Name
    quota: QuotaModel = QuotaModel()


class TenantPatch(Given):
    """PATCH /tenants/{id}: the whole quota."""

    quota: QuotaModel


class TokenIn(Given):
    """POST /tokens."""

    name: Name
    role: Annotated[Role, Field(strict=False)]
    tenant: Word | None = Field(default=None, description="name or id, for the role tenant")
    node: Name | None = Field(default=None, description="the node's name, for the role node")
    expires_in_s: int | None = Field(default=None, ge=1, le=86400 * 3660)
