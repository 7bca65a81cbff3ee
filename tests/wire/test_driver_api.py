"""The description of the real driver API against NVIDIA's headers and the list of exports."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gpupool.wire.codegen import emit, headers, model
from gpupool.wire.codegen.__main__ import find_include_dir, main
from gpupool.wire.codegen.spec import SpecError

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "wire" / "api"

# What PyTorch, cuBLAS, cuDNN and Triton were seen to call on an H100 (driver 580, PyTorch 2.11).
TRACED = [
    "cuCtxGetApiVersion",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxGetLimit",
    "cuCtxGetStreamPriorityRange",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxGetState",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGetExportTable",
    "cuGetProcAddress_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuKernelGetAttribute",
    "cuKernelGetFunction",
    "cuKernelSetAttribute",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuLibraryGetGlobal",
    "cuLibraryGetKernel",
    "cuLibraryLoadData",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuModuleGetLoadingMode",
    "cuModuleLoad",
    "cuModuleLoadData",
    "cuOccupancyAvailableDynamicSMemPerBlock",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
    "cuOccupancyMaxActiveClusters",
    "cuPointerGetAttribute",
    "cuPointerGetAttributes",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCaptureInfo_v2",
    "cuStreamGetCaptureInfo_v3",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuThreadExchangeStreamCaptureMode",
]


@pytest.fixture(scope="module")
def include() -> Path:
    found = find_include_dir()
    if found is None:
        pytest.skip("needs the PyPI package nvidia-cuda-runtime")
    return found


@pytest.fixture(scope="module")
def header(include: Path) -> headers.Header:
    return headers.read(include)


@pytest.fixture(scope="module")
def api(header: headers.Header) -> model.Model:
    return model.load(API, header)


@pytest.fixture
def copied_api(tmp_path: Path) -> Path:
    return Path(shutil.copytree(API, tmp_path / "wire" / "api"))


def test_every_export_has_a_row_and_a_number(api: model.Model) -> None:
    exports = model.load_exports(API / "exports-13.0.txt")
    assert len(exports) == 707
    assert [function.name for function in api.functions] == exports
    assert [function.number for function in api.functions] == list(range(64, 64 + 707))


def test_every_function_of_cuda_h_is_an_export(api: model.Model, header: headers.Header) -> None:
    declared = {name for name, prototype in header.prototypes.items() if prototype.in_cuda_h}
    assert len(declared) == 634
    assert declared <= {function.name for function in api.functions}


def test_names_that_per_thread_programs_link_are_exports(api: model.Model, include: Path) -> None:
    names = headers.per_thread_names(include)
    assert "cuMemcpyHtoD_v2_ptds" in names
    assert names <= {function.name for function in api.functions}


def test_an_export_without_a_row_is_an_error(copied_api: Path, header: headers.Header) -> None:
    with (copied_api / "exports-13.0.txt").open("a", encoding="utf-8") as exports:
        exports.write("cuNewInNextDriver\n")
    with pytest.raises(SpecError, match="1 exports have no row: cuNewInNextDriver"):
        model.load(copied_api, header)


def test_a_row_without_an_export_is_an_error(copied_api: Path, header: headers.Header) -> None:
    (copied_api / "cuda" / "new.yaml").write_text("\ncuInvented: {do: local}\n", encoding="utf-8")
    with pytest.raises(
        SpecError, match=r"wire/api/cuda/new\.yaml:2: cuInvented is no export of libcuda"
    ):
        model.load(copied_api, header)


def test_a_parameter_that_the_header_lacks_is_an_error(
    copied_api: Path, header: headers.Header
) -> None:
    path = copied_api / "cuda" / "array.yaml"
    text = path.read_text(encoding="utf-8")
    assert "pHandle: create" in text
    path.write_text(text.replace("pHandle: create", "pHandel: create"), encoding="utf-8")
    with pytest.raises(
        SpecError, match=r"array\.yaml:\d+: cuArray3DCreate_v2: no parameter `pHandel`"
    ):
        model.load(copied_api, header)


def test_a_forgotten_per_thread_flavour_is_an_error(
    copied_api: Path, header: headers.Header
) -> None:
    path = copied_api / "cuda" / "event.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(", variants: [_ptsz]", "", 1), encoding="utf-8")
    with pytest.raises(SpecError, match="exports have no row: cuEvent"):
        model.load(copied_api, header)


def test_per_thread_flavours_go_with_their_function(api: model.Model) -> None:
    by_name = {function.name: function for function in api.functions}
    for function in api.functions:
        flavoured = function.name.endswith(("_ptds", "_ptsz"))
        assert bool(function.per_thread_of) == flavoured
        if flavoured:
            base = by_name[function.per_thread_of]
            assert function.disposition is base.disposition
            if function.prototype is not None and base.prototype is not None:
                assert function.prototype.shape() == base.prototype.shape()


def test_what_was_traced_is_supported(api: model.Model) -> None:
    supported = {function.name for function in api.functions if function.supported}
    assert set(TRACED) <= supported


def test_before_init_is_for_the_few_that_work_then(api: model.Model) -> None:
    assert {function.name for function in api.functions if function.row.before_init} == {
        "cuInit",
        "cuDriverGetVersion",
        "cuGetErrorName",
        "cuGetErrorString",
        "cuGetExportTable",
        "cuGetProcAddress",
        "cuGetProcAddress_v2",
    }


def test_forwarded_functions_agree_in_their_types(api: model.Model, header: headers.Header) -> None:
    for function in api.functions:
        if not function.same_as or function.prototype is None:
            continue
        target = header.prototypes[function.same_as]
        own = {p.name.lower(): p.type.text for p in function.prototype.parameters}
        for parameter in target.parameters:
            if parameter.name.lower() in own:
                assert own[parameter.name.lower()] == parameter.type.text, function.name


@pytest.mark.parametrize(
    ("name", "since", "entry", "per_thread", "per_thread_since"),
    [
        ("cuMemAlloc", 2000, "cuMemAlloc", "", 0),
        ("cuMemAlloc", 3020, "cuMemAlloc_v2", "", 0),
        ("cuMemcpyHtoDAsync", 2000, "cuMemcpyHtoDAsync", "", 0),
        ("cuMemcpyHtoDAsync", 3020, "cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync_v2_ptsz", 7000),
        ("cuMemcpy", 4000, "cuMemcpy", "cuMemcpy_ptds", 7000),
        ("cuGetProcAddress", 11030, "cuGetProcAddress", "", 0),
        ("cuGetProcAddress", 12000, "cuGetProcAddress_v2", "", 0),
        ("cuStreamBeginCapture", 10000, "cuStreamBeginCapture", "cuStreamBeginCapture_ptsz", 10000),
        (
            "cuStreamBeginCapture",
            10010,
            "cuStreamBeginCapture_v2",
            "cuStreamBeginCapture_v2_ptsz",
            10010,
        ),
        ("cuGraphInstantiate", 10000, "cuGraphInstantiate", "", 0),
        ("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2", "", 0),
        ("cuGraphInstantiateWithFlags", 11040, "cuGraphInstantiateWithFlags", "", 0),
        (
            "cuStreamGetCaptureInfo",
            11030,
            "cuStreamGetCaptureInfo_v2",
            "cuStreamGetCaptureInfo_v2_ptsz",
            11030,
        ),
        ("cuLaunchKernel", 4000, "cuLaunchKernel", "cuLaunchKernel_ptsz", 7000),
        ("cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2", "", 0),
        ("cuProfilerStart", 4000, "cuProfilerStart", "", 0),
    ],
)
def test_versions_lead_to_symbols(
    api: model.Model, name: str, since: int, entry: str, per_thread: str, per_thread_since: int
) -> None:
    assert model.ProcEntry(name, since, entry, per_thread, per_thread_since) in api.procs


def test_versions_have_the_types_of_their_symbols(api: model.Model, header: headers.Header) -> None:
    """The symbols are found by order; NVIDIA's own typedefs must agree."""

    def shape(prototype: headers.Prototype) -> list[tuple[str, int]]:
        return [
            (_older_name(parameter.type.base), parameter.type.pointers)
            for parameter in prototype.parameters
        ]

    entries = {(proc.name, proc.since): proc.entry for proc in api.procs}
    compared = 0
    for version in header.versions:
        symbol = entries.get((version.name, version.since))
        prototype = header.prototypes.get(symbol or "")
        if version.suffix or prototype is None or not prototype.in_cuda_h:
            continue
        assert shape(prototype) == shape(version.prototype), f"{version.name}@{version.since}"
        compared += 1
    assert compared > 500


