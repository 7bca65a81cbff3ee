"""Decides how each parameter of a `sync` or `async` function travels.

The order on the wire is the order of the parameters; guest and worker templates walk the same list
of Fields, so that the two ends cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.wire.codegen.headers import Category, Header, Parameter, Prototype
from gpupool.wire.codegen.spec import Annotation, Disposition, Mode, Row

# C type of a handle -> wire::HandleKind. CUfunction and CUkernel share one: both can be launched.
HANDLE_KINDS = {
    "CUcontext": "context",
    "CUstream": "stream",
    "CUevent": "event",
    "CUmodule": "module",
    "CUlibrary": "library",
    "CUfunction": "function",
    "CUkernel": "function",
    "CUgraph": "graph",
    "CUgraphExec": "graph_exec",
    "CUgraphNode": "graph_node",
    "CUmemoryPool": "mem_pool",
    "CUarray": "array",
    "CUmipmappedArray": "mipmapped_array",
    "CUmemGenericAllocationHandle": "mem_allocation",
    "CUtexref": "texref",
    "CUsurfref": "surfref",
    "CUgraphicsResource": "graphics_resource",
}
# Kinds whose handle in the guest is the address of a slab object (guest/runtime/objects.hpp); the
# others are the wire handle's bits.
SLAB_KINDS = frozenset({"context", "stream", "event", "function", "module", "library"})

# Names that the templates use for locals; a parameter of that name would hide them.
RESERVED = frozenset({"call", "result", "worker", "request", "error"})


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter of a generated function, as the templates see it.

    `role` is one of: value, enum, device, handle, stream, string, in, inout, out, create, existing,
    capacity, null.
    `count` names the parameter with the number of elements; empty for a single one.
    """

    name: str
    role: str
    type: str  # C++ type of the parameter, or of one element where it points to elements
    kind: str = ""  # wire::HandleKind when the elements are handles
    slab: bool = False
    count: str = ""
    count_is_pointer: bool = False
    optional: bool = False
    destroys: bool = False
    low: int = 0  # range of an enum
    high: int = 0
    untyped: bool = False  # a void pointer in the prototype; `type` is what the row says

    @property
    def counted(self) -> bool:
        """True when the parameter points to an array."""
        return bool(self.count)


def fields(row: Row, prototype: Prototype, header: Header) -> tuple[Field, ...]:
    """The Fields of a function. SpecError where header and row leave something open."""
    by_name = {parameter.name: parameter for parameter in prototype.parameters}
    for name in row.params:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise row.location.error(
                f"{prototype.name}: no parameter `{name}`; the header has {known}"
            )
    capacities = {a.count for a in row.params.values() if a.count_is_pointer}
    result = []
    streams = 0
    for parameter in prototype.parameters:
        if parameter.name in RESERVED:
            raise row.location.error(f"{prototype.name}: `{parameter.name}` needs a manual row")
        annotation = row.params.get(parameter.name) or _derive(
            row, prototype, parameter, header, capacities
        )
        if annotation.mode is Mode.VALUE and parameter.type.base == "CUstream":
            streams += 1
            if streams == 1:
                annotation = Annotation(Mode.STREAM)
        field = _field(row, prototype, parameter, annotation, header, capacities)
        _check_count(row, prototype, field, by_name)
        result.append(field)
    if row.disposition is Disposition.ASYNC:
        for field in result:
            if field.role in ("out", "inout", "existing", "capacity") or field.destroys:
                raise row.location.error(
                    f"{prototype.name}: `{field.name}` needs an answer, so the row cannot be async"
                )
    return tuple(result)


def _derive(
    row: Row, prototype: Prototype, parameter: Parameter, header: Header, capacities: set[str]
) -> Annotation:
    """What the header alone says about a parameter."""
    kind = parameter.type
    category = header.category(kind.base)
    if parameter.name in capacities:
        return Annotation(Mode.INOUT)
    if kind.pointers == 0:
        return Annotation(Mode.VALUE)
    if kind.pointers == 1 and kind.base == "char" and kind.const:
        return Annotation(Mode.STRING)
    plain = category in (Category.SCALAR, Category.ENUM, Category.STRUCT)
    if kind.pointers == 1 and kind.base not in HANDLE_KINDS and kind.base != "char" and plain:
        return Annotation(Mode.IN if kind.const else Mode.OUT)
    raise row.location.error(
        f"{prototype.name}: say how `{parameter.declaration}` travels, or make the row manual"
    )


