"""`./run bench`, `python -m bench`: the same as `gpupool bench`."""

from __future__ import annotations

import argparse
import sys

from gpupool.bench import command


def main() -> int:
    """Reads the command line and runs it."""
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description=command.DESCRIPTION,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return command.main(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
