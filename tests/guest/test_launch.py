"""Launches: parameters, order, limits and errors as driver 580 gives them on an H100."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.test_module import run

LAUNCHES = """
module = load_module(d)
fill, words, nothing = (get_function(d, module, name) for name in ("fill", "words", "nothing"))
"""


def test_parameters(host: Host, transport: str) -> None:
    """kernelParams and the packed buffer, small ones in the slot and large ones beside it."""
    run(host, transport, LAUNCHES + """
fills(fill)
out = d.alloc(1024)
packed = struct.pack("<QIIB", out, 256, 1000, 5)
equal(launch(d, fill, (8, 1, 1), (32, 1, 1), extra=Extra(packed)), 0)
equal(d.download(out, 1024), struct.pack("<i", 1005) * 256)
blob = bytes(i * 7 % 256 for i in range(1024))
data = ctypes.create_string_buffer(blob, 1024)
d.upload(out, bytes(1024))
equal(launch(d, words, block=(256, 1, 1), parameters=Parameters(c_uint(1), data, c_uint64(out))), 0)
equal(d.download(out, 1024), blob)
for turn in range(2000):
    data = ctypes.create_string_buffer(struct.pack("<i", turn) * 256, 1024)
    parameters = Parameters(c_uint(1), data, c_uint64(out))
    equal(launch(d, words, block=(256, 1, 1), parameters=parameters), 0)
equal(d.download(out, 1024), struct.pack("<i", 1999) * 256)
""")  # fmt: skip


def test_parameters_are_taken_at_the_call(host: Host, transport: str) -> None:
    """The program's variables may change as soon as the launch returns."""
    run(host, transport, LAUNCHES + """
out = [d.alloc(4) for _ in range(50)]
parameters = fill_parameters(0, 1, 0)
for turn in range(5000):
    parameters.values[0].value = out[turn % 50]
    parameters.values[2].value = turn
    equal(launch(d, fill, parameters=parameters), 0)
parameters.values[0].value = 0
for place, address in enumerate(out):
    equal(d.download(address, 4), struct.pack("<i", 4950 + place))
""")  # fmt: skip


def test_wrong_parameters(host: Host, transport: str) -> None:
    run(host, transport, LAUNCHES + """
packed = struct.pack("<QIIB", d.alloc(16), 1, 1, 0)
equal(launch(d, fill), INVALID_VALUE)
equal(launch(d, fill, extra=Extra(packed + b"0")), LAUNCH_OUT_OF_RESOURCES)
equal(launch(d, fill, extra=Extra(packed, 0)), INVALID_VALUE)
equal(launch(d, fill, extra=Extra(packed), parameters=fill_parameters(0, 0, 0)), INVALID_VALUE)
equal(launch(d, nothing, extra=Extra(packed)), LAUNCH_OUT_OF_RESOURCES)
equal(launch(d, nothing), 0)
equal(launch(d, c_void_p(0)), INVALID_HANDLE)
equal(launch(d, c_void_p(addressof(c_int()))), INVALID_HANDLE)
equal(launch(d, nothing, stream=c_void_p(12345)), INVALID_HANDLE)
d.synchronize()
""")  # fmt: skip


def test_limits(host: Host, transport: str) -> None:
    """Refused at the launch, not later."""
    run(host, transport, LAUNCHES + """
for grid in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)):
    equal(launch(d, nothing, grid=grid), INVALID_VALUE)
for block in ((0, 1, 1), (1, 1, 0), (1025, 1, 1), (1, 1025, 1), (1, 1, 65), (512, 4, 1)):
    equal(launch(d, nothing, block=block), INVALID_VALUE)
equal(launch(d, get_function(d, module, "at_most_128"), block=(256, 1, 1)), INVALID_VALUE)
equal(launch(d, get_function(d, module, "at_most_128"), block=(128, 1, 1)), 0)
for shared, result in ((49152, 0), (49153, INVALID_VALUE), (10**6, INVALID_VALUE)):
    equal(launch(d, nothing, shared=shared), result)
out = d.alloc(4)
one = Parameters(c_uint64(out))
shared_16k = get_function(d, module, "shared_16k")
equal(attributes_of(d, shared_16k)[1], 16384)
equal(launch(d, shared_16k, parameters=one, shared=32768), 0)
equal(launch(d, shared_16k, parameters=one, shared=32769), INVALID_VALUE)
d.call("cuFuncSetAttribute", nothing, 8, 60000)
equal(launch(d, nothing, shared=60000), 0)
equal(launch(d, nothing, shared=60001), INVALID_VALUE)
equal(d.download(out, 4), struct.pack("<i", 5))
d.synchronize()
""")  # fmt: skip