def _field(
    row: Row,
    prototype: Prototype,
    parameter: Parameter,
    annotation: Annotation,
    header: Header,
    capacities: set[str],
) -> Field:
    where = f"{prototype.name}: `{parameter.name}`"
    mode = annotation.mode
    if mode in (Mode.STREAM, Mode.NULL, Mode.STRING):
        optional = annotation.optional
        return Field(parameter.name, mode.value, parameter.type.text, optional=optional)
    if mode in (Mode.VALUE, Mode.DESTROY):
        return _by_value(row, where, parameter, annotation, header)
    if parameter.type.pointers != 1:
        raise row.location.error(f"{where} is no pointer to elements: {parameter.declaration}")
    if parameter.name in capacities:
        return Field(parameter.name, "capacity", parameter.type.base)
    if mode in (Mode.CREATE, Mode.EXISTING):
        return _returned_handles(row, where, parameter, annotation)
    return _elements(row, where, parameter, annotation, header)


def _returned_handles(row: Row, where: str, parameter: Parameter, annotation: Annotation) -> Field:
    base = parameter.type.base
    kind = HANDLE_KINDS.get(base, "")
    if not kind:
        raise row.location.error(f"{where}: {base} is no handle of a wire kind")
    if kind in SLAB_KINDS:
        raise row.location.error(f"{where}: {base} is a guest object; make the row manual")
    if annotation.mode is Mode.CREATE and annotation.count:
        raise row.location.error(f"{where}: arrays of created handles need a manual row")
    return Field(
        parameter.name, annotation.mode.value, base, kind,
        count=annotation.count, count_is_pointer=annotation.count_is_pointer,
        optional=annotation.optional,
    )  # fmt: skip


def _elements(
    row: Row, where: str, parameter: Parameter, annotation: Annotation, header: Header
) -> Field:
    untyped = parameter.type.base == "void"
    base = annotation.type if untyped and annotation.type else parameter.type.base
    kind = HANDLE_KINDS.get(base, "")
    _check_plain(row, where, base, header)
    if kind and (annotation.mode is not Mode.IN or kind in ("context", "stream")):
        raise row.location.error(f"{where}: handles here need `create`, `existing` or a manual row")
    return Field(
        parameter.name, annotation.mode.value, base, kind, kind in SLAB_KINDS,
        count=annotation.count, count_is_pointer=annotation.count_is_pointer,
        optional=annotation.optional, untyped=untyped,
    )  # fmt: skip


def _by_value(
    row: Row, where: str, parameter: Parameter, annotation: Annotation, header: Header
) -> Field:
    kind = parameter.type
    handle_kind = HANDLE_KINDS.get(kind.base, "")
    destroys = annotation.mode is Mode.DESTROY
    if kind.pointers != 0:
        raise row.location.error(f"{where} is a pointer, not a value: {parameter.declaration}")
    if handle_kind:
        if handle_kind == "context":
            raise row.location.error(f"{where}: contexts as arguments need a manual row")
        if destroys and handle_kind in SLAB_KINDS:
            raise row.location.error(f"{where}: {kind.base} is a guest object; make the row manual")
        return Field(
            parameter.name, "handle", kind.base, handle_kind, handle_kind in SLAB_KINDS,
            optional=annotation.optional, destroys=destroys,
        )  # fmt: skip
    if destroys:
        raise row.location.error(f"{where}: only handles are destroyed")
    if kind.base == "CUdevice":
        return Field(parameter.name, "device", kind.base)
    _check_plain(row, where, kind.base, header)
    if header.category(kind.base) is Category.ENUM:
        low, high = header.enum_ranges[kind.base]
        return Field(parameter.name, "enum", kind.base, low=low, high=high)
    return Field(parameter.name, "value", kind.base)


def _check_plain(row: Row, where: str, base: str, header: Header) -> None:
    """Only plain bytes travel as they are: pointers mean nothing at the other end."""
    if base in HANDLE_KINDS:
        return
    if base == "CUdevice":
        raise row.location.error(f"{where}: device ordinals behind pointers need a manual row")
    category = header.category(base)
    if category in (Category.HANDLE, Category.FUNCTION, Category.VOID):
        raise row.location.error(f"{where}: {base} does not travel; make the row manual")
    member = header.pointers_inside.get(base)
    if member is not None:
        raise row.location.error(
            f"{where}: {base}.{member} means nothing at the other end; make the row manual"
        )


def _check_count(
    row: Row, prototype: Prototype, field: Field, by_name: dict[str, Parameter]
) -> None:
    if not field.count:
        return
    counter = by_name.get(field.count)
    if counter is None or counter.type.pointers != int(field.count_is_pointer):
        star = "a pointer" if field.count_is_pointer else "a value"
        raise row.location.error(
            f"{prototype.name}: `{field.name}` is counted by `{field.count}`, "
            f"which is not {star} here"
        )
    if field.count_is_pointer and field.role not in ("out", "existing"):
        raise row.location.error(f"{prototype.name}: `{field.name}`: [*n] is for results only")
    names = list(by_name)
    if field.count_is_pointer and names.index(field.count) < names.index(field.name):
        # The stub reads the capacity while it takes the array, and then overwrites it.
        raise row.location.error(f"{prototype.name}: `{field.count}` must follow what it counts")
