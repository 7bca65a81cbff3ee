"""The database behind the core's ports: SQLAlchemy on SQLite or PostgreSQL."""
