"""`./run lint`: every formatter, linter and type checker, each of them even when one complains.

The tools are pinned in pyproject.toml. `--fix` lets the formatters rewrite files instead of only
looking.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.tree import ROOT, files

PYTHON_FOLDERS = ["wire", "hostd", "guest", "cli", "bench", "tests"]


def named(*suffixes: str) -> list[str]:
    """Source files with these suffixes, as the tools take them."""
    return [str(name) for name in files(*suffixes)]


def commands(fix: bool) -> dict[str, list[str]]:
    """Name and command line of every check."""
    cpp = [name for name in named(".cpp", ".hpp") if not name.startswith("tests/golden/")]
    look = [] if fix else ["--check"]
    text = named(".md", ".py", ".cpp", ".hpp", ".yaml", ".toml", ".j2")
    python = [folder for folder in PYTHON_FOLDERS if (ROOT / folder).exists()]
    return {
        "ruff format": ["ruff", "format", *look, *python],
        "ruff check": ["ruff", "check", *(["--fix"] if fix else []), *python],
        "mypy": ["mypy", "gpupool", "bench", "tests"],
        "import-linter": ["lint-imports", "--config", ".importlinter"],
        "clang-format": ["clang-format", "-i" if fix else "--dry-run", "--Werror", *cpp],
        "codespell": ["codespell", "--ignore-words-list=inout,nd,ans,fo,ro,te,lod", *text],
        "yamllint": ["yamllint", "--strict", "-c", ".yamllint.yaml", *named(".yaml", ".yml")],
        "shellcheck": ["shellcheck", "run", ".ci/run", *named(".sh")],
    }


def main() -> int:
    """Runs the checks; exit code 1 when any found something."""
    parser = argparse.ArgumentParser(prog="./run lint", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="let formatters and ruff rewrite files")
    parser.add_argument("names", nargs="*", help="only these checks")
    arguments = parser.parse_args()
    failed = []
    count = 0
    for name, command in commands(arguments.fix).items():
        if arguments.names and name not in arguments.names:
            continue
        count += 1
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        verdict = "ok" if done.returncode == 0 else "FAILED"
        print(f"{name:16s} {verdict:8s} {time.perf_counter() - start:5.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    print(f"{count - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
