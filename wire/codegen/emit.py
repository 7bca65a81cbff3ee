"""Renders the templates of templates/cuda and writes what has changed."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from gpupool.wire.codegen.layout import SLAB_KINDS
from gpupool.wire.codegen.model import Model
from gpupool.wire.codegen.spec import Disposition

# What goes to the build folder; each has the template of the same name with `.j2`.
OUTPUTS = (
    "wire_functions.hpp",
    "driver_api.hpp",
    "driver_api.cpp",
    "guest_api.hpp",
    "guest_stubs.cpp",
    "guest_entry.cpp",
    "guest_proc_table.hpp",
    "guest_proc_table.cpp",
    "worker_manual.hpp",
    "worker_dispatch.hpp",
    "worker_dispatch.cpp",
    "fuzz_entries.hpp",
)
COVERAGE_TEMPLATE = "coverage.md"

# wire::HandleKind -> member of worker::Worker.
WORKER_TABLES = {
    "context": "contexts",
    "stream": "streams",
    "event": "events",
    "module": "modules",
    "library": "libraries",
    "function": "functions",
    "graph": "graphs",
    "graph_exec": "graph_execs",
    "graph_node": "graph_nodes",
    "mem_pool": "mem_pools",
    "array": "arrays",
    "mipmapped_array": "mipmapped_arrays",
    "link_state": "link_states",
    "mem_allocation": "mem_allocations",
    "texref": "texrefs",
    "surfref": "surfrefs",
    "graphics_resource": "graphics_resources",
}


def render(model: Model, templates: Path) -> dict[str, str]:
    """The text of every output by file name, docs/coverage.md as `coverage.md`."""
    templated = environment(templates)
    context = {
        "model": model,
        "functions": model.functions,
        "tables": WORKER_TABLES,
        "slab_kinds": SLAB_KINDS,
        "Disposition": Disposition,
    }
    result = {}
    for name in (*OUTPUTS, COVERAGE_TEMPLATE):
        result[name] = squeeze(
            templated.get_template(f"{name}.j2").render(context, template=f"{name}.j2")
        )
    return result


def write_changed(path: Path, text: str) -> bool:
    """Writes only if the content differs, so that a build does not recompile what is the same."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def squeeze(text: str) -> str:
    """Without the empty lines that loops leave."""
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def environment(templates: Path) -> jinja2.Environment:
    """How every template of ours is read."""
    # autoescape is for HTML; these templates write C++ and Markdown.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701
    )
