"""Renders the templates of templates/opengl.

Run by the build as `python wire/codegen/__main__.py --opengl OUT`; `--opengl-coverage` writes
docs/opengl-coverage.md.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gpupool.wire.codegen.emit import environment, squeeze
from gpupool.wire.codegen.opengl import Registry

# What goes to the build folder; each has the template of the same name with `.j2`.
OPENGL_OUTPUTS = (
    "gl_enums.hpp",
    "gl_messages.hpp",
    "gl_api.hpp",
    "gl_dispatch.hpp",
    "gl_dispatch.cpp",
    "gl_client.hpp",
    "gl_client.cpp",
)
OPENGL_COVERAGE = "opengl-coverage.md"


def render(registry: Registry, templates: Path) -> dict[str, str]:
    """The text of every output by file name."""
    counts = Counter(command.disposition for command in registry.commands)
    context = {
        "registry": registry,
        "counts": sorted(counts.items()),
        "supported": len(registry.commands) - counts["unsupported"],
        "constant_values": sorted({value for _, value in registry.constants}),
    }
    templated = environment(templates)
    return {
        name: squeeze(templated.get_template(f"{name}.j2").render(context, template=f"{name}.j2"))
        for name in (*OPENGL_OUTPUTS, OPENGL_COVERAGE)
    }
