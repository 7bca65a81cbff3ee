"""Joins the list of exports, the rows and the headers into what the templates are given."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gpupool.wire.codegen.headers import Header, Prototype
from gpupool.wire.codegen.layout import Field, fields
from gpupool.wire.codegen.spec import (
    Disposition,
    Message,
    Row,
    SpecError,
    load_messages,
    load_rows,
)

# Messages of our own have the numbers below this one; exports follow in their file's order.
FIRST_EXPORT_NUMBER = 64

_SYMBOL = re.compile(r"(cu\w+?)(?:_v(\d+))?(_pt[ds][sz])?")


@dataclass(frozen=True, slots=True)
class Function:
    """One export of libcuda."""

    name: str
    number: int
    row: Row
    disposition: Disposition
    prototype: (
        Prototype | None
    )  # None: the headers do not declare it; the entry point takes no arguments
    fields: tuple[Field, ...] = ()
    per_thread_of: str = ""  # the function whose _ptds / _ptsz flavour this is
    arguments: tuple[str, ...] = ()  # what a `as:` row passes on

    @property
    def data(self) -> str:
        """C++ type of a data symbol, or an empty string."""
        return self.row.data

    @property
    def same_as(self) -> str:
        """The function that this one forwards to, or an empty string."""
        return "" if self.per_thread_of else self.row.same_as

    @property
    def signature(self) -> str:
        """Parameter list in C++, e.g. `CUgraph *phGraph, unsigned int flags`."""
        if self.prototype is None:
            return ""
        return ", ".join(parameter.declaration for parameter in self.prototype.parameters)

    @property
    def signature_types(self) -> str:
        """The same without the names, for a body that uses no parameter."""
        if self.prototype is None:
            return ""
        return ", ".join(parameter.type.text for parameter in self.prototype.parameters)

    @property
    def call(self) -> str:
        """The parameters' names, as a forwarding call writes them."""
        if self.prototype is None:
            return ""
        return ", ".join(parameter.name for parameter in self.prototype.parameters)

    @property
    def supported(self) -> bool:
        """Whether a call does anything."""
        return self.disposition is not Disposition.UNSUPPORTED

    @property
    def in_guest_api(self) -> bool:
        """Whether namespace guest::api has it."""
        return self.supported and not self.per_thread_of and not self.data

    @property
    def sends(self) -> bool:
        """Whether a message of this number exists."""
        return (
            self.disposition in (Disposition.SYNC, Disposition.ASYNC, Disposition.MANUAL)
            and not self.per_thread_of
            and not self.same_as
        )

    @property
    def generated_stub(self) -> bool:
        """Whether the guest side comes from the template."""
        return self.has_fields and not self.row.guest_manual

    @property
    def generated_handler(self) -> bool:
        """Whether the worker side comes from the template."""
        return self.has_fields and not self.row.worker_manual

    @property
    def answers_something(self) -> bool:
        """Whether the worker does anything after the driver's call."""
        roles = {"out", "inout", "existing", "create", "capacity"}
        return any(field.role in roles for field in self.fields)

    @property
    def returns_something(self) -> bool:
        """Whether the guest does anything after the message."""
        return self.answers_something or any(field.destroys for field in self.fields)

    @property
    def has_fields(self) -> bool:
        """Whether its message is described by fields."""
        return self.sends and self.disposition is not Disposition.MANUAL


@dataclass(frozen=True, slots=True)
class ProcEntry:
    """One line of the table behind cuGetProcAddress."""

    name: str
    since: int
    entry: str
    per_thread: str = ""
    per_thread_since: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """Everything the templates need."""

    functions: tuple[Function, ...]
    messages: tuple[Message, ...]
    procs: tuple[ProcEntry, ...]

    @property
    def function_count(self) -> int:
        """One more than the highest function number."""
        return self.functions[-1].number + 1 if self.functions else FIRST_EXPORT_NUMBER


def load_exports(path: Path) -> list[str]:
    """The exports file, one name a line. Its order fixes numbers: append, never reorder."""
    names = path.read_text(encoding="utf-8").split()
    if len(set(names)) != len(names):
        raise SpecError(f"{path}: an export is listed twice")
    return names


def load(api: Path, header: Header, exports_name: str = "exports-13.0.txt") -> Model:
    """Reads the description in `api` and checks it against the headers. Raises SpecError."""
    exports = load_exports(api / exports_name)
    rows = load_rows(api / "cuda")
    by_name = _assign(rows, exports)
    functions = []
    for index, name in enumerate(exports):
        row = by_name[name]
        functions.append(_function(name, FIRST_EXPORT_NUMBER + index, row, by_name, header))
    _check_forwarding(functions)
    return Model(
        tuple(functions),
        tuple(load_messages(api / "session.yaml")),
        tuple(proc_entries(exports, header)),
    )