def _older_name(base: str) -> str:
    """cuda.h says `CUdeviceptr`, its typedefs say `CUdeviceptr_v2`: the same type."""
    newest = {"CUdeviceptr": "CUdeviceptr_v2", "CUdevice": "CUdevice_v1"}
    known = {"CUDA_MEMCPY2D", "CUDA_MEMCPY3D", "CUDA_ARRAY_DESCRIPTOR", "CUDA_ARRAY3D_DESCRIPTOR"}
    if base in newest:
        return newest[base]
    stem = base.rpartition("_v")[0] if "_v" in base else base
    if stem in known:
        return base if base != stem else f"{stem}_v2"
    return stem if base.rpartition("_v")[2].isdigit() and base not in newest.values() else base


def test_the_table_is_sorted_for_searching(api: model.Model) -> None:
    keys = [(proc.name.encode(), proc.since) for proc in api.procs]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys))


def test_coverage_page_is_fresh(api: model.Model) -> None:
    rendered = emit.render(api, ROOT / "templates" / "cuda")[emit.COVERAGE_TEMPLATE]
    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8") == rendered, (
        "run `python -m gpupool.wire.codegen --coverage docs/coverage.md`"
    )


def test_a_stale_coverage_page_fails(
    include: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "coverage.md"
    page.write_text("old\n", encoding="utf-8")
    assert main(["--include", str(include), "--verify", str(page)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert main(["--include", str(include), "--coverage", str(page)]) == 0
    assert main(["--include", str(include), "--verify", str(page)]) == 0


def test_a_wrong_description_ends_with_one(
    copied_api: Path, include: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied_api / "cuda" / "new.yaml").write_text("cuInvented: {do: local}\n", encoding="utf-8")
    assert main(["--include", str(include), "--api", str(copied_api)]) == 1
    assert "new.yaml:1: cuInvented" in capsys.readouterr().err


def test_a_version_without_a_symbol_is_an_error(header: headers.Header) -> None:
    exports = model.load_exports(API / "exports-13.0.txt")
    extra = replace(next(v for v in header.versions if v.name == "cuInit"), since=99000)
    changed = replace(header, versions=[*header.versions, extra])
    with pytest.raises(SpecError, match="cuInit: the headers know versions"):
        model.proc_entries(exports, changed)