def test_other_contexts(host: Host, transport: str) -> None:
    """A function belongs to its context, a kernel works in all of them."""
    run(host, transport, LAUNCHES + """
kernel = get_kernel(d, load_library(d), "fill")
fills(kernel)
second = c_void_p()
d.call("cuCtxCreate_v2", byref(second), 0, 0)
equal(launch(d, nothing), INVALID_HANDLE)
fills(kernel)
stream = d.stream()
equal(launch(d, nothing, stream=stream), INVALID_HANDLE)
out = d.alloc(4)
d.call("cuCtxSetCurrent", d.context)
equal(launch(d, nothing, stream=stream), INVALID_HANDLE)
equal(launch(d, kernel, parameters=fill_parameters(out, 1, 3), stream=stream), 0)
d.call("cuStreamSynchronize", stream)
d.call("cuCtxSetCurrent", second)
equal(d.download(out, 4), struct.pack("<i", 3))
own = load_module(d)
own_fill = get_function(d, own, "fill")
fills(own_fill)
d.call("cuCtxDestroy_v2", second)
equal(launch(d, own_fill), INVALID_HANDLE)
equal(lib.cuModuleUnload(own), INVALID_HANDLE)
d.call("cuCtxSetCurrent", d.context)
fills(kernel)
fills(fill)
""")  # fmt: skip


def test_attributes(host: Host, transport: str) -> None:
    run(host, transport, LAUNCHES + """
def ex(grid, *attributes, function=nothing):
    return launch_ex(d, function, grid, (32, 1, 1), list(attributes))
equal(ex((16, 1, 1)), 0)
equal(ex((16, 1, 1), (0, 1)), 0)
for which in (3, 15, 77):
    equal(ex((16, 1, 1), (which, 1)), INVALID_VALUE)
equal(ex((16, 1, 1), (13, 1)), INVALID_VALUE)  # only for captured launches
for which, value in ((5, 9), (10, 7), (14, 500)):
    equal(ex((16, 1, 1), (which, value)), INVALID_VALUE)
for cluster in ((3, 1, 1), (0, 1, 1), (32, 1, 1)):
    equal(ex((16, 1, 1), (4, cluster)), INVALID_CLUSTER_SIZE)
equal(ex((16, 1, 1), (4, (16, 1, 1))), INVALID_CLUSTER_SIZE)
equal(ex((16, 1, 1), (4, (0, 0, 0))), 0)
equal(ex((16, 1, 1), (4, (1, 1, 1)), (6, 1), (8, 0)), 0)
out = d.alloc(400)
equal(launch_ex(d, fill, (4, 1, 1), (32, 1, 1), [(4, (1, 1, 1))], fill_parameters(out, 100, 7)), 0)
equal(d.download(out, 400), struct.pack("<i", 7) * 100)
d.synchronize()
""")  # fmt: skip


def test_events_of_launches(host: Host, transport: str) -> None:
    """An event that the launch itself records completes, and other streams can wait for it."""
    run(host, transport, LAUNCHES + """
event = c_void_p()
d.call("cuEventCreate", byref(event), 2)
for which in (7, 12):
    equal(launch_ex(d, nothing, (1, 1, 1), (1, 1, 1), [(which, EventValue(event.value, 0, 0))]), 0)
    d.call("cuEventSynchronize", event)
    equal(lib.cuEventQuery(event), 0)
equal(launch_ex(d, nothing, (1, 1, 1), (1, 1, 1), [(7, EventValue(0x1234, 0, 0))]), INVALID_HANDLE)
d.synchronize()
""")  # fmt: skip


def test_cooperative(host: Host, transport: str) -> None:
    run(host, transport, LAUNCHES + """
def cooperative(grid, parameters=None, function=nothing):
    return lib.cuLaunchCooperativeKernel(function, grid, 1, 1, 32, 1, 1, 0, None, parameters)
supported = c_int()
d.call("cuDeviceGetAttribute", byref(supported), 95, 0)
if supported.value:
    equal(cooperative(1), 0)
    equal(cooperative(1000000), COOPERATIVE_LAUNCH_TOO_LARGE)
    result = launch_ex(d, nothing, (1000000, 1, 1), (32, 1, 1), [(2, 1)])
    equal(result, COOPERATIVE_LAUNCH_TOO_LARGE)
    out = d.alloc(4)
    equal(cooperative(1, fill_parameters(out, 1, 9).pointers, fill), 0)
    equal(d.download(out, 4), struct.pack("<i", 9))
else:
    equal(cooperative(1), NOT_SUPPORTED)
d.synchronize()
""")  # fmt: skip


