"""Brings the database's tables to what this version expects.

Replicas that start together wait for each other: SQLite's BEGIN IMMEDIATE, an advisory lock of
PostgreSQL. A database that a newer version has migrated is refused, not guessed at.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from gpupool.controller.core.errors import StoreError

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x67707570  # "gpup"; any number that no other program on this database uses


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(engine: Engine) -> str:
    """Applies what is missing; the revision that the database has then. Raises StoreError."""
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            scripts = ScriptDirectory.from_config(alembic_config())
            newest = scripts.get_current_head()
            known = {script.revision for script in scripts.walk_revisions()}
            present = MigrationContext.configure(connection).get_current_revision()
            if present is not None and present not in known:
                raise StoreError(
                    f"the database is at revision {present}, which this version does not know: it "
                    "was used with a newer controller. Run that one, or restore a backup"
                )
            if present != newest:
                command.upgrade(alembic_config(connection), "head")
            connection.commit()
            return str(newest)
    except SQLAlchemyError as error:
        lines = str(getattr(error, "orig", None) or error).splitlines()
        raise StoreError(f"the database cannot be brought up to date: {lines[0]}") from error
