"""What NVIDIA's headers say: prototypes, kinds of types, the version at which each symbol appeared.

The headers go through the compiler's preprocessor and a real C parser (pycparser); nothing here
looks at C text with regular expressions. `__CUDA_API_VERSION_INTERNAL` turns cuda.h's renaming
macros off, so that every exported symbol appears under its own name; `per_thread_names` reads it
with CUDA_API_PER_THREAD_DEFAULT_STREAM instead, as programs compiled so see it.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pycparser import CParser, c_ast, c_generator

FAKE_HEADERS = Path(__file__).parent / "fake"

# The wheel's headers in order; the later ones hold only typedefs of function pointers (PFN_...).
SOURCES = (
    "cuda.h",
    "cudaGL.h",
    "cudaTypedefs.h",
    "cudaProfilerTypedefs.h",
    "cudaGLTypedefs.h",
    "cudaEGLTypedefs.h",
    "cudaVDPAUTypedefs.h",
)

# Structs that name devices by ordinal: the client's and the worker's ordinals differ.
_ORDINALS = {"CUmemLocation_v1": "id"}

_PFN = re.compile(r"PFN_(cu\w+?)_v(\d+)(_pt[ds][sz])?")


class HeaderError(Exception):
    """The headers are missing, cannot be parsed, or are not what the generator was written for."""


class Category(Enum):
    """What a type is, as far as carrying it over the wire is concerned."""

    VOID = "void"
    SCALAR = "scalar"
    ENUM = "enum"
    STRUCT = "struct"
    HANDLE = "handle"  # pointer to an incomplete struct: CUstream, CUgraph...
    FUNCTION = "function"  # pointer to a function


_BUILTIN = {
    "void": Category.VOID,
    "function": Category.FUNCTION,
    **dict.fromkeys(
        (
            "char", "int", "unsigned", "short", "float", "double", "long", "long long",
            "unsigned int", "unsigned char", "unsigned short", "unsigned long",
            "unsigned long long",
        ),
        Category.SCALAR,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CType:
    """A parameter's type: `base` behind `pointers` stars; `const` is about the innermost thing."""

    text: str
    base: str
    pointers: int
    const: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a prototype. `declaration` is C text, e.g. `const void *srcHost`."""

    name: str
    type: CType
    declaration: str


@dataclass(frozen=True, slots=True)
class Prototype:
    """One function as declared; `file` is empty where only the type of a pointer to it is known."""

    name: str
    parameters: tuple[Parameter, ...]
    file: str = ""

    @property
    def in_cuda_h(self) -> bool:
        """False for graphics and profiler functions."""
        return self.file == "cuda.h"

    @property
    def declared(self) -> bool:
        """Whether its parameters have types that the sources know (wire/cpp/cuda_gl.hpp)."""
        return self.file in ("cuda.h", "cudaGL.h")

    def shape(self) -> tuple[str, ...]:
        """The parameter types alone, to tell two ABIs of one name apart."""
        return tuple(parameter.type.text for parameter in self.parameters)


@dataclass(frozen=True, slots=True)
class Version:
    """`cuGetProcAddress(name, since)` finds this ABI; `suffix` is "", "_ptds" or "_ptsz"."""

    name: str
    since: int
    suffix: str
    prototype: Prototype


@dataclass(slots=True)
class Header:
    """Everything the generator knows from the headers."""

    prototypes: dict[str, Prototype] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    enum_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    categories: dict[str, Category] = field(default_factory=dict)
    pointers_inside: dict[str, str] = field(
        default_factory=dict
    )  # struct -> member with a pointer or ordinal

    def category(self, base: str) -> Category:
        """What the type name `base` is. HeaderError for a name the headers do not know."""
        if base in _BUILTIN:
            return _BUILTIN[base]
        if base in self.categories:
            return self.categories[base]
        raise HeaderError(f"type {base} is not in the headers")


def preprocess(include_dir: Path, compiler: str, source: str, define: str) -> str:
    """The preprocessed text of `source` (C, standing in no file)."""
    command = [
        compiler, "-E", "-x", "c", "-std=c99", "-nostdinc", "-D__attribute__(x)=", f"-D{define}",
        f"-I{FAKE_HEADERS}", f"-I{include_dir}", "-",
    ]  # fmt: skip
    done = subprocess.run(  # noqa: S603
        command, input=source, capture_output=True, text=True, timeout=60
    )
    if done.returncode != 0:
        raise HeaderError(f"{compiler} cannot preprocess the CUDA headers:\n{done.stderr}")
    return done.stdout


def read(include_dir: Path, compiler: str = "g++", sources: tuple[str, ...] = SOURCES) -> Header:
    """Reads the headers of the wheel in `include_dir`."""
    if not (include_dir / sources[0]).is_file():
        raise HeaderError(
            f"{include_dir} holds no {sources[0]}: install the PyPI package nvidia-cuda-runtime"
        )
    text = "".join(f"#include <{name}>\n" for name in sources)
    return parse(preprocess(include_dir, compiler, text, "__CUDA_API_VERSION_INTERNAL"))


def per_thread_names(include_dir: Path, compiler: str = "g++") -> set[str]:
    """The function names that a program compiled for per-thread default streams sees in cuda.h."""
    text = preprocess(
        include_dir, compiler, "#include <cuda.h>\n", "CUDA_API_PER_THREAD_DEFAULT_STREAM"
    )
    return set(parse(text).prototypes)


def parse(text: str) -> Header:
    """Turns preprocessed C into a Header."""
    tree = CParser().parse(text, "<cuda headers>")
    return _Collector(tree).header


class _Collector:
    """Walks the top level of the syntax tree once."""

    def __init__(self, tree: c_ast.FileAST) -> None:
        self.header = Header()
        self._tree = tree  # keeps the nodes alive: they are known by id() below
        self._enums: dict[int, tuple[int, int]] = {}
        self._constants: dict[str, int] = {}
        self._structs: dict[str, c_ast.Node] = {}
        self._typedefs: dict[str, c_ast.Node] = {}
        self._generator = c_generator.CGenerator()
        for node in tree.ext:
            self._visit(node)
        for name in self._typedefs:
            self._classify(name)

    def _visit(self, node: c_ast.Node) -> None:
        if isinstance(node, c_ast.Typedef):
            self._typedefs[node.name] = node.type
            self._remember_tags(node.type)
            match = _PFN.fullmatch(node.name)
            if match is not None:
                self._version(node, match[1], int(match[2]), match[3] or "")
        elif isinstance(node, c_ast.Decl):
            self._remember_tags(node.type)
            if isinstance(node.type, c_ast.FuncDecl):
                file = Path(str(node.coord.file)).name
                prototype = self._prototype(node.name, node.type, file)
                self.header.prototypes[node.name] = prototype

    def _version(self, node: c_ast.Typedef, name: str, since: int, suffix: str) -> None:
        function = node.type.type
        prototype = self._prototype(name, function)
        self.header.versions.append(Version(name, since, suffix, prototype))

    def _prototype(self, name: str, function: c_ast.FuncDecl, file: str = "") -> Prototype:
        result = self._generator.visit(function.type.type)
        if result != "CUresult":
            raise HeaderError(f"{name} returns {result}, not CUresult")
        parameters = []
        for declaration in function.args.params if function.args is not None else []:
            kind = self._type(declaration.type)
            if kind.base == "void" and kind.pointers == 0:
                continue
            text = self._generator.visit(declaration)
            parameters.append(Parameter(declaration.name or "", kind, text))
        return Prototype(name, tuple(parameters), file)

    def _type(self, node: c_ast.Node) -> CType:
        text = self._generator.visit(
            c_ast.Typename(None, getattr(node, "quals", []), None, _nameless(node))
        )
        pointers = 0
        while isinstance(node, c_ast.PtrDecl | c_ast.ArrayDecl):
            pointers += 1
            node = node.type
        if isinstance(node, c_ast.FuncDecl):
            return CType(text, "function", pointers, False)
        if not isinstance(node, c_ast.TypeDecl):
            raise HeaderError(f"unexpected declarator {type(node).__name__} in `{text}`")
        inner = node.type
        base = " ".join(inner.names) if isinstance(inner, c_ast.IdentifierType) else inner.name
        return CType(text, base, pointers, "const" in node.quals)

    def _remember_tags(self, node: c_ast.Node) -> None:
        """Notes the structs and enums defined anywhere inside a declaration."""
        if isinstance(node, c_ast.Enum) and node.values is not None:
            self._enum(node)
        if isinstance(node, c_ast.Struct | c_ast.Union) and node.decls is not None and node.name:
            self._structs[node.name] = node
        for _, child in node.children():
            self._remember_tags(child)

    def _enum(self, node: c_ast.Enum) -> None:
        following = 0
        values = []
        for item in node.values.enumerators:
            if item.value is not None:
                following = self._evaluate(item.value)
            self._constants[item.name] = following
            values.append(following)
            following += 1
        if node.name:
            self.header.enum_ranges[node.name] = (min(values), max(values))
        self._enums[id(node)] = (min(values), max(values))

    def _evaluate(self, node: c_ast.Node) -> int:
        if isinstance(node, c_ast.Constant):
            return int(node.value.rstrip("uUlL"), 0)
        if isinstance(node, c_ast.ID):
            return self._constants[node.name]
        if isinstance(node, c_ast.UnaryOp):
            value = self._evaluate(node.expr)
            return {"-": -value, "~": ~value, "+": value}[node.op]
        if isinstance(node, c_ast.BinaryOp):
            left, right = self._evaluate(node.left), self._evaluate(node.right)
            return {"<<": left << right, "|": left | right, "+": left + right, "-": left - right}[
                node.op
            ]
        if isinstance(node, c_ast.Cast):
            return self._evaluate(node.expr)
        raise HeaderError(f"cannot evaluate an enumerator of kind {type(node).__name__}")

    def _classify(self, name: str) -> Category:
        known = self.header.categories.get(name)
        if known is not None:
            return known
        category = self._classify_node(name, self._typedefs[name])
        self.header.categories[name] = category
        return category

    def _classify_node(self, name: str, node: c_ast.Node) -> Category:
        if isinstance(node, c_ast.PtrDecl):
            function = isinstance(node.type, c_ast.FuncDecl)
            return Category.FUNCTION if function else Category.HANDLE
        if isinstance(node, c_ast.FuncDecl):
            return Category.FUNCTION
        inner = node.type
        if isinstance(inner, c_ast.IdentifierType):
            return self._classify_alias(name, " ".join(inner.names))
        if isinstance(inner, c_ast.Enum):
            span = self._enums.get(id(inner)) or self.header.enum_ranges.get(inner.name)
            if span is not None:
                self.header.enum_ranges[name] = span
            return Category.ENUM
        if isinstance(inner, c_ast.Struct | c_ast.Union):
            member = _ORDINALS.get(name) or self._pointer_inside(inner)
            if member is not None:
                self.header.pointers_inside[name] = member
            return Category.STRUCT
        raise HeaderError(f"typedef {name} is of a kind that the generator does not know")

    def _classify_alias(self, name: str, target: str) -> Category:
        """A typedef of a typedef or of a builtin type."""
        if target not in self._typedefs:
            return _BUILTIN.get(target, Category.SCALAR)
        category = self._classify(target)
        if target in self.header.enum_ranges:
            self.header.enum_ranges[name] = self.header.enum_ranges[target]
        if target in self.header.pointers_inside:
            self.header.pointers_inside[name] = self.header.pointers_inside[target]
        return category

    def _pointer_inside(self, node: c_ast.Node) -> str | None:
        """The first member that is, or holds, a pointer or handle; None for plain bytes."""
        if node.decls is None:
            node = self._structs.get(node.name, node)
        for declaration in node.decls or []:
            kind = declaration.type
            while isinstance(kind, c_ast.ArrayDecl):
                kind = kind.type
            if isinstance(kind, c_ast.PtrDecl | c_ast.FuncDecl):
                return declaration.name or "?"
            inner = kind.type if isinstance(kind, c_ast.TypeDecl) else kind
            if isinstance(inner, c_ast.Struct | c_ast.Union):
                found = self._pointer_inside(inner)
            elif isinstance(inner, c_ast.IdentifierType):
                found = self._typedef_pointer(" ".join(inner.names))
            else:
                found = None
            if found is not None:
                return f"{declaration.name}.{found}" if declaration.name else found
        return None

    def _typedef_pointer(self, name: str) -> str | None:
        if name not in self._typedefs:
            return None
        category = self._classify(name)
        if category in (Category.HANDLE, Category.FUNCTION):
            return name
        return self.header.pointers_inside.get(name)


def _nameless(node: c_ast.Node) -> c_ast.Node:
    """A copy of a declarator without its identifier, so that the type alone is printed."""
    if isinstance(node, c_ast.TypeDecl):
        return c_ast.TypeDecl(None, node.quals, None, node.type)
    if isinstance(node, c_ast.PtrDecl):
        return c_ast.PtrDecl(node.quals, _nameless(node.type))
    if isinstance(node, c_ast.ArrayDecl):
        return c_ast.ArrayDecl(_nameless(node.type), node.dim, node.dim_quals)
    return node
