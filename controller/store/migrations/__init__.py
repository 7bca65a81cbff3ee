"""Alembic's environment: `python -m gpupool.controller migrate`, or by itself at each start."""
