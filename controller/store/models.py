"""The tables. Alembic's migrations make them (store/migrations); a test compares the two.

Times are milliseconds since 1970 as integers, identifiers are text. What a GPU has free is kept in
columns of its own, with an index, since the scheduler asks for it at every allocation.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Names of constraints that are the same in both databases, so that migrations can change them.
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
_Id = String(64)
_Name = String(64)
_Word = String(16)
# SQLite numbers rows by itself only in a column that is exactly INTEGER PRIMARY KEY.
_Number = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention=_NAMES)


class TenantRow(Base):
    """A tenant, its quota and what it holds."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_Name, unique=True)
    quota_vgpus: Mapped[int | None]
    quota_compute_percent: Mapped[int | None] = mapped_column(BigInteger)
    quota_memory_mib: Mapped[int | None] = mapped_column(BigInteger)
    used_vgpus: Mapped[int] = mapped_column(default=0)
    used_compute_percent: Mapped[int] = mapped_column(BigInteger, default=0)
    used_memory_mib: Mapped[int] = mapped_column(BigInteger, default=0)
    version: Mapped[int] = mapped_column(default=1)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        CheckConstraint(
            "used_vgpus >= 0 AND used_compute_percent >= 0 AND used_memory_mib >= 0", "used"
        ),
    )


