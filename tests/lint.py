"""`./run lint`: every formatter, linter and type checker, each of them even when one complains.

The tools are pinned in pyproject.toml. `--fix` lets the formatters rewrite files instead of only
looking; `--tidy` runs clang-tidy over the C++ instead, which takes ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ansible import collection
from tests.tree import ROOT, files

# Programs without suffix, for a Python of the host's own.
HOOKS = ["qemu_hooks/qemu", "kata_hooks/gpupool-kata"]
TIDY_FOLDERS = ["wire", "guest", "hostd"]
PYTHON_FOLDERS = ["wire", "hostd", "guest", "controller", "cli", "bench", "tests", "ansible"]


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
        "ruff format": ["ruff", "format", *look, *python, *HOOKS],
        "ruff check": ["ruff", "check", *(["--fix"] if fix else []), *python, *HOOKS],
        "mypy": ["mypy", "--scripts-are-modules", "gpupool", "bench", "tests", *HOOKS],
        # Ansible's own folder hides behind ours of the same name: what it has is not known here.
        "mypy plugins": [
            *("mypy", "--config-file=", "--strict", "--python-version=3.10"),
            *("--ignore-missing-imports", "--allow-subclassing-any", "--no-warn-return-any"),
            *("--disable-error-code=attr-defined", "ansible/plugins"),
        ],
        "import-linter": ["lint-imports", "--config", ".importlinter"],
        "clang-format": ["clang-format", "-i" if fix else "--dry-run", "--Werror", *cpp],
        "codespell": [
            "codespell",
            "--ignore-words-list=inout,nd,ans,fo,ro,te,lod,leas,groupin,drainin",
            *text,
        ],
        "yamllint": ["yamllint", "--strict", "-c", ".yamllint.yaml", *named(".yaml", ".yml")],
        "ansible-lint": ["ansible-lint", "--offline", "-q", "--profile", "production", "ansible"],
        "shellcheck": ["shellcheck", "run", ".ci/run", *named(".sh")],
    }


def tidy(only: list[str]) -> int:
    """Runs clang-tidy over the sources of the build; the number of files with findings."""
    build = Path(os.environ["GPUPOOL_NATIVE_DIR"])
    known = {
        str(Path(entry["file"]).relative_to(ROOT))
        for entry in json.loads((build / "compile_commands.json").read_text())
        if Path(entry["file"]).is_relative_to(ROOT)
    }
    chosen = [
        name
        for name in sorted(known)
        if name.split("/")[0] in TIDY_FOLDERS and (not only or name.startswith(tuple(only)))
    ]
    command = ["clang-tidy", "--quiet", "-p", str(build)]
    # The commands are those of g++.
    command.append("--extra-arg=-Wno-unknown-warning-option")

    def examine(name: str) -> bool:
        done = subprocess.run(
            [*command, name], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{name}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        good = sum(pool.map(examine, chosen))
    print(f"{good} passed, {len(chosen) - good} failed")
    return len(chosen) - good


def main() -> int:
    """Runs the checks; exit code 1 when any found something."""
    parser = argparse.ArgumentParser(prog="./run lint", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="let formatters and ruff rewrite files")
    parser.add_argument("--tidy", action="store_true", help="clang-tidy; slow")
    parser.add_argument("names", nargs="*", help="only these checks; with --tidy these paths")
    arguments = parser.parse_args()
    if arguments.tidy:
        return 1 if tidy(arguments.names) else 0
    failed = []
    count = 0
    for name, command in commands(arguments.fix).items():
        if arguments.names and name not in arguments.names:
            continue
        count += 1
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=collection.environment() if name == "ansible-lint" else None,
            capture_output=True,
            text=True,
            check=False,
        )
        verdict = "ok" if done.returncode == 0 else "FAILED"
        print(f"{name:16s} {verdict:8s} {time.perf_counter() - start:5.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    print(f"{count - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
