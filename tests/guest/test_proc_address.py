"""cuGetProcAddress, held to what driver 580 (CUDA 13.0) answers for every name and version.

The golden file was measured with the real driver: one line where the answer changes, an empty
symbol where a version is too low. A flavour (flags 2) that answers like the default has no lines
of its own.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.guest.shim import run_without_host

GOLDEN = Path(__file__).parent.parent / "golden" / "proc_addresses_13.0.csv"
VERSIONS = [major * 1000 + minor * 10 for major in range(2, 13) for minor in range(10)] + [13000]
LEGACY, PER_THREAD = 1, 2

# Asks for every (name, version, flags) and names the symbol behind each pointer with dlsym.
ASK = """
import ctypes, json, sys
driver = ctypes.CDLL(sys.argv[1])
queries = json.load(open(sys.argv[2]))
symbols = {}
for name in queries["symbols"]:
    address = ctypes.cast(getattr(driver, name), ctypes.c_void_p).value
    symbols.setdefault(address, []).append(name)
answers = []
for name, version, flags in queries["lookups"]:
    pointer, status = ctypes.c_void_p(5), ctypes.c_int(9)
    result = driver.cuGetProcAddress_v2(
        name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(flags), ctypes.byref(status))
    answers.append([result, status.value, symbols.get(pointer.value, [])])
print(json.dumps(answers))
"""


def expected() -> dict[tuple[str, int], list[tuple[int, str]]]:
    """For each name and flags, the versions at which the answer changes and to which symbol."""
    changes: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    with GOLDEN.open() as file:
        for row in csv.DictReader(file):
            changes[row["name"], int(row["flags"])].append((int(row["version"]), row["symbol"]))
    for name, _ in list(changes):
        changes.setdefault((name, PER_THREAD), changes[name, 0])
        changes[name, LEGACY] = changes[name, 0]
    return changes


def ask(tmp_path: Path, symbols: set[str], lookups: list[tuple[str, int, int]]) -> list[Any]:
    """What our library answers."""
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps({"symbols": sorted(symbols), "lookups": lookups}))
    answers: list[Any] = json.loads(run_without_host(ASK, str(queries)))
    return answers


def test_every_lookup_answers_like_the_driver(tmp_path: Path) -> None:
    changes = expected()
    symbols = {symbol for steps in changes.values() for _, symbol in steps if symbol}
    lookups = [(name, version, flags) for name, flags in changes for version in VERSIONS]
    assert len(lookups) > 100_000
    wrong = []
    for lookup, (result, status, found) in zip(
        lookups, ask(tmp_path, symbols, lookups), strict=True
    ):
        name, version, flags = lookup
        wanted = [symbol for since, symbol in changes[name, flags] if since <= version][-1]
        right = status == 0 and wanted in found if wanted else status == 2 and not found
        if result != 0 or not right:
            wrong.append(f"{lookup}: expected {wanted or 'nothing'}, got {found}, status {status}")
    assert not wrong, "\n".join(wrong[:20])


def test_names_that_do_not_exist_and_arguments_that_are_wrong(tmp_path: Path) -> None:
    lookups = [
        ("cuMemAlloc_v2", 13000, 0),  # names have no suffixes
        ("cuLaunchKernel_ptsz", 13000, 2),
        ("CUINIT", 13000, 0),
        ("", 13000, 0),
        ("cuMemAlloc", 0, 0),  # too old
        ("cuMemAlloc", 13010, 0),  # newer than the driver
        ("cuMemAlloc", 13000, 4),  # no such flag
        ("cuMemAlloc", -5, 0),  # read as a very new version
    ]
    answers = [(result, status) for result, status, _ in ask(tmp_path, {"cuInit"}, lookups)]
    untouched = 9
    assert answers == [
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 2),
        (1, untouched),
        (1, untouched),
        (0, 0),
    ]


def test_the_older_form_answers_not_found() -> None:
    printed = run_without_host("""
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
pointer = ctypes.c_void_p(5)
for name, version in ((b"nope", 13000), (b"cuLaunchKernelEx", 11000), (b"cuInit", 12000)):
    result = driver.cuGetProcAddress(name, ctypes.byref(pointer), version, ctypes.c_uint64(0))
    print(result, bool(pointer.value))
print(driver.cuGetProcAddress(b"cuInit", None, 12000, ctypes.c_uint64(0)))
""")
    assert printed.split("\n")[:4] == ["500 False", "500 False", "0 True", "1"]