class TokenRow(Base):
    """A token, without its secret."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(_Name)
    role: Mapped[str] = mapped_column(_Word)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"), index=True)
    node_name: Mapped[str | None] = mapped_column(_Name)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    expires_ms: Mapped[int | None] = mapped_column(BigInteger)


class NodeRow(Base):
    """A node. What changes with every sign of life is in `beats`."""

    __tablename__ = "nodes"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(_Name, unique=True)
    state: Mapped[str] = mapped_column(_Word, index=True)
    cordoned: Mapped[bool] = mapped_column(Boolean(), default=False)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    endpoint: Mapped[str] = mapped_column(String(255))
    agent_version: Mapped[str] = mapped_column(_Name)
    incarnation: Mapped[int]
    generation: Mapped[int] = mapped_column(BigInteger)
    applied_generation: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int]
    created_ms: Mapped[int] = mapped_column(BigInteger)
    drain: Mapped[str] = mapped_column(_Word, default="none", server_default="none")
    drain_deadline_s: Mapped[int | None]
    drain_until_ms: Mapped[int | None] = mapped_column(BigInteger)


class LabelRow(Base):
    """One label of one node, where selectors look."""

    __tablename__ = "labels"
    node_id: Mapped[str] = mapped_column(
        ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(_Name, primary_key=True)
    value: Mapped[str] = mapped_column(_Name)
    __table_args__ = (Index(None, "key", "value"),)


class BeatRow(Base):
    """Signs of life of one node: written often, and by nobody who changes anything else."""

    __tablename__ = "beats"
    node_id: Mapped[str] = mapped_column(
        ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True
    )
    incarnation: Mapped[int]
    sequence: Mapped[int] = mapped_column(BigInteger)
    beat: Mapped[int] = mapped_column(BigInteger)
    heard_ms: Mapped[int] = mapped_column(BigInteger)


class GpuRow(Base):
    """A GPU and its room."""

    __tablename__ = "gpus"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"))
    uuid: Mapped[str] = mapped_column(_Name)
    position: Mapped[int]
    model: Mapped[str] = mapped_column(String(128))
    memory_mib: Mapped[int] = mapped_column(BigInteger)
    overhead_mib: Mapped[int] = mapped_column(BigInteger, default=0)
    compute_held_percent: Mapped[int] = mapped_column(default=0)
    memory_held_mib: Mapped[int] = mapped_column(BigInteger, default=0)
    local_compute_percent: Mapped[int] = mapped_column(default=0)
    local_memory_mib: Mapped[int] = mapped_column(BigInteger, default=0)
    compute_free_percent: Mapped[int]
    memory_free_mib: Mapped[int] = mapped_column(BigInteger)
    pool: Mapped[str] = mapped_column(_Word)
    pool_wanted: Mapped[str] = mapped_column(_Word)
    pool_deadline_s: Mapped[int | None]
    healthy: Mapped[bool] = mapped_column(Boolean())
    present: Mapped[bool] = mapped_column(Boolean())
    licensed: Mapped[bool] = mapped_column(Boolean())
    usable: Mapped[bool] = mapped_column(Boolean())
    version: Mapped[int]
    __table_args__ = (
        UniqueConstraint("node_id", "uuid"),
        # Nothing is given out twice, whatever the code above does.
        CheckConstraint("compute_held_percent BETWEEN 0 AND 100", "compute"),
        CheckConstraint("memory_held_mib BETWEEN 0 AND memory_mib", "memory"),
        Index(None, "usable", "compute_free_percent", "memory_free_mib", "id"),
    )


class UseRow(Base):
    """How busy a GPU is: written often."""

    __tablename__ = "gpu_use"
    gpu_id: Mapped[str] = mapped_column(ForeignKey("gpus.id", ondelete="CASCADE"), primary_key=True)
    load_percent: Mapped[int]
    memory_used_mib: Mapped[int] = mapped_column(BigInteger)


class VgpuRow(Base):
    """A vGPU."""

    __tablename__ = "vgpus"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(_Name)
    mode: Mapped[str] = mapped_column(_Word)
    policy: Mapped[str] = mapped_column(_Word)
    priority: Mapped[int]
    compute_percent: Mapped[int]
    memory_mib: Mapped[int] = mapped_column(BigInteger)
    compute_held_percent: Mapped[int]
    memory_held_mib: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(_Word)
    selector: Mapped[dict[str, Any]] = mapped_column(JSON)
    strategy: Mapped[str] = mapped_column(_Word)
    gpu_id: Mapped[str | None] = mapped_column(ForeignKey("gpus.id"), index=True)
    gpu_uuid: Mapped[str | None] = mapped_column(_Name)
    node_id: Mapped[str | None] = mapped_column(ForeignKey("nodes.id"), index=True)
    node_name: Mapped[str | None] = mapped_column(_Name)
    group_id: Mapped[str | None] = mapped_column(_Id)
    memory_used_mib: Mapped[int] = mapped_column(BigInteger, default=0)
    generation: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int]
    created_ms: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        Index(None, "tenant_id", "id"),
    )


class SessionRow(Base):
    """A client, once for each vGPU that it uses."""

    __tablename__ = "sessions"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    vgpu_id: Mapped[str] = mapped_column(_Id, primary_key=True, default="", index=True)
    node_name: Mapped[str] = mapped_column(_Name)
    gpu_id: Mapped[str | None] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id, index=True)
    program: Mapped[str] = mapped_column(String(255))
    started_ms: Mapped[int] = mapped_column(BigInteger)
    confirmed: Mapped[bool] = mapped_column(Boolean())
    after_sequence: Mapped[int] = mapped_column(BigInteger)
    ending: Mapped[bool] = mapped_column(Boolean(), default=False, server_default=false())


class OperationRow(Base):
    """A change that takes longer than a request."""

    __tablename__ = "operations"
    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(_Id)
    state: Mapped[str] = mapped_column(_Word)
    progress_percent: Mapped[int]
    message: Mapped[str] = mapped_column(String(512))
    tenant_id: Mapped[str | None] = mapped_column(_Id)
    created_ms: Mapped[int] = mapped_column(BigInteger)
    updated_ms: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index(None, "subject", "state"),)


class EventRow(Base):
    """What happened."""

    __tablename__ = "events"
    number: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    time_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(_Id)
    message: Mapped[str] = mapped_column(String(512))
    tenant_id: Mapped[str | None] = mapped_column(_Id)
    node_id: Mapped[str | None] = mapped_column(_Id)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    # AUTOINCREMENT: the number of a removed last row is not given out again.
    __table_args__ = (
        Index(None, "tenant_id", "number"),
        {"sqlite_autoincrement": True},
    )


class AuditRow(Base):
    """Who changed what."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    time_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(_Id)
    token_id: Mapped[str] = mapped_column(_Id)
    role: Mapped[str] = mapped_column(_Word)
    request_id: Mapped[str] = mapped_column(_Id)
    tenant_id: Mapped[str | None] = mapped_column(_Id)
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    __table_args__ = ({"sqlite_autoincrement": True},)


class AnswerRow(Base):
    """What a request with an idempotency key was answered."""

    __tablename__ = "answers"
    owner: Mapped[str] = mapped_column(_Id, primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[Any] = mapped_column(JSON)
    headers: Mapped[dict[str, str]] = mapped_column(JSON)
    created_ms: Mapped[int] = mapped_column(BigInteger, index=True)


class GateRow(Base):
    """Empty. PostgreSQL locks this table to let one change in at a time (see store/sql.py)."""

    __tablename__ = "gate"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
