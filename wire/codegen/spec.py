"""Reads the rows of wire/api/cuda/*.yaml: one a function, each with the file and line it stands on.

A row is `cuName: {do: DISPOSITION, ...}`; the keys are the fields of Row. `params` maps a
parameter's name to what the header cannot say about it, in a small notation:

    MODE [:TYPE] [COUNT] ?

MODE is one of Mode. `:TYPE` says what a void pointer points to. `[n]` says that the pointer leads
to as many elements as parameter `n` says, `[*n]` that `n` points to the capacity on entry and to
the number written on return. `?` allows a null pointer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import yaml


class Disposition(Enum):
    """Who answers a function; wire/README.md explains."""

    LOCAL = "local"
    SYNC = "sync"
    ASYNC = "async"
    MANUAL = "manual"
    UNSUPPORTED = "unsupported"


class Mode(Enum):
    """How a parameter travels."""

    VALUE = "value"  # by value: scalars, enums, device pointers, plain structs, handles
    STREAM = "stream"  # the slot header's stream
    STRING = "string"  # a C string to the worker
    IN = "in"  # the pointed-to elements go to the worker
    OUT = "out"  # the pointed-to elements come back
    INOUT = "inout"  # both
    CREATE = "create"  # a handle the client chooses and the worker gives an object
    EXISTING = "existing"  # handles of objects the driver returns; the worker chooses them
    DESTROY = "destroy"  # a handle that is gone when the call has succeeded
    NULL = "null"  # always sent as null: its content has no meaning here


class SpecError(Exception):
    """A row is wrong. The text begins with file and line."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a row stands."""

    file: str
    line: int

    def error(self, message: str) -> SpecError:
        """A SpecError that names this place."""
        return SpecError(f"{self.file}:{self.line}: {message}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """The parsed form of one entry of `params`."""

    mode: Mode
    type: str = ""  # what a void pointer points to
    count: str = ""  # parameter that holds the number of elements; empty for one element
    count_is_pointer: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One function."""

    name: str
    location: Location
    disposition: Disposition | None  # None when `same_as` says it
    variants: tuple[str, ...] = ()  # full names of the other ABIs that this row covers
    same_as: str = ""  # forwards to that function; its own parameters are matched by name
    params: dict[str, Annotation] = field(default_factory=dict)
    guest_manual: bool = False
    worker_manual: bool = False
    before_init: bool = False  # works before cuInit
    after_failure: bool = False  # works after the session has failed
    data: str = ""  # a data symbol of this C++ type
    reason: str = ""  # why unsupported, or another remark for docs/coverage.md


@dataclass(frozen=True, slots=True)
class Message:
    """A message of our own (session.yaml)."""

    name: str
    number: int
    doc: str


_KEYS = {
    "do", "variants", "as", "params", "guest", "worker",
    "before_init", "after_failure", "data", "reason",
}  # fmt: skip
_ANNOTATION = re.compile(r"(\w+)(?::(\w+))?(?:\[(\*?)(\w+)\])?(\?)?")


def load_rows(folder: Path) -> list[Row]:
    """Every row of every yaml file in `folder`, files in name order, rows in file order."""
    rows: list[Row] = []
    seen: dict[str, Location] = {}
    for path in sorted(folder.glob("*.yaml")):
        for row in load_file(path):
            for name in (row.name, *row.variants):
                if name in seen:
                    first = seen[name]
                    raise row.location.error(f"{name} has a row at {first.file}:{first.line}")
                seen[name] = row.location
            rows.append(row)
    if not rows:
        raise SpecError(f"{folder}: no rows")
    return rows


def load_file(path: Path) -> list[Row]:
    """The rows of one file. Raises SpecError."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise SpecError(f"{_short(path)}:{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{_short(path)}: {error}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{path}:1: expected rows `cuName: {{do: ...}}`")
    rows = []
    for key, value in root.value:
        location = Location(_short(path), key.start_mark.line + 1)
        rows.append(_row(key.value, _plain(value, location), location))
    return rows


def load_messages(path: Path) -> list[Message]:
    """The messages of session.yaml. Raises SpecError."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    messages = [Message(m["name"], int(m["number"]), m["doc"]) for m in content["messages"]]
    numbers = [message.number for message in messages]
    if len(set(numbers)) != len(numbers) or not all(0 < number < 64 for number in numbers):
        raise SpecError(f"{path}: message numbers must be different and within 1..63")
    return messages


def parse_annotation(text: str, location: Location) -> Annotation:
    """Reads the notation described above."""
    match = _ANNOTATION.fullmatch(text.strip())
    if match is None or match[1] not in {mode.value for mode in Mode}:
        modes = ", ".join(mode.value for mode in Mode)
        raise location.error(
            f"`{text}` is no annotation; write MODE:TYPE[COUNT]? with MODE of {modes}"
        )
    return Annotation(
        Mode(match[1]), match[2] or "", match[4] or "", bool(match[3]), bool(match[5])
    )


def _short(path: Path) -> str:
    """The path as error messages show it: from `wire/` on where it has one."""
    parts = path.parts
    return str(Path(*parts[parts.index("wire") :])) if "wire" in parts else str(path)


def _plain(node: yaml.Node, location: Location) -> dict[str, object]:
    """A mapping node as a dict, refusing repeated keys, which YAML itself lets pass."""
    if not isinstance(node, yaml.MappingNode):
        raise location.error("a row is a mapping: `cuName: {do: sync}`")
    names = [key.value for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise location.error(f"`{name}` is given twice")
    result: dict[str, object] = {}
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            result[key.value] = _plain(value, location)
        elif isinstance(value, yaml.SequenceNode):
            result[key.value] = [item.value for item in value.value]
        else:
            result[key.value] = value.value
    return result


def _row(name: str, content: dict[str, object], location: Location) -> Row:
    unknown = set(content) - _KEYS
    if unknown:
        raise location.error(f"{name}: unknown key {', '.join(sorted(unknown))}")
    disposition = _disposition(name, content, location)
    params = content.get("params", {})
    if not isinstance(params, dict):
        raise location.error(f"{name}: params is a mapping")
    row = Row(
        name=name,
        location=location,
        disposition=disposition,
        variants=_variants(name, content.get("variants", []), location),
        same_as=str(content.get("as", "")),
        params={key: parse_annotation(str(text), location) for key, text in params.items()},
        guest_manual=_side(name, content, "guest", location),
        worker_manual=_side(name, content, "worker", location),
        before_init=_flag(name, content, "before_init", location),
        after_failure=_flag(name, content, "after_failure", location),
        data=str(content.get("data", "")),
        reason=str(content.get("reason", "")),
    )
    if disposition is Disposition.UNSUPPORTED and not row.reason:
        raise location.error(f"{name}: an unsupported function says why: `reason: ...`")
    generated = disposition in (Disposition.SYNC, Disposition.ASYNC)
    if not generated and (row.params or row.guest_manual or row.worker_manual):
        raise location.error(f"{name}: params, guest and worker go with `sync` and `async` only")
    return row


def _disposition(name: str, content: dict[str, object], location: Location) -> Disposition | None:
    if ("do" in content) == ("as" in content):
        raise location.error(f"{name}: give either `do` or `as`")
    if "as" in content:
        return None
    text = str(content["do"])
    if text not in {disposition.value for disposition in Disposition}:
        known = ", ".join(disposition.value for disposition in Disposition)
        raise location.error(f"{name}: `do: {text}` is none of {known}")
    return Disposition(text)


def _variants(name: str, content: object, location: Location) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(str(item).startswith("_") for item in content):
        raise location.error(f"{name}: variants is a list of suffixes, e.g. [_ptsz]")
    return tuple(name + str(item) for item in content)


def _side(name: str, content: dict[str, object], side: str, location: Location) -> bool:
    if content.get(side, "manual") != "manual":
        raise location.error(f"{name}: `{side}:` can only be `manual`")
    return side in content


def _flag(name: str, content: dict[str, object], key: str, location: Location) -> bool:
    if content.get(key, "true") not in ("true", "false"):
        raise location.error(f"{name}: `{key}:` is true or false")
    return content.get(key) == "true"
