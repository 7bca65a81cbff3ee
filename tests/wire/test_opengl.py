"""The description of OpenGL: what is read from the registry and from our rows, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.wire.codegen import opengl, opengl_emit
from gpupool.wire.codegen.opengl import Command, Count, Registry
from gpupool.wire.codegen.spec import SpecError
from tests.conftest import ROOT

API = ROOT / "wire" / "api"


@pytest.fixture(scope="module")
def registry() -> Registry:
    """As the build reads it."""
    folder = opengl.find_registry()
    if folder is None:
        pytest.skip("gl.xml is missing: pip install glad2")
    return opengl.load(folder, API)


def command(registry: Registry, name: str) -> Command:
    """One of the commands."""
    return next(one for one in registry.commands if one.name == name)


def test_every_command_of_core_has_its_number(registry: Registry) -> None:
    assert len(registry.commands) == 657
    assert [one.number for one in registry.commands] == list(range(1, 658))
    # Part of the protocol: these never change.
    assert registry.commands[0].name == "glActiveShaderProgram"
    assert command(registry, "glClear").number == 47


def test_sizes_come_from_the_registry(registry: Registry) -> None:
    uniform = command(registry, "glUniformMatrix4fv")
    assert uniform.disposition == "async"
    assert uniform.parameters[3].count == Count("count", 16)
    log = command(registry, "glGetShaderInfoLog")
    assert log.disposition == "sync"
    assert [each.role for each in log.parameters] == ["value", "value", "out", "out"]


def test_offsets_need_a_bound_buffer(registry: Registry) -> None:
    """Whatever has a pointer that is no memory of the client's says what must be bound."""
    for one in registry.commands:
        roles = {each.role for each in one.parameters}
        if roles & {"offset", "offsets"}:
            assert one.needs or one.worker_manual, one.name


def test_content_beside_a_message_is_alone(registry: Registry) -> None:
    """A slot has one piece, and the rest of the command must fit the slot."""
    for one in registry.commands:
        if any(each.bulk for each in one.parameters):
            assert [each.role for each in one.parameters if each.role != "value"] == ["in"], (
                one.name
            )


def test_the_page_is_fresh(registry: Registry) -> None:
    page = opengl_emit.render(registry, ROOT / "templates" / "opengl")[opengl_emit.OPENGL_COVERAGE]
    assert (ROOT / "docs" / "opengl-coverage.md").read_text(encoding="utf-8") == page, (
        "run `python -m gpupool.wire.codegen --opengl-coverage docs/opengl-coverage.md`"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("glNothing: {}", "no number"),
        ("glClear: {size: 4}", "no such key: size"),
        ("glClear: {params: {pixels: in}}", "no parameter pixels"),
        ('glBufferData: {params: {data: "in["}}', "cannot read"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path: Path, row: str, said: str) -> None:
    folder = opengl.find_registry()
    if folder is None:
        pytest.skip("gl.xml is missing: pip install glad2")
    (tmp_path / "opengl").mkdir()
    names = (API / "opengl" / "core-4.6.txt").read_text()
    (tmp_path / "opengl" / "core-4.6.txt").write_text(names)
    rows = (API / "opengl" / "rows.yaml").read_text()
    key = row.split(":")[0]
    kept = "\n".join(line for line in rows.splitlines() if not line.startswith(f"{key}:"))
    (tmp_path / "opengl" / "rows.yaml").write_text(f"{kept}\n{row}\n")
    with pytest.raises(SpecError, match=said):
        opengl.load(folder, tmp_path)
