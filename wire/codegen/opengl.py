"""OpenGL as the registry describes it, and what our rows add: the model behind templates/opengl.

Khronos' gl.xml (PyPI package glad2, read at build time, never shipped) gives every command's
parameters, and in `len` most of the sizes. wire/api/opengl/rows.yaml says what it leaves open.
wire/api/opengl/core-4.6.txt fixes the numbers. A command that neither describes is unsupported,
with the reason in docs/opengl-coverage.md; none is guessed.
"""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpupool.wire.codegen.spec import SpecError

ROW_KEYS = {
    "do",
    "reason",
    "guest",
    "worker",
    "params",
    "needs",
    "draws",
    "pool",
    "version",
    "charge",
}
FIRST_NUMBER = 1
APIS = ("gl", "glcore", "gles2")  # whose extensions there may be
# Commands whose answer a probe finds (hostd/worker/opengl/probe.hpp) are asked twice, so they must
# only read.
PROBED = re.compile(r"glGet(?!Error|GraphicsResetStatus|DebugMessageLog)")


@dataclass(frozen=True, slots=True)
class Count:
    """How many elements there are: `factor * parameter / divisor`, or a function of one."""

    parameter: str = ""  # empty: the factor alone
    factor: int = 1
    divisor: int = 1
    function: str = ""  # of wire/cpp/gl_sizes.hpp, applied to the parameter

    def cpp(self, prefix: str) -> str:
        """The C++ expression; `prefix` stands before the parameter's name."""
        if not self.parameter:
            return f"gpupool::u64{{{self.factor}}}"
        if self.function:
            arguments = ", ".join(prefix + each for each in self.parameter.split(","))
            return f"gpupool::wire::gl_sizes::{self.function}({arguments})"
        return (
            f"gpupool::wire::gl_sizes::elements({prefix}{self.parameter}, "
            f"{self.factor}, {self.divisor})"
        )


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a command. `role` says how it travels.

    value, in, out, probe, string, strings, offset, offsets, null (the worker passes null).
    """

    name: str
    type: str  # as C++ declares it
    element: str  # what it points to; its own type for values
    role: str
    count: Count | None = None
    bulk: bool = False  # may travel beside the message, where the driver reads it: content only
    length: str = ""  # of a string: the parameter that gives its length, or -1

    @property
    def field(self) -> bool:
        """Whether the message's fixed part has a field of this name and type."""
        return self.role == "value"

    @property
    def counted(self) -> bool:
        """Whether elements follow the fixed part."""
        return self.role in ("in", "string", "strings", "offsets")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of OpenGL."""

    name: str
    number: int
    returns: str  # "void" or a type
    parameters: tuple[Parameter, ...]
    version: str  # the first of OpenGL that has it
    disposition: str  # async, sync, manual, local, unsupported
    reason: str = ""
    guest_manual: bool = False
    worker_manual: bool = False
    needs: str = ""  # a binding that must not be 0: an offset would be an address of the worker's
    draws: bool = False  # work for the GPU: a batch that ends with it may go early
    pool: bool = False  # hands out names: the client asks for many at once
    charge: bool = False  # takes memory of the GPU: counted before the driver is called

    @property
    def short(self) -> str:
        """The name without its prefix."""
        return self.name.removeprefix("gl")

    @property
    def sends(self) -> bool:
        """Whether there is such a message."""
        return self.disposition in ("async", "sync", "manual")

    @property
    def answers(self) -> bool:
        """Whether the client waits for it."""
        return self.returns != "void" or any(p.role in ("out", "probe") for p in self.parameters)

    @property
    def generated_guest(self) -> bool:
        """Whether the client's side is generated."""
        return self.disposition in ("async", "sync")

    @property
    def generated_worker(self) -> bool:
        """Whether the worker's side is generated."""
        return self.disposition in ("async", "sync") and not self.worker_manual


@dataclass(frozen=True, slots=True)
class Registry:
    """What the templates see."""

    commands: tuple[Command, ...]
    enums: tuple[tuple[str, int], ...]  # of gl.xml and egl.xml, by name
    constants: tuple[
        tuple[str, int], ...
    ]  # what glGet answers alike for as long as a context lives
    aliases: tuple[tuple[str, str], ...]  # an extension's name of a supported command, and its own
    extensions: tuple[str, ...]  # that need no command beyond the supported ones

    @property
    def entries(self) -> list[tuple[str, str]]:
        """What a program can ask for by name, and the function for it, in the order of names."""
        own = [
            (one.name, f"unsupported_{one.name}" if one.disposition == "unsupported" else one.name)
            for one in self.commands
        ]
        return sorted([*own, *self.aliases])


