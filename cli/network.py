"""`gpupool network`: bridges, veth pairs and rate limits of this machine, from network.toml."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpupool.cli import layout, table
from gpupool.cli.commands import ReaderLeftError
from gpupool.hostd.config_network import NETWORK_PATH, NetworkConfigError, load
from gpupool.hostd.core.network import NetworkError, Step

DESCRIPTION = """\
Where guests and remote clients reach this machine over TCP: bridges, veth pairs into network
namespaces, and how much each tenant may send and get. hostd itself needs none of it
(docs/network.md). All of it is in the kernel and gone after a reboot; gpupool-network.service
makes it again.
"""
EXITS = """\
exit codes: 0 done; 1 something could not be done (its line says why); 2 the command line or
network.toml is wrong
"""
APP = layout.group("network", DESCRIPTION, EXITS)
_CONFIG = Annotated[Path, typer.Option("--config", metavar="FILE", help="network.toml")]
_JSON = Annotated[bool, typer.Option("--json", help="print JSON")]
_CHECK = Annotated[bool, typer.Option("--check", help="say what would be done, and do nothing")]


def _verb(
    name: str, line: str, description: str, example: str
) -> Callable[[Callable[..., int]], Any]:
    """A verb of this noun, which asks nobody: it works on this machine's kernel."""

    def add(function: Callable[..., int]) -> Callable[..., int]:
        from functools import wraps

        @wraps(function)
        def called(**given: Any) -> int:
            try:
                return function(**given)
            except NetworkConfigError as error:
                print(f"gpupool network {name}: {error}", file=sys.stderr)
                return 2
            except NetworkError as error:
                print(f"gpupool network {name}: {error}", file=sys.stderr)
                return 1
            except BrokenPipeError as error:
                raise ReaderLeftError from error

        epilog = f"{EXITS}\nexample:\n  gpupool network {example}\n"
        APP.command(name, cls=layout.Command, help=description, epilog=epilog, short_help=line)(
            called
        )
        return called

    return add


@_verb(
    "apply",
    "make this machine's network what network.toml says",
    """\
Makes what is missing, changes what differs, removes what gpupool made and the file no longer has.
What is as it should be stays untouched; what somebody else has made is never changed.
""",
    "apply --check",
)
def apply(config: _CONFIG = NETWORK_PATH, check: _CHECK = False, as_json: _JSON = False) -> int:
    """Does it."""
    network = load(config)
    return _tell(_setup().apply(network, check=check), check=check, as_json=as_json)


@_verb(
    "remove",
    "take back all that apply has made",
    """\
Removes bridges, veth pairs and limits that gpupool has made, whatever network.toml says. Network
cards that were ports of a bridge are free, and have their usual queues.
""",
    "remove --check",
)
def remove(check: _CHECK = False, as_json: _JSON = False) -> int:
    """Does it."""
    return _tell(_setup().remove(check=check), check=check, as_json=as_json)


@_verb(
    "show",
    "show limits, and what has passed",
    """\
What each tenant has sent and got over an interface with limits, since they were made, and how many
packets had to be dropped. "odd packets" are those of a form that no honest client sends.
""",
    "show",
)
def show(config: _CONFIG = NETWORK_PATH, as_json: _JSON = False) -> int:
    """Does it."""
    flows = _setup().flows(load(config))
    if as_json:
        print(json.dumps({"limits": [dataclasses.asdict(one) for one in flows]}, indent=2))
        return 0
    rows = [
        (
            one.interface,
            one.tenant or "odd packets",
            one.direction,
            f"{one.mbit:g}",
            f"{one.bytes / 2**20:.1f}",
            one.dropped_packets,
        )
        for one in flows
    ]
    if rows:
        table.show(("interface", "tenant", "direction", "Mbit/s", "MiB passed", "dropped"), rows)
    else:
        print("no limits are in force", file=sys.stderr)
    return 0


def _setup() -> Any:
    try:
        from gpupool.hostd import network_setup
    except ImportError as error:
        raise NetworkError(f"{error}: pip install 'gpupool[network]'") from error
    return network_setup


def _tell(steps: Iterable[Step], *, check: bool, as_json: bool) -> int:
    found = []
    for step in steps:
        found.append(step)
        if not as_json:
            line = f"{step.state:<8} {step.what:<24} {step.detail}"
            print(table.printable(line).rstrip(), flush=True)
    if as_json:
        content = [dataclasses.asdict(one) for one in found]
        print(json.dumps({"check": check, "steps": content}, indent=2))
    return 1 if any(one.state == "failed" for one in found) else 0
