"""The part of NVML that the guest does not answer: every function of nvml.h without a row in
wire/api/nvml/answered.yaml, as C++ that returns NVML_ERROR_NOT_SUPPORTED.

As for cuda.h the header goes through the compiler's preprocessor and a real C parser; with
NVML_NO_UNVERSIONED_FUNC_DEFS the names without a version are declared as functions of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from pycparser import CParser, c_ast, c_generator

from gpupool.wire.codegen.headers import HeaderError, preprocess
from gpupool.wire.codegen.spec import SpecError

TEMPLATE = "nvml_rest.cpp.j2"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of nvml.h. `parameters` are types without names."""

    name: str
    returns: str
    parameters: tuple[str, ...]


def functions(include_dir: Path, compiler: str) -> dict[str, Function]:
    """Every function that nvml.h declares, by name."""
    if not (include_dir / "nvml.h").is_file():
        raise HeaderError(
            f"{include_dir} holds no nvml.h: install the PyPI package nvidia-nvml-dev"
        )
    text = preprocess(include_dir, compiler, "#include <nvml.h>\n", "NVML_NO_UNVERSIONED_FUNC_DEFS")
    found = {}
    generator = c_generator.CGenerator()
    for node in CParser().parse(text, "nvml.h").ext:
        if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
            found[node.name] = Function(
                node.name, _text(generator, node.type.type), _parameters(generator, node.type)
            )
    return found


def _parameters(generator: c_generator.CGenerator, function: c_ast.FuncDecl) -> tuple[str, ...]:
    declared = function.args.params if function.args is not None else []
    texts = [_text(generator, one.type) for one in declared]
    return () if texts == ["void"] else tuple(texts)


def _text(generator: c_generator.CGenerator, node: c_ast.Node) -> str:
    """A declarator's type alone, in C."""
    if isinstance(node, c_ast.ArrayDecl):  # a parameter: passed as a pointer
        return _text(generator, node.type) + " *"
    if isinstance(node, c_ast.PtrDecl):
        return _text(generator, node.type) + " *"
    if not isinstance(node, c_ast.TypeDecl):
        raise HeaderError(f"unexpected declarator {type(node).__name__} in nvml.h")
    return " ".join([*node.quals, str(generator.visit(node.type))])


def rest(include_dir: Path, compiler: str, api: Path, templates: Path) -> str:
    """The C++ text. Raises SpecError for a row that nvml.h does not know."""
    declared = functions(include_dir, compiler)
    description = yaml.safe_load((api / "nvml" / "answered.yaml").read_text(encoding="utf-8"))
    answered = [name for names in description["answered"].values() for name in names]
    for name in answered:
        if name not in declared or answered.count(name) > 1:
            raise SpecError(f"answered.yaml: {name} is not in nvml.h, or there twice")
    unanswered = [one for name, one in sorted(declared.items()) if name not in answered]
    for one in unanswered:
        if one.returns != "nvmlReturn_t":
            raise SpecError(f"nvml.h: {one.name} returns {one.returns} and needs a row")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (C++, not HTML)
    )
    return environment.get_template(TEMPLATE).render(
        template=TEMPLATE, rest=unanswered, without_header=description["without_header"]
    )
