"""`python -m gpupool.controller`."""

from __future__ import annotations

import sys

from gpupool.controller.main import main

if __name__ == "__main__":
    sys.exit(main())
