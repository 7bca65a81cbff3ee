"""`gpupool host`: brings hostd onto machines, over ssh."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gpupool.cli import layout, table
from gpupool.cli.asking import EXITS, Asking, verb
from gpupool.cli.backend import UsageError
from gpupool.cli.rollout import CA, TOKEN, Package, Plan, Step, roll_out
from gpupool.cli.ssh import Address, SshMachine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DESCRIPTION = """\
Machines with GPUs that are to have a hostd. For many of them, and for a controller, there are
Ansible roles (docs/ansible.md), which make the same of a machine.
"""
APP = layout.group("host", DESCRIPTION, EXITS)


@verb(
    APP,
    "add",
    "install and start hostd on a machine, over ssh",
    """\
Installs gpupool on a machine, writes its configuration and its unit, starts hostd, and lets it
follow a controller if --nodes says where that is. What is there already stays: a second time
nothing is done. Needs `pip install 'gpupool[ssh]'`.

The machine's host key has to be known. Who logs in is told by a key, of ssh-agent, ~/.ssh or
--key; passwords are not used.
""",
    """\
examples:
  gpupool host add gpu7 --wheel gpupool-0.1.0-py3-none-linux_x86_64.whl --check
  gpupool host add gpu7 --wheel gpupool-0.1.0-py3-none-linux_x86_64.whl
  gpupool host add gpu7 --user admin --version 0.1.0 --controller https://c.example.org:9180 \\
      --nodes tls://c.example.org:9181 --nodes-ca ca.pem
""",
)
def add(
    asking: Asking,
    host: Annotated[str, typer.Argument(metavar="HOST", help="name or address")],
    user: Annotated[
        str, typer.Option(metavar="USER", help="who logs in; others than root use sudo")
    ] = "root",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="of its sshd")] = 22,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="private key; default: agent and ~/.ssh")
    ] = None,
    known_hosts: Annotated[
        Path, typer.Option(metavar="FILE", help="keys of machines that are known")
    ] = Path("~/.ssh/known_hosts"),
    accept_new: Annotated[
        bool, typer.Option("--accept-new", help="take the key of a machine that is not known yet")
    ] = False,
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="gpupool's wheel; default: from an index")
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="V", help="from the index; default: what is installed stays")
    ] = "",
    index: Annotated[
        str, typer.Option(metavar="URL", help="index; default: as pip is set up there")
    ] = "",
    pip: Annotated[
        list[str] | None, typer.Option(metavar="ARG", help="one more argument of pip install")
    ] = None,
    python: Annotated[
        str, typer.Option(metavar="PYTHON", help="Python 3.10 or later on that machine")
    ] = "python3",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="hostd.toml that it shall have")
    ] = None,
    nodes: Annotated[
        str, typer.Option(metavar="URL", help="where the controller serves nodes: tls://host:port")
    ] = "",
    nodes_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="who signed its certificate there")
    ] = None,
    node: Annotated[
        str, typer.Option(metavar="NAME", help="what the controller calls it; default: HOST")
    ] = "",
    node_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="its token; default: --controller makes one"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="say what would be done, and do nothing")
    ] = False,
) -> int:
    """Does it."""
    if index and "@" in urlsplit(index).netloc:
        raise UsageError("--index has a password; put it into pip's configuration on that machine")
    if (wheel is not None) and (version or index):
        raise UsageError("--wheel names the package; --version and --index are for an index")
    if not nodes and (nodes_ca or node or node_token_file):
        raise UsageError("--nodes-ca, --node and --node-token-file are for --nodes")
    plan = Plan(
        package=Package(wheel, version, index, tuple(pip or ()), python),
        config=_document(config),
        controller=_section(nodes, node or host, nodes_ca) if nodes else None,
        ca=_read(nodes_ca, "--nodes-ca") if nodes_ca else None,
        token=_token(asking, node or host, node_token_file) if nodes else None,
        config_named=config is not None,
    )
    address = Address(host, port, user, key, known_hosts, accept_new)
    steps: list[Step] = []
    with closing(SshMachine(address)) as machine:
        for step in roll_out(machine, plan, check):
            steps.append(step)
            if not asking.as_json:
                line = f"{step.state:<6} {step.what:<16} {step.detail}"
                print(table.printable(line).rstrip(), flush=True)
    if asking.as_json:
        found = [dataclasses.asdict(step) for step in steps]
        print(json.dumps({"host": host, "check": check, "steps": found}, indent=2))
    return 0


def _section(nodes: str, name: str, ca: Path | None) -> dict[str, Any]:
    section = {"url": nodes, "token_file": TOKEN, "node_name": name}
    return {**section, "ca_file": CA} if ca else section


def _token(asking: Asking, name: str, file: Path | None) -> Callable[[], str]:
    """Asked for only when the machine has none: a token is shown once."""
    if file is not None:
        text = _read(file, "--node-token-file").decode("ascii", errors="replace").strip()
        return lambda: text
    return lambda: asking.central.create_token(name, "node", name, None).secret


def _document(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(_read(file, "--config").decode())
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise UsageError(f"--config {file} is no TOML: {error}") from error


def _read(file: Path, option: str) -> bytes:
    try:
        return file.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}") from error
