"""Tenants: the port `Tenants`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from gpupool.controller.core.errors import Kind, RefusedError
from gpupool.controller.core.ports import Page
from gpupool.controller.core.tenant import Quota, Tenant, Use
from gpupool.controller.store.models import TenantRow

_SELECT = select(TenantRow.__table__)
RESOURCES = (
    (TenantRow.used_vgpus, TenantRow.quota_vgpus, "vgpus"),
    (TenantRow.used_compute_percent, TenantRow.quota_compute_percent, "compute_percent"),
    (TenantRow.used_memory_mib, TenantRow.quota_memory_mib, "memory_mib"),
)
_ADD = (
    update(TenantRow)
    .where(TenantRow.id == bindparam("tenant"))
    .values({used: used + bindparam(name) for used, _, name in RESOURCES})
)
# What is not asked for is not looked at: a quota that was lowered below what is held forbids more
# of that, not a share of 0.
ALLOWED = tuple(
    or_(bindparam(name) == 0, limit.is_(None), used + bindparam(name) <= limit)
    for used, limit, name in RESOURCES
)
_CHARGE = _ADD.where(*ALLOWED)


class SqlTenants:
    """See the port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, tenant_id: str) -> Tenant | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(TenantRow.id == tenant_id)).first()
        return _tenant(row) if row else None

    def by_name(self, name: str) -> Tenant | None:
        """See the port."""
        row = self._connection.execute(_SELECT.where(TenantRow.name == name)).first()
        return _tenant(row) if row else None

    def page(self, page: Page) -> list[Tenant]:
        """See the port."""
        found = _SELECT.where(TenantRow.id > page.after).order_by(TenantRow.id).limit(page.limit)
        return [_tenant(row) for row in self._connection.execute(found)]

    def add(self, tenant: Tenant) -> None:
        """See the port."""
        try:
            self._connection.execute(
                insert(TenantRow).values(
                    id=tenant.id,
                    name=tenant.name,
                    quota_vgpus=tenant.quota.vgpus,
                    quota_compute_percent=tenant.quota.compute_percent,
                    quota_memory_mib=tenant.quota.memory_mib,
                    version=tenant.version,
                    created_ms=tenant.created_ms,
                )
            )
        except IntegrityError:
            raise RefusedError(
                Kind.NAME_TAKEN, f"There is a tenant {tenant.name!r} already."
            ) from None

    def set_quota(self, tenant_id: str, quota: Quota) -> None:
        """See the port."""
        self._connection.execute(
            update(TenantRow)
            .where(TenantRow.id == tenant_id)
            .values(
                quota_vgpus=quota.vgpus,
                quota_compute_percent=quota.compute_percent,
                quota_memory_mib=quota.memory_mib,
                version=TenantRow.version + 1,
            )
        )

    def remove(self, tenant_id: str) -> None:
        """See the port."""
        self._connection.execute(delete(TenantRow).where(TenantRow.id == tenant_id))

    def charge(self, tenant_id: str, use: Use, *, force: bool = False) -> bool:
        """See the port."""
        done = self._connection.execute(_ADD if force else _CHARGE, _values(tenant_id, use, 1))
        return done.rowcount == 1

    def refund(self, tenant_id: str, use: Use) -> None:
        """See the port."""
        self._connection.execute(_ADD, _values(tenant_id, use, -1))


def _values(tenant_id: str, use: Use, sign: int) -> dict[str, Any]:
    return {
        "tenant": tenant_id,
        "vgpus": sign * use.vgpus,
        "compute_percent": sign * use.compute_percent,
        "memory_mib": sign * use.memory_mib,
    }


def _tenant(row: Any) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        quota=Quota(row.quota_vgpus, row.quota_compute_percent, row.quota_memory_mib),
        use=Use(row.used_vgpus, row.used_compute_percent, row.used_memory_mib),
        version=row.version,
        created_ms=row.created_ms,
    )