def find_registry() -> Path | None:
    """The folder of gl.xml and egl.xml in the installed glad2."""
    found = importlib.util.find_spec("glad")
    if found is None or found.submodule_search_locations is None:
        return None
    for folder in found.submodule_search_locations:
        if (Path(folder) / "files" / "gl.xml").is_file():
            return Path(folder) / "files"
    return None


def load(registry: Path, api: Path) -> Registry:
    """The model. Raises SpecError for a row or a number that does not fit the registry."""
    # The registry is a pinned package of the build, not something a stranger sent.
    root = ElementTree.parse(registry / "gl.xml").getroot()  # noqa: S314
    egl = ElementTree.parse(registry / "egl.xml").getroot()  # noqa: S314
    rows = yaml.safe_load((api / "opengl" / "rows.yaml").read_text(encoding="utf-8"))
    numbered = _names(api / "opengl" / "core-4.6.txt")
    versions = _versions(root)
    described = {_text(one.find("proto/name")): one for one in root.findall("commands/command")}
    for name in rows:
        if name not in numbered:
            raise SpecError(f"rows.yaml: {name} has no number in core-4.6.txt")
    commands = []
    for number, name in enumerate(numbered, FIRST_NUMBER):
        if name not in described:
            raise SpecError(f"core-4.6.txt: gl.xml does not know {name}")
        commands.append(_command(described[name], number, rows.get(name) or {}, versions[name]))
    missing = sorted(set(versions) - set(numbered))
    if missing:
        raise SpecError(f"core-4.6.txt lacks {', '.join(missing)}")
    supported = {one.name for one in commands if one.disposition != "unsupported"}
    aliases = {alias: name for alias, name in _aliases(described) if name in supported}
    enums = {**_enums(root), **_enums(egl)}
    return Registry(
        tuple(commands),
        tuple(sorted(enums.items())),
        tuple((name, value) for name, value in sorted(enums.items()) if _constant(name)),
        tuple(sorted(aliases.items())),
        tuple(_extensions(root, supported | set(aliases))),
    )


def _names(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    if len(names) != len(set(names)):
        raise SpecError(f"{path.name}: a command is there twice")
    return names


def _versions(root: ElementTree.Element) -> dict[str, str]:
    """The commands of OpenGL 4.6 core, each with the first version that has it."""
    found: dict[str, str] = {}
    for feature in root.findall("feature[@api='gl']"):
        for require in feature.findall("require"):
            if require.get("profile") in (None, "core"):
                for command in require.findall("command"):
                    found.setdefault(command.get("name", ""), feature.get("number", ""))
        for remove in feature.findall("remove[@profile='core']"):
            for command in remove.findall("command"):
                found.pop(command.get("name", ""), None)
    return found


def _enums(root: ElementTree.Element) -> dict[str, int]:
    """Numbers by name: those of 32 bits, which is all but a few masks and pointers."""
    found = {}
    for one in root.findall("enums/enum"):
        text = one.get("value", "")
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)", text) and int(text, 0) <= 0xFFFF_FFFF:
            found[one.get("name", "")] = int(text, 0)
    return found


def _constant(name: str) -> bool:
    """Whether glGet of it is a fact about the context."""
    return bool(
        re.match(r"GL_(MAX|MIN)_[A-Z0-9_]*$", name)
        or re.match(r"GL_(MAJOR_VERSION|MINOR_VERSION|CONTEXT_FLAGS|CONTEXT_PROFILE_MASK)$", name)
        or re.match(
            r"GL_(UNIFORM_BUFFER|SHADER_STORAGE_BUFFER|TEXTURE_BUFFER)_OFFSET_ALIGNMENT$", name
        )
        or re.match(r"GL_(ALIASED|SMOOTH)_LINE_WIDTH_(RANGE|GRANULARITY)$", name)
        or re.match(r"GL_(SUBPIXEL_BITS|POINT_SIZE_RANGE|POINT_SIZE_GRANULARITY)$", name)
    )


def _aliases(described: dict[str, ElementTree.Element]) -> Iterator[tuple[str, str]]:
    """Names that the registry gives to one and the same command."""
    for name, one in described.items():
        alias = one.find("alias")
        if alias is not None:
            yield name, alias.get("name", "")


