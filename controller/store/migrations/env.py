"""Run by Alembic for every command: hands it the connection that store/migrate.py has opened."""

from __future__ import annotations

from alembic import context

from gpupool.controller.store.models import Base


def run() -> None:
    """Applies migrations within the caller's transaction."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite changes tables by copying them
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