def test_blocking(host: Host, transport: str) -> None:
    """CUDA_LAUNCH_BLOCKING=1: the work is done when the launch returns."""
    run(host, transport, LAUNCHES + """
out, stream = d.alloc(4 << 20), d.stream()
for turn in range(20):
    parameters = fill_parameters(out, 1 << 20, turn)
    equal(launch(d, fill, (4096, 1, 1), (256, 1, 1), parameters, stream=stream), 0)
    equal(lib.cuStreamQuery(stream), 0)
""", CUDA_LAUNCH_BLOCKING="1")  # fmt: skip


def test_threads(host: Host, transport: str) -> None:
    """Launches of several threads: each thread's order holds."""
    run(host, transport, LAUNCHES + """
import threading
failures = []
def work(number):
    try:
        d.call("cuCtxSetCurrent", d.context)
        stream, out = d.stream(), d.alloc(400)
        for turn in range(500):
            parameters = fill_parameters(out, 100, number * 1000 + turn)
            equal(launch(d, fill, (4, 1, 1), (32, 1, 1), parameters, stream=stream), 0)
        d.call("cuStreamSynchronize", stream)
        equal(d.download(out, 400), struct.pack("<i", number * 1000 + 499) * 100)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
equal(failures, [])
""")  # fmt: skip


def test_captured(host: Host, transport: str) -> None:
    """A launch into a capturing stream becomes a node that every graph launch repeats."""
    run(host, transport, LAUNCHES + """
stream, out = d.stream(), d.alloc(4)
d.upload(out, b"\\xff" * 4)
count = get_function(d, module, "count")
d.call("cuStreamBeginCapture_v2", stream, 1)
equal(launch(d, count, parameters=Parameters(c_uint64(out)), stream=stream), 0)
equal(launch(d, nothing, stream=stream), 0)
graph, executable = c_void_p(), c_void_p()
d.call("cuStreamEndCapture", stream, byref(graph))
equal(d.download(out, 4), b"\\xff" * 4)
d.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
for expected in (7, 8, 9):
    d.call("cuGraphLaunch", executable, stream)
    d.call("cuStreamSynchronize", stream)
    equal(d.download(out, 4), struct.pack("<i", expected))
""")  # fmt: skip


def test_launches_as_before_cuda_4(host: Host, transport: str) -> None:
    """Shape and parameters set on the function; what is set stays for the next launch."""
    run(host, transport, LAUNCHES + """
out = d.alloc(1024)
packed = struct.pack("<QIIB", out, 256, 1000, 5)
legacy = d.lib
equal(legacy.cuLaunch(fill), INVALID_VALUE)  # no shape yet
equal(legacy.cuFuncSetBlockShape(fill, 0, 1, 1), INVALID_VALUE)
equal(legacy.cuFuncSetBlockShape(fill, 32, 1, 1), 0)
equal(legacy.cuFuncSetSharedSize(fill, 64), 0)
equal(legacy.cuParamSetv(fill, 0, packed[:8], 8), 0)
equal(legacy.cuParamSeti(fill, 8, 256), 0)
equal(legacy.cuParamSeti(fill, 12, 1000), 0)
equal(legacy.cuParamSetv(fill, 16, packed[16:], 1), 0)
equal(legacy.cuParamSetv(fill, -1, packed, 1), INVALID_VALUE)
equal(legacy.cuParamSetSize(fill, len(packed)), 0)
equal(legacy.cuLaunchGrid(fill, 8, 1), 0)
equal(d.download(out, 1024), struct.pack("<i", 1005) * 256)
d.upload(out, bytes(1024))
equal(legacy.cuParamSeti(fill, 12, 7), 0)
equal(legacy.cuLaunchGridAsync(fill, 4, 0, None), INVALID_VALUE)
equal(legacy.cuLaunchGridAsync(fill, 4, 1, None), 0)
equal(d.download(out, 512), struct.pack("<i", 12) * 128)
equal(legacy.cuFuncSetBlockShape(nothing, 1, 1, 1), 0)
equal(legacy.cuLaunch(nothing), 0)
equal(legacy.cuLaunch(c_void_p(0)), INVALID_HANDLE)
d.synchronize()
""")  # fmt: skip