def _extensions(root: ElementTree.Element, supported: set[str]) -> Iterator[str]:
    for one in root.findall("extensions/extension"):
        apis = one.get("supported", "").split("|")
        if not set(APIS) & set(apis):
            continue
        needed = {
            command.get("name", "")
            for require in one.findall("require")
            if require.get("api") in (None, *APIS)
            for command in require.findall("command")
        }
        if needed <= supported:
            yield one.get("name", "")


def _text(node: ElementTree.Element | None) -> str:
    return "" if node is None else "".join(node.itertext()).strip()


def _command(node: ElementTree.Element, number: int, row: dict[str, Any], version: str) -> Command:
    name = _text(node.find("proto/name"))
    unknown = set(row) - ROW_KEYS
    if unknown:
        raise SpecError(f"rows.yaml: {name}: no such key: {', '.join(sorted(unknown))}")
    notes = dict(row.get("params") or {})
    reasons: list[str] = []
    parameters = []
    for one in node.findall("param"):
        parameters.append(
            _parameter(name, one, str(notes.pop(_text(one.find("name")), "")), reasons)
        )
    if notes:
        raise SpecError(f"rows.yaml: {name} has no parameter {', '.join(notes)}")
    proto = node.find("proto")
    returns = _text(proto).removesuffix(name).strip()
    disposition = str(row.get("do", ""))
    if not disposition:
        answers = returns != "void" or any(p.role in ("out", "probe") for p in parameters)
        disposition = "unsupported" if reasons else "sync" if answers else "async"
    if "*" in returns and disposition not in ("manual", "local", "unsupported"):
        raise SpecError(f"rows.yaml: {name} returns a pointer and needs a row")
    return Command(
        name,
        number,
        returns,
        tuple(parameters),
        version,
        disposition,
        str(row.get("reason", "; ".join(reasons))),
        guest_manual=row.get("guest") == "manual",
        worker_manual=row.get("worker") == "manual" or disposition == "manual",
        needs=str(row.get("needs", "")),
        draws=bool(row.get("draws"))
        or bool(re.match(r"gl(Multi)?Draw[AET]|glDispatch|glClear", name)),
        pool=bool(row.get("pool")),
        charge=bool(row.get("charge")),
    )


def _parameter(command: str, node: ElementTree.Element, note: str, reasons: list[str]) -> Parameter:
    name = _text(node.find("name"))
    declared = re.sub(rf"\b{name}$", "", _text(node)).strip()
    element = _text(node.find("ptype")) or "void"
    if "*" not in declared:
        return Parameter(name, declared, declared, "value")
    match = re.fullmatch(r"(\w+)?(?:\[([^\]]+)\])?(!)?", note)
    if match is None:
        raise SpecError(f"rows.yaml: {command}: {name}: cannot read {note!r}")
    role, size, bulk = (
        match.group(1) or "",
        match.group(2) or node.get("len", ""),
        bool(match.group(3)),
    )
    const = declared.startswith("const")
    if role == "" and declared.count("*") > 1:
        role = "strings" if element == "GLchar" and const else ""
    elif role == "" and const:
        plain = element == "GLchar" and not re.search(r"^\w+$", size)
        role = "string" if plain else "in"
    elif role == "":
        role = "probe" if PROBED.match(command) and _count(size) is None else "out"
    length = size if role == "string" and match.group(2) else ""
    if role in ("string", "probe", "offset", "null", "manual"):
        return Parameter(name, declared, element, role, length=length)
    count = _count(size)
    if role == "" or count is None:
        reasons.append(f"`{name}`: the registry gives no size")
        return Parameter(name, declared, element, "null")
    byte_sized = "gpupool::u8" if element == "void" else element
    return Parameter(name, declared, byte_sized, role, count, bulk)


def _count(size: str) -> Count | None:
    """Reads `4`, `n`, `n*4`, `n/4` and `function(n)`; None for anything else."""
    text = size.replace(" ", "")
    if re.fullmatch(r"\d+", text):
        return Count(factor=int(text))
    match = re.fullmatch(r"(\w+)(?:\*(\d+)|/(\d+))?", text)
    if match:
        return Count(match.group(1), int(match.group(2) or 1), int(match.group(3) or 1))
    match = re.fullmatch(r"([a-z_]+)\((\w+(?:,\w+)*)\)", text)
    if match:
        return Count(match.group(2), function=match.group(1))
    return None
