"""`gpupool bench`: how fast this GPU is through gpupool, beside native (all of it is in bench/)."""

from __future__ import annotations

from gpupool.bench.command import DESCRIPTION, EPILOG, add_arguments, main

__all__ = ["DESCRIPTION", "EPILOG", "add_arguments", "main"]
