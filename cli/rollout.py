"""Brings hostd onto a machine, or says what that would change: the layout of the Ansible role.

/opt/gpupool has the virtual environment and what was installed in it, /etc/gpupool configuration
and secrets; unit and configuration are rendered from the role's templates. What is there already
stays, so a second time nothing is done.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from gpupool.cli.backend import RefusedError, UsageError
from gpupool.cli.remote import Ended, Remote, must, put

FOLDER = "/opt/gpupool"
COMMAND = f"{FOLDER}/bin/gpupool"
LINK = "/usr/local/bin/gpupool"
CONFIG = "/etc/gpupool/hostd.toml"
TOKEN = "/etc/gpupool/node-token"  # noqa: S105 (a path)
CA = "/etc/gpupool/controller-ca.pem"
UNIT = "/etc/systemd/system/gpupool-hostd.service"
_WRITTEN = "# Written by gpupool's roll-out"
_PIP_S = 900.0
_OLDEST = (3, 10)
# One round trip for all that is asked first. `machine` and the like are fixed words, so lines are
# read by their first "=".
_FACTS = """\
echo "user=$(id -u)"
echo "machine=$(uname -m)"
version='import sys, venv, ensurepip; print(*sys.version_info[:2])'
echo "python=$("$1" -c "$version" 2>&1 | tail -n 1)"
if [ -d /run/systemd/system ]; then echo systemd=yes; else echo systemd=no; fi
version='s/.*Kernel Module *\\([0-9.]*\\).*/\\1/p'
echo "driver=$(sed -n "$version" /proc/driver/nvidia/version 2>/dev/null)"
echo "stamp=$(cat "$2" 2>/dev/null)"
if [ -e "$3" ]; then echo token=yes; else echo token=no; fi
"""


@dataclass(frozen=True, slots=True)
class Package:
    """What to install: a wheel of this machine, or from an index."""

    wheel: Path | None = None
    version: str = ""
    index_url: str = ""
    pip_arguments: tuple[str, ...] = ()
    python: str = "python3"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a host shall have."""

    package: Package
    config: Mapping[str, Any] = field(default_factory=dict)  # of hostd.toml, without [controller]
    controller: Mapping[str, Any] | None = None  # [controller] of hostd.toml
    ca: bytes | None = None
    token: Callable[[], str] | None = None  # makes or reads the node's token, where it has none
    config_named: bool = False  # the caller brought a configuration, so another one may go


