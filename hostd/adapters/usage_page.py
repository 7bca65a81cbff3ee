"""Reading a session's usage page: the other end of hostd/worker/usage_page.hpp.

The worker writes while we read, so a number may be one sample old; nothing here can fail for it.
"""

from __future__ import annotations

import struct

from gpupool.hostd.core.ports import Counters, DeviceUsage

BYTES = 4096
MAGIC = 0x45474155  # "UAGE"
SLOT_NS = 20_000_000  # one sample
WINDOW = 50  # samples in a second
MAX_DEVICES = 16
_HEAD = struct.Struct("<II56x")  # magic, devices
_DEVICE = struct.Struct("<QQQI36x")  # memory, slot, samples, outstanding
_COUNTERS = struct.Struct("<8Q")  # in the order of Counters
_COUNTERS_AT = _HEAD.size + MAX_DEVICES * _DEVICE.size


def decode(raw: bytes, now_ns: int) -> tuple[DeviceUsage, ...]:
    """What the page says. Empty for a page that is not filled in, or not one."""
    if len(raw) < BYTES:
        return ()
    magic, devices = _HEAD.unpack_from(raw)
    if magic != MAGIC or devices > MAX_DEVICES:
        return ()
    usages = []
    for index in range(devices):
        at = _HEAD.size + index * _DEVICE.size
        memory_bytes, slot, samples, outstanding = _DEVICE.unpack_from(raw, at)
        percent = _percent(samples, now_ns // SLOT_NS - slot, outstanding != 0)
        usages.append(DeviceUsage(memory_bytes, percent))
    return tuple(usages)


def decode_counters(raw: bytes) -> Counters:
    """What the session has done. All zero for a page that is not filled in, or not one."""
    if len(raw) < BYTES or _HEAD.unpack_from(raw)[0] != MAGIC:
        return Counters()
    return Counters(*_COUNTERS.unpack_from(raw, _COUNTERS_AT))


def _percent(samples: int, age: int, outstanding: bool) -> int:
    """The newest sample is bit 0 and `age` slots old.

    Later slots were not sampled: nothing was outstanding, or the worker was busy issuing what is.
    """
    age = max(0, min(age, WINDOW))
    filled = (1 << age) - 1 if outstanding else 0
    window = ((samples << age) | filled) & ((1 << WINDOW) - 1)
    return bin(window).count("1") * 100 // WINDOW
