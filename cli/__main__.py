"""`python -m gpupool.cli`: the same as the `gpupool` command."""

import sys

from gpupool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
