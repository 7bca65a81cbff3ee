"""Options that several commands share, and how their values are checked."""

from __future__ import annotations

import argparse
import enum
import pwd
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from gpupool.cli.backend import UsageError

Json = Annotated[bool, typer.Option("--json", help="print JSON")]
AdminSocket = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="ask the hostd behind this socket (needed if there are two)"),
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="begin it and leave; `gpupool operation` tells the rest")
]
_MEMORY = re.compile(r"([0-9]+)\s*(|M|MiB|G|GiB)")
_TIME = re.compile(r"([0-9]+)\s*(|s|m|h|d)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_MIB = 1 << 24


class Policy(str, enum.Enum):
    """Whether a share is also a limit."""

    ELASTIC = "elastic"
    HARD = "hard"


class Mode(str, enum.Enum):
    """When a vGPU holds what it has."""

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"


class Strategy(str, enum.Enum):
    """Which of the GPUs that fit."""

    BINPACK = "binpack"
    SPREAD = "spread"


def checked(parse: Callable[[str], Any]) -> Callable[[str | None], str | None]:
    """A check of one option by a function that raises ArgumentTypeError; the text stays a text."""

    def check(text: str | None) -> str | None:
        try:
            if text is not None:
                parse(text)
        except argparse.ArgumentTypeError as error:
            raise typer.BadParameter(str(error)) from error
        return text

    return check


def share_percent(text: str) -> int:
    """0 to 100. Raises ArgumentTypeError."""
    digits = text.removesuffix("%")
    if not digits.isdecimal() or int(digits) > 100:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is a percentage of one GPU from 0 to 100"
        )
    return int(digits)


def quota_mib(text: str) -> int:
    """MiB, or with a unit: 0, 512, 512M, 10G. Raises ArgumentTypeError."""
    match = _MEMORY.fullmatch(text)
    number = int(match[1]) * (1024 if match[2].startswith("G") else 1) if match else -1
    if not 0 <= number <= _MOST_MIB:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is an amount of GPU memory in MiB, or like 512M or 10G"
        )
    return number


def size(compute: str | None, memory: str | None) -> tuple[int, int]:
    """Percent and MiB, from --compute and --memory. Raises UsageError where both say nothing."""
    percent = share_percent(compute) if compute else 0
    memory_mib = quota_mib(memory) if memory else 0
    if not percent and not memory_mib:
        raise UsageError("say what it gets: --compute, --memory, or both")
    return percent, memory_mib


def duration_s(text: str) -> int:
    """Seconds, or with a unit: 90, 90s, 5m, 2h, 1d. Raises ArgumentTypeError."""
    match = _TIME.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed is a time in seconds, or like 90s, 5m, 2h or 1d"
        )
    return int(match[1]) * _SECONDS[match[2]]


def labels(texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE each. Raises UsageError."""
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise UsageError(f"given --label {text!r}, allowed is KEY=VALUE")
        found[key] = value
    return found


def uid(text: str) -> int:
    """Of a user's name, or the number itself. Raises UsageError."""
    if text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError as error:
        raise UsageError(f"given --user {text!r}, and this machine has none") from error


def user(uid: int) -> str:
    """Its name here, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# Behind the functions that check them.
Deadline = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        callback=checked(duration_s),
        help="end sessions after so long, like 0, 90s or 10m; default: wait for them",
    ),
]
# Of a vGPU.
Compute = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        callback=checked(share_percent),
        help="share in percent of the GPU; 0: none of its own, it takes what others leave",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="M",
        callback=checked(quota_mib),
        help="memory in MiB, or like 512M, 10G; 0: not limited",
    ),
]
# Of the vGPUs of a virtual machine or container.
Count = Annotated[int, typer.Option(metavar="N", min=1, max=16, help="how many vGPUs of this size")]
SharePolicy = Annotated[Policy, typer.Option(help="elastic or hard", metavar="elastic|hard")]


def reserved_while(runs: str) -> Any:
    """The option --mode: how long what is reserved stays so."""
    return typer.Option(
        help=f"reserved while {runs}, or on-demand: while its programs run",
        metavar="reserved|on-demand",
    )