def _assign(rows: list[Row], exports: list[str]) -> dict[str, Row]:
    """Which row covers which export."""
    by_name: dict[str, Row] = {}
    known = set(exports)
    for row in rows:
        for name in (row.name, *row.variants):
            if name not in known:
                raise row.location.error(f"{name} is no export of libcuda")
            by_name[name] = row
    missing = [name for name in exports if name not in by_name]
    if missing:
        raise SpecError(
            f"wire/api/cuda: {len(missing)} exports have no row: {', '.join(missing[:20])}"
        )
    return by_name


def _function(
    name: str, number: int, row: Row, by_name: dict[str, Row], header: Header
) -> Function:
    match = _SYMBOL.fullmatch(name)
    suffix = match[3] if match is not None else None
    prototype = _prototype(name, header)
    if suffix:
        base = name.removesuffix(suffix)
        if base not in by_name:
            raise row.location.error(f"{name} is a flavour of {base}, which is no export")
        if row is not by_name[base]:
            raise row.location.error(f"{name} belongs to the row of {base}: `variants: [{suffix}]`")
        return Function(
            name, number, row, _disposition(row, by_name), prototype, per_thread_of=base
        )
    disposition = _disposition(row, by_name)
    if disposition is not Disposition.UNSUPPORTED and prototype is None:
        raise row.location.error(f"{name}: no header declares it, so it can only be unsupported")
    planned: tuple[Field, ...] = ()
    if row.disposition in (Disposition.SYNC, Disposition.ASYNC) and prototype is not None:
        planned = fields(row, prototype, header)
    return Function(
        name, number, row, disposition, prototype, planned,
        arguments=_forwarded(row, prototype, header) if row.same_as else (),
    )  # fmt: skip


def _prototype(name: str, header: Header) -> Prototype | None:
    """The declaration; others only without parameters, as their types are unknown."""
    prototype = header.prototypes.get(name)
    if prototype is not None and prototype.declared:
        return prototype
    for version in header.versions:
        if version.name == name and not version.suffix and not version.prototype.parameters:
            return version.prototype
    return None


def _disposition(row: Row, by_name: dict[str, Row]) -> Disposition:
    if row.disposition is not None:
        return row.disposition
    target = by_name.get(row.same_as)
    if target is None or target.disposition is None:
        raise row.location.error(f"{row.name}: `as: {row.same_as}` names no row with a disposition")
    return target.disposition


def _forwarded(row: Row, prototype: Prototype | None, header: Header) -> tuple[str, ...]:
    """The arguments for the function of an `as:` row, matched by name; the others are zero."""
    target = header.prototypes.get(row.same_as)
    if prototype is None or target is None:
        raise row.location.error(f"{row.name}: `as:` needs prototypes of both functions")
    # NVIDIA spells one parameter `Flags` and `flags`.
    own = {parameter.name.lower(): parameter.name for parameter in prototype.parameters}
    taken = [parameter.name.lower() for parameter in target.parameters]
    lost = set(own) - set(taken)
    if lost:
        raise row.location.error(
            f"{row.name}: {row.same_as} has no parameter {', '.join(sorted(lost))}"
        )
    return tuple(own.get(name, "{}") for name in taken)


def _check_forwarding(functions: list[Function]) -> None:
    names = {function.name: function for function in functions}
    for function in functions:
        if function.same_as and not names[function.same_as].in_guest_api:
            raise function.row.location.error(
                f"{function.name}: {function.same_as} is not supported"
            )


def proc_entries(exports: list[str], header: Header) -> list[ProcEntry]:
    """Maps (name, version) to symbols, for cuGetProcAddress.

    NVIDIA's PFN_<name>_v<version> typedefs list the versions; the symbols <name>, <name>_v2, ...
    appeared in that order, so the two sorted lists belong together (a test compares the types).
    """
    symbols: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for export in exports:
        match = _SYMBOL.fullmatch(export)
        if match is not None:
            symbols[match[1], match[3] or ""].append((int(match[2] or 1), export))
    versions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for version in header.versions:
        versions[version.name, version.suffix].append(version.since)
    known = {name for name, _ in symbols}
    entries = []
    for name in sorted(known):
        plain = _pair(name, "", symbols, versions)
        flavoured = {}
        for suffix in ("_ptds", "_ptsz"):
            for since, symbol in _pair(name, suffix, symbols, versions):
                flavoured[symbol.removesuffix(suffix)] = (symbol, since)
        for since, symbol in plain:
            per_thread, per_thread_since = flavoured.get(symbol, ("", 0))
            entries.append(ProcEntry(name, since, symbol, per_thread, per_thread_since))
    return entries


def _pair(
    name: str,
    suffix: str,
    symbols: dict[tuple[str, str], list[tuple[int, str]]],
    versions: dict[tuple[str, str], list[int]],
) -> list[tuple[int, str]]:
    found = sorted(versions.get((name, suffix), []))
    ordered = [symbol for _, symbol in sorted(symbols.get((name, suffix), []))]
    if not found:
        return []
    if len(found) != len(ordered):
        raise SpecError(
            f"{name}{suffix}: the headers know versions {found}, libcuda exports {ordered}"
        )
    return list(zip(found, ordered, strict=True))
