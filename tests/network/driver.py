"""Runs `gpupool network` again and again in one process: the machine's first, and its last.

A command line a line, as JSON; the exit code and what was said, as JSON. It ends with its input.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from gpupool.cli import app
from gpupool.hostd import network_setup

assert network_setup  # once, and not with the first command

if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = app.main(["network", *json.loads(line)])
        print(json.dumps([code, said.getvalue()]), flush=True)
