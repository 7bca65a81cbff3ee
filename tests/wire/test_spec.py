"""Rows: what they may say, and that an error names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.wire.codegen.spec import Annotation, Disposition, Mode, SpecError, load_file, load_rows


def rows_of(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "wire" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_read_with_its_place(tmp_path: Path) -> None:
    path = rows_of(
        tmp_path,
        "# a remark\n\n"
        'cuA: {do: sync, variants: [_ptsz], params: {x: "in:int[n]?", y: "existing[*n]"}}\n'
        "cuB: {as: cuA}\n",
    )
    first, second = load_file(path)
    assert (first.location.file, first.location.line) == ("wire/api/some.yaml", 3)
    assert first.disposition is Disposition.SYNC
    assert first.variants == ("cuA_ptsz",)
    assert first.params["x"] == Annotation(Mode.IN, "int", "n", False, True)
    assert first.params["y"] == Annotation(Mode.EXISTING, "", "n", True, False)
    assert (second.disposition, second.same_as) == (None, "cuA")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("cuA: {do: perhaps}\n", 1, "`do: perhaps` is none of"),
        ("\ncuA: {}\n", 2, "give either `do` or `as`"),
        ("cuA: {do: sync, as: cuB}\n", 1, "give either `do` or `as`"),
        ("cuA: {do: sync, colour: red}\n", 1, "unknown key colour"),
        ("cuA: {do: unsupported}\n", 1, "says why"),
        ('cuA: {do: sync, params: {x: "out["}}\n', 1, "is no annotation"),
        ("cuA: {do: sync, params: {x: sideways}}\n", 1, "is no annotation"),
        ("cuA: {do: local, params: {x: in}}\n", 1, "go with `sync` and `async` only"),
        ("cuA: {do: sync, guest: yes}\n", 1, "`guest:` can only be `manual`"),
        ("cuA: {do: local, before_init: maybe}\n", 1, "is true or false"),
        ("cuA: {do: local, variants: [cuA_v2]}\n", 1, "suffixes"),
        ("cuA: {do: sync, do: async}\n", 1, "`do` is given twice"),
        ("cuA: local\n", 1, "a row is a mapping"),
        ("cuA: {do: local}\ncuB: {do: [\n", 3, ""),
    ],
)
def test_a_wrong_row_names_its_place(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_file(rows_of(tmp_path, text))
    assert str(caught.value).startswith(f"wire/api/some.yaml:{line}: ")
    assert message in str(caught.value)


def test_a_function_has_one_row(tmp_path: Path) -> None:
    path = rows_of(tmp_path, "cuA: {do: local}\ncuB: {do: local}\n")
    (path.parent / "zz.yaml").write_text("cuB: {do: manual}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"zz\.yaml:1: cuB has a row at wire/api/some\.yaml:2"):
        load_rows(path.parent)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no rows"):
        load_rows(tmp_path)
