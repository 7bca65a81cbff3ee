"""What the parser takes from C headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpupool.wire.codegen import headers
from gpupool.wire.codegen.headers import Category, HeaderError

TEXT = """
typedef unsigned long size_t;
typedef struct CUthing_st *CUthing;
typedef enum CUresult_enum { CUDA_SUCCESS = 0 } CUresult;
typedef enum { A = 1 << 3, B, C = A | 1, LOW = -2 } CUkind;
typedef CUkind CUkind_alias;
typedef struct Plain_st { int a[3]; union { char b; size_t c; } u; } Plain;
typedef struct Deep_st { Plain p; struct { CUthing inside; } s; } Deep;
typedef struct CUmemLocation_st { int type; int id; } CUmemLocation_v1;
typedef CUmemLocation_v1 CUmemLocation;
typedef void (*CUcallback)(void *);
CUresult cuOne(const CUthing *things, size_t *const count, void **out, CUcallback f, unsigned n);
CUresult cuNone(void);
typedef CUresult (*PFN_cuOne_v3020)(const CUthing *things);
typedef CUresult (*PFN_cuOne_v7000_ptsz)(const CUthing *things);
"""


@pytest.fixture(scope="module")
def header() -> headers.Header:
    return headers.parse(TEXT)


def test_parameters(header: headers.Header) -> None:
    things, count, out, callback, number = header.prototypes["cuOne"].parameters
    assert (things.type.base, things.type.pointers, things.type.const) == ("CUthing", 1, True)
    assert things.declaration == "const CUthing *things"
    assert (count.type.base, count.type.pointers, count.type.const) == ("size_t", 1, False)
    assert (out.type.base, out.type.pointers) == ("void", 2)
    assert header.category(callback.type.base) is Category.FUNCTION
    assert header.category(number.type.base) is Category.SCALAR
    assert header.prototypes["cuNone"].parameters == ()


def test_categories(header: headers.Header) -> None:
    assert header.category("CUthing") is Category.HANDLE
    assert header.category("CUkind") is Category.ENUM
    assert header.category("Plain") is Category.STRUCT
    assert header.category("size_t") is Category.SCALAR
    with pytest.raises(HeaderError, match="CUunheard"):
        header.category("CUunheard")


def test_enum_ranges(header: headers.Header) -> None:
    assert header.enum_ranges["CUkind"] == (-2, 9)
    assert header.enum_ranges["CUkind_alias"] == (-2, 9)


def test_what_cannot_travel_is_found(header: headers.Header) -> None:
    assert "Plain" not in header.pointers_inside
    assert header.pointers_inside["Deep"] == "s.inside.CUthing"
    assert header.pointers_inside["CUmemLocation"] == "id"


def test_versions(header: headers.Header) -> None:
    assert [(v.name, v.since, v.suffix) for v in header.versions] == [
        ("cuOne", 3020, ""),
        ("cuOne", 7000, "_ptsz"),
    ]


def test_another_result_type_is_refused() -> None:
    with pytest.raises(HeaderError, match="cuOdd returns int"):
        headers.parse("int cuOdd(int a);")


def test_missing_headers_are_named(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="nvidia-cuda-runtime"):
        headers.read(tmp_path)


def test_a_header_that_does_not_preprocess(tmp_path: Path) -> None:
    (tmp_path / "cuda.h").write_text("#error no\n", encoding="utf-8")
    with pytest.raises(HeaderError, match="cannot preprocess"):
        headers.read(tmp_path, sources=("cuda.h",))
