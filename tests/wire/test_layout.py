"""How parameters travel: what follows from the header, what a row must say, what is refused."""

from __future__ import annotations

import pytest

from gpupool.wire.codegen import headers
from gpupool.wire.codegen.layout import Field, fields
from gpupool.wire.codegen.spec import Disposition, Location, Row, SpecError, parse_annotation

HEADER = headers.parse(
    """
typedef unsigned long size_t;
typedef int CUdevice;
typedef enum CUresult_enum { CUDA_SUCCESS = 0 } CUresult;
typedef enum CUkind_enum { FIRST = 1, LAST = 4 } CUkind;
typedef struct CUstream_st *CUstream;
typedef struct CUctx_st *CUcontext;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUexternalMemory_st *CUexternalMemory;
typedef struct Plain_st { int a; } Plain;
typedef struct Pointing_st { void *a; } Pointing;
typedef void (*CUcallback)(void *);
CUresult cuValues(int a, CUkind kind, CUdevice dev, Plain plain, CUgraph graph, CUevent event);
CUresult cuPointers(const int *in, Plain *out, const char *name, void *any, size_t n);
CUresult cuStreams(CUstream first, CUstream second);
CUresult cuNodes(CUgraphNode *nodes, size_t *count);
CUresult cuCountFirst(size_t *count, CUgraphNode *nodes);
CUresult cuMake(CUgraph *graph);
CUresult cuMakeEvent(CUevent *event);
CUresult cuContext(CUcontext ctx);
CUresult cuExternal(CUexternalMemory ref);
CUresult cuPointing(const Pointing *p);
CUresult cuPointingValue(Pointing p);
CUresult cuDevices(CUdevice *devices);
CUresult cuCallback(CUcallback f);
CUresult cuCall(int call);
"""
)


def plan(
    function: str, params: dict[str, str] | None = None, disposition: str = "sync"
) -> list[Field]:
    location = Location("wire/api/x.yaml", 7)
    annotations = {name: parse_annotation(text, location) for name, text in (params or {}).items()}
    row = Row(function, location, Disposition(disposition), params=annotations)
    return list(fields(row, HEADER.prototypes[function], HEADER))


def test_values_follow_from_the_header() -> None:
    a, kind, dev, plain, graph, event = plan("cuValues")
    assert (a.role, kind.role, dev.role, plain.role) == ("value", "enum", "device", "value")
    assert (kind.low, kind.high) == (1, 4)
    assert (graph.role, graph.kind, graph.slab) == ("handle", "graph", False)
    assert (event.role, event.kind, event.slab) == ("handle", "event", True)


def test_pointers() -> None:
    roles = [field.role for field in plan("cuPointers", {"any": "out:Plain[n]"})]
    assert roles == ["in", "out", "string", "out", "value"]


def test_the_first_stream_is_the_header_s() -> None:
    assert [field.role for field in plan("cuStreams")] == ["stream", "handle"]


def test_a_counted_result_has_a_capacity() -> None:
    nodes, count = plan("cuNodes", {"nodes": "existing[*count]?"})
    assert (nodes.role, nodes.counted, nodes.optional) == ("existing", True, True)
    assert count.role == "capacity"


@pytest.mark.parametrize(
    ("function", "params", "message"),
    [
        ("cuPointers", {}, "say how `void *any` travels"),
        ("cuPointers", {"all": "in"}, "no parameter `all`; the header has in, out, name, any, n"),
        ("cuPointers", {"any": "out:Plain[m]"}, "counted by `m`"),
        ("cuPointers", {"any": "out:Plain[*n]"}, "counted by `n`"),
        ("cuPointers", {"any": "out:Pointing[n]"}, "Pointing.a means nothing at the other end"),
        ("cuPointers", {"any": "value"}, "is a pointer, not a value"),
        ("cuNodes", {}, "say how `CUgraphNode *nodes` travels"),
        ("cuNodes", {"nodes": "out[*count]"}, "need `create`, `existing` or a manual row"),
        ("cuCountFirst", {"nodes": "existing[*count]"}, "`count` must follow what it counts"),
        ("cuMake", {"graph": "in[graph]"}, "counted by `graph`"),
        ("cuMakeEvent", {"event": "create"}, "CUevent is a guest object"),
        ("cuContext", {}, "contexts as arguments need a manual row"),
        ("cuExternal", {}, "CUexternalMemory does not travel"),
        ("cuPointing", {}, "Pointing.a means nothing at the other end"),
        ("cuPointingValue", {}, "Pointing.a means nothing at the other end"),
        ("cuDevices", {}, "device ordinals behind pointers"),
        ("cuCallback", {}, "CUcallback does not travel"),
        ("cuCall", {}, "`call` needs a manual row"),
        ("cuValues", {"a": "destroy"}, "only handles are destroyed"),
        ("cuValues", {"event": "destroy"}, "CUevent is a guest object"),
    ],
)
def test_what_cannot_be_generated_is_said(
    function: str, params: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        plan(function, params)
    assert str(caught.value).startswith("wire/api/x.yaml:7: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("function", "params"),
    [
        ("cuPointers", {"any": "in:Plain[n]"}),
        ("cuNodes", {"nodes": "existing[*count]"}),
        ("cuValues", {"graph": "destroy"}),
    ],
)
def test_what_needs_an_answer_cannot_be_async(function: str, params: dict[str, str]) -> None:
    plan(function, params)
    with pytest.raises(SpecError, match="cannot be async"):
        plan(function, params, "async")
