"""The tables behind cuGetExportTable: which are served, and context-local storage."""

from __future__ import annotations

from tests.conftest import Host
from tests.guest.shim import run_without_host

# Sizes in bytes as driver 580 has them; None for the table without a size entry.
SERVED = {
    "6bd5fb6c5bf4e74a8987d93912fd9df9": 104,
    "42d85a8123f6cb478298f6e78a3aecdc": 24,
    "a094798c2e742e7493f20800200c0a66": 56,
    "c693336e1121df11a8c368f355d89593": None,
    "263e88607cd2614392f6bbd5006dfa7e": 120,
    "d4082055bde6704b8d34ba123c66e1f2": 24,
    "21318c60971432488ca641ff7324c8f2": 744,
    "6e163fbeb958444d835ce182aff1991e": 792,
    "1734dc26800d47458726c0f1e7dd8bca": 136,
    "0ca50b8c1004929a89a7d0df10e77286": 16,
}
REFUSED = ("69a28e9f24498b47b030c5da330ea4e9", "00000000000000000000000000000001")

PRELUDE = """
import ctypes, sys
from ctypes import byref, c_int, c_size_t, c_void_p, c_uint
driver = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libcuda.so.1")
def table(identifier):
    entry = c_void_p()
    result = driver.cuGetExportTable(byref(entry), bytes.fromhex(identifier))
    return ctypes.cast(entry, ctypes.POINTER(c_void_p)) if result == 0 else result
def slot(identifier, index, *arguments):
    return ctypes.CFUNCTYPE(c_int, *arguments)(table(identifier)[index])
"""


def test_every_slot_of_every_table_can_be_called() -> None:
    printed = run_without_host(
        PRELUDE
        + f"""
served, refused = {SERVED!r}, {REFUSED!r}
for identifier, size in served.items():
    entries = table(identifier)
    if size is not None:
        assert entries[0] == size, identifier
    for index in range(1 if size else 0, size // 8 if size else 3):
        assert entries[index], (identifier, index)
for identifier in refused:
    assert table(identifier) == 500, identifier
print(slot("21318c60971432488ca641ff7324c8f2", 5)())
"""
    )
    assert printed.strip() == "801"


def test_buffers_are_static_and_writable() -> None:
    run_without_host(
        PRELUDE
        + """
for index, size in ((2, 0x400), (6, 14)):
    get = slot("a094798c2e742e7493f20800200c0a66", index, c_void_p, c_void_p)
    places = []
    for _ in range(2):
        place, bytes_there = c_void_p(), c_size_t()
        assert get(ctypes.addressof(place), ctypes.addressof(bytes_there)) == 0
        assert bytes_there.value == size
        places.append(place.value)
    assert places[0] == places[1]
    assert not any(ctypes.string_at(places[0], size))
    ctypes.memset(places[0], 1, size)
"""
    )


def test_storage_lives_as_long_as_its_context(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
STORAGE = "c693336e1121df11a8c368f355d89593"
put = slot(STORAGE, 0, c_void_p, c_void_p, c_void_p, c_void_p)
delete = slot(STORAGE, 1, c_void_p, c_void_p)
get = slot(STORAGE, 2, c_void_p, c_void_p, c_void_p)
value = c_void_p(7)
assert driver.cuInit(0) == 0
assert get(ctypes.addressof(value), None, 0x10) == 201
assert put(None, 0x10, 0x99, None) == 201
context = c_void_p()
assert driver.cuDevicePrimaryCtxRetain(byref(context), 0) == 0
assert driver.cuCtxSetCurrent(context) == 0
assert get(ctypes.addressof(value), None, 0x10) == 400
ended = []
@ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
def end(owner, key, kept):
    ended.append((owner == context.value, key, kept))
end_address = ctypes.cast(end, c_void_p)
assert put(None, 0x10, 0x99, end_address) == 0
assert put(None, 0x10, 0x9a, end_address) == 400
for owner in (None, context):
    assert get(ctypes.addressof(value), owner, 0x10) == 0
    assert value.value == 0x99
assert put(context, 0x20, 0x11, end_address) == 0
assert put(context, 0x30, 0x12, end_address) == 0
assert delete(None, 0x55) == 400
assert delete(None, 0x30) == 0
assert ended == []
assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0
assert ended == [(True, 0x20, 0x11), (True, 0x10, 0x99)], ended
""",
    )


def test_the_runtimes_own_queries(host: Host, transport: str) -> None:
    host.run_python(
        transport,
        PRELUDE
        + """
assert driver.cuInit(0) == 0
current = slot("42d85a8123f6cb478298f6e78a3aecdc", 2, c_void_p)
primary = slot("6bd5fb6c5bf4e74a8987d93912fd9df9", 2, c_void_p, c_int)
now, given, retained, active, flags = c_void_p(5), c_void_p(), c_void_p(), c_int(9), c_uint()
assert current(ctypes.addressof(now)) == 0 and now.value is None
assert primary(ctypes.addressof(given), 0) == 0
assert driver.cuDevicePrimaryCtxGetState(0, byref(flags), byref(active)) == 0
assert active.value == 0
assert driver.cuDevicePrimaryCtxRetain(byref(retained), 0) == 0
assert retained.value == given.value
assert driver.cuCtxSetCurrent(retained) == 0
assert current(ctypes.addressof(now)) == 0 and now.value == retained.value
flag, out = c_uint(9), c_void_p(9)
query = slot("263e88607cd2614392f6bbd5006dfa7e", 2, c_void_p, c_void_p, c_void_p)
assert query(retained, ctypes.addressof(flag), ctypes.addressof(out)) == 0
assert (flag.value, out.value) == (0, 9)
assert slot("263e88607cd2614392f6bbd5006dfa7e", 3)() == 0
blas = slot("21318c60971432488ca641ff7324c8f2", 4, c_void_p, c_void_p)
assert blas(retained, ctypes.addressof(flag)) == 0
assert flag.value == 1
""",
    )
