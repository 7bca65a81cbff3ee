"""`./run lint`: every formatter, linter and type checker, all of them run even when one complains.

Each tool is pinned in pyproject.toml. `--fix` lets the formatters rewrite files instead of only looking.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON_FOLDERS = ["wire", "hostd", "guest", "cli", "bench", "tests"]
CPP_SUFFIXES = {".cpp", ".hpp"}


def tracked(*patterns: str) -> list[str]:
    """Files that git knows (committed or about to be) matching the patterns."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def commands(fix: bool) -> dict[str, list[str]]:
    """Name and command line of every check."""
    cpp = [name for name in tracked("*.cpp", "*.hpp") if not name.startswith("tests/golden/")]
    look = [] if fix else ["--check"]
    text = tracked("*.md", "*.py", "*.cpp", "*.hpp", "*.yaml", "*.toml", "*.j2")
    python = [folder for folder in PYTHON_FOLDERS if (ROOT / folder).exists()]
    return {
        "ruff format": ["ruff", "format", *look, *python],
        "ruff check": ["ruff", "check", *(["--fix"] if fix else []), *python],
        "mypy": ["mypy", "gpupool", "bench", "tests"],
        "import-linter": ["lint-imports", "--config", ".importlinter"],
        "clang-format": ["clang-format", "-i" if fix else "--dry-run", "--Werror", *cpp],
        "codespell": ["codespell", "--ignore-words-list=inout,nd,ans,fo,ro,te", *text],
        "yamllint": ["yamllint", "--strict", "-c", ".yamllint.yaml", *tracked("*.yaml", "*.yml")],
        "shellcheck": ["shellcheck", "run", ".ci/run", *tracked("*.sh")],
    }


def main() -> int:
    """Runs the checks; exit code 1 when any found something."""
    parser = argparse.ArgumentParser(prog="./run lint", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="let formatters and ruff rewrite files")
    parser.add_argument("names", nargs="*", help="only these checks")
    arguments = parser.parse_args()
    failed = []
    for name, command in commands(arguments.fix).items():
        if arguments.names and name not in arguments.names:
            continue
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        verdict = "ok" if done.returncode == 0 else "FAILED"
        print(f"{name:16s} {verdict:8s} {time.perf_counter() - start:5.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    # The closing line that the runner of ./ci reads.
    print(f"{len(commands(False)) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