@dataclass(frozen=True, slots=True)
class Step:
    """One thing, and how it stands: ok, done, or would (`--check`)."""

    what: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the machine says of itself."""

    python: str
    systemd: bool
    driver: str
    stamp: str
    has_token: bool


def roll_out(remote: Remote, plan: Plan, check: bool) -> Iterator[Step]:
    """Does it, one step after the other. Raises RemoteError, RefusedError, UsageError."""
    extra = "node" if plan.controller is not None else ""
    stamp_path = f"{FOLDER}/.installed-{extra or 'plain'}"
    facts = look(remote, plan.package.python, stamp_path)
    driver = f"NVIDIA's driver {facts.driver}" if facts.driver else "no NVIDIA driver"
    yield Step("machine", "ok", f"x86_64, Python {facts.python}, {driver}")
    wanted = _stamp(plan.package)
    changed = facts.stamp != wanted
    if changed and not check:
        _install(remote, plan.package, extra, stamp_path, wanted)
    yield _step("package", changed, check, wanted)
    if plan.token is not None and not facts.has_token:
        if not check:
            put(remote, TOKEN, (plan.token() + "\n").encode(), "0600")
        changed = True
        yield _step("node's token", True, check, TOKEN)
    for what, path, content in _files(plan):
        differs = _differs(remote, path, content)
        if path == CONFIG and differs:
            _refuse_foreign(remote, plan)
            if not check:
                _validate(remote, content)
        if differs and not check:
            put(remote, path, content, "0644")
        changed = changed or differs
        yield _step(what, differs, check, path)
    yield _service(remote, facts, changed, check)


def look(remote: Remote, python: str, stamp_path: str) -> Facts:
    """Whether it can be a host at all. Raises RefusedError, RemoteError."""
    said = remote.run(["sh", "-c", _FACTS, "sh", python, stamp_path, TOKEN])
    found = dict(line.split("=", 1) for line in said.out.splitlines() if "=" in line)
    if found.get("user") != "0":
        why = said.error.strip() or said.out.strip()
        raise RefusedError(
            f"{remote.name}: commands do not run as root: {why}. "
            "Log in with --user root, or let the user run sudo without a password"
        )
    if found.get("machine") != "x86_64":
        raise RefusedError(f"{remote.name} is a {found.get('machine')}; gpupool needs x86_64")
    numbers = found.get("python", "").split()
    if len(numbers) != 2 or not all(each.isdecimal() for each in numbers):
        raise RefusedError(
            f"{remote.name}: {python} with venv is missing ({found.get('python')}). Debian, "
            "Ubuntu: apt-get install python3-venv"
        )
    if tuple(map(int, numbers)) < _OLDEST:
        raise RefusedError(
            f"{remote.name}: {python} is {'.'.join(numbers)}; 3.10 or later is needed: --python"
        )
    return Facts(
        ".".join(numbers),
        found.get("systemd") == "yes",
        found.get("driver", ""),
        found.get("stamp", ""),
        found.get("token") == "yes",
    )


def _step(what: str, changed: bool, check: bool, detail: str) -> Step:
    return Step(what, ("would" if check else "done") if changed else "ok", detail)


def _stamp(package: Package) -> str:
    """As the role writes it: two builds may have one version."""
    if package.wheel is None:
        return f"version {package.version or 'any'}"
    try:
        return f"wheel sha256 {hashlib.sha256(package.wheel.read_bytes()).hexdigest()}"
    except OSError as error:
        raise UsageError(f"--wheel {package.wheel}: {error.strerror}") from error


def _install(remote: Remote, package: Package, extra: str, stamp_path: str, stamp: str) -> None:
    brackets = f"[{extra}]" if extra else ""
    pip = [f"{FOLDER}/bin/python", "-m", "pip", "install", "--no-input", "--quiet"]
    pip = [*pip, *package.pip_arguments]
    if package.index_url:
        pip = ["env", f"PIP_INDEX_URL={package.index_url}", *pip]
    must(remote, "folders", ["mkdir", "-p", "-m", "0755", FOLDER, "/etc/gpupool"])
    if remote.run(["test", "-e", f"{FOLDER}/bin/pip"]).code != 0:
        must(remote, "venv", [package.python, "-m", "venv", FOLDER], _PIP_S)
    if package.wheel is not None:
        folder = must(remote, "mktemp", ["mktemp", "-d", "--suffix=.gpupool"]).strip()
        try:
            path = f"{folder}/{package.wheel.name}"
            put(remote, path, package.wheel.read_bytes(), "0600")
            forced = ["--force-reinstall", "--no-deps"]  # else another build would stay
            must(remote, "pip", [*pip, *forced, path], _PIP_S)
            must(remote, "pip", [*pip, path + brackets], _PIP_S)
        finally:
            remote.run(["rm", "-rf", "--", folder])
    else:
        version = f"=={package.version}" if package.version else ""
        must(remote, "pip", [*pip, f"gpupool{brackets}{version}"], _PIP_S)
    must(remote, "link", ["ln", "-sfn", COMMAND, LINK])
    put(remote, stamp_path, stamp.encode(), "0644")


def _files(plan: Plan) -> Iterator[tuple[str, str, bytes]]:
    """Name, path and content; nothing secret."""
    if plan.ca is not None:
        yield "controller's CA", CA, plan.ca
    yield "configuration", CONFIG, _configuration(plan)
    unit = render("systemd/gpupool-hostd.service.j2", gpupool=COMMAND, config=CONFIG)
    yield "unit", UNIT, unit


def _configuration(plan: Plan) -> bytes:
    content = dict(plan.config)
    if plan.controller is not None:
        both = {**plan.controller, **content.pop("controller", {})}
        content = {"controller": both, **content}  # in the role's order
    return render("config/gpupool.toml.j2", content=content)


def render(name: str, **values: object) -> bytes:
    """One of the templates that the Ansible roles use, too. Raises UsageError."""
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("Jinja2 is not installed: pip install 'gpupool[ssh]'") from error
    folder = resources.files("gpupool") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda each: (folder / each).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,  # as Ansible has it
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (units and TOML, no HTML)
    )
    return environment.get_template(name).render(**values).encode()


def _differs(remote: Remote, path: str, content: bytes) -> bool:
    ended = remote.run(["sha256sum", "--", path])
    return ended.code != 0 or ended.out.split()[0] != hashlib.sha256(content).hexdigest()


def _refuse_foreign(remote: Remote, plan: Plan) -> None:
    """A configuration that somebody wrote by hand goes only where another one was brought."""
    ended: Ended = remote.run(["head", "-n", "1", "--", CONFIG])
    if ended.code == 0 and not ended.out.startswith(_WRITTEN) and not plan.config_named:
        raise RefusedError(
            f"{remote.name} has a {CONFIG} of its own. Bring the one that it shall have with "
            "--config, or move that file away"
        )


def _validate(remote: Remote, content: bytes) -> None:
    trial = f"{CONFIG}.check"
    put(remote, trial, content, "0600")
    try:
        must(remote, "hostd.toml", [COMMAND, "hostd", "--check", "--config", trial])
    finally:
        remote.run(["rm", "-f", "--", trial])


def _service(remote: Remote, facts: Facts, changed: bool, check: bool) -> Step:
    if not facts.systemd:
        words = shlex.join([COMMAND, "hostd", "--config", CONFIG])
        return Step("service", "ok", f"no systemd there, so nothing is started: {words}")
    active = remote.run(["systemctl", "is-active", "--quiet", "gpupool-hostd"]).code == 0
    if active and not changed:
        return Step("service", "ok", "runs")
    if not check:
        must(remote, "systemd", ["systemctl", "daemon-reload"])
        must(remote, "systemd", ["systemctl", "enable", "--quiet", "gpupool-hostd"])
        must(remote, "systemd", ["systemctl", "restart", "gpupool-hostd"], 120)
    return _step("service", True, check, "restarted" if active else "started")
