"""Whether a client gets a session: everything that hostd checks of a Hello, in one place and
without side effects.

A refusal says what was asked, what is wrong and what to do, in at most 255 bytes (the room in
Welcome).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from typing import TypeVar

from gpupool.hostd.core.gpu import Inventory
from gpupool.hostd.core.placement import usable_mib
from gpupool.hostd.core.vgpu import Quota, SharePolicy, Wanted, check_name, check_quota
from gpupool.wire.hello import (
    LANE_BYTES,
    MAX_LANES,
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Hello,
    HelloHeader,
    SessionKind,
    TransportKind,
    WelcomeStatus,
    hello_bytes,
)
from gpupool.wire.query import Query, query_bytes

MIB = 1 << 20
_PAGE_BYTES = 4096
_USER_SPACE_END = 1 << 47


# The worker's own bounds: hostd/worker/caps.hpp.
MOST_HANDLES = (1 << 20) - 1
MOST_STREAMS = 8191


@dataclass(frozen=True, slots=True)
class Caps:
    """How much of the host one session may take."""

    pinned_mib: int = 16384
    image_mib: int = 8192
    handles: int = MOST_HANDLES  # of each kind
    streams: int = MOST_STREAMS
    launch_threads: int = 0  # 0: by the number of cores
    zero_copy: str = "auto"  # or off, always
    opengl: bool = False  # the worker may load the host's OpenGL
    scrub: bool = True  # fresh device memory is cleared


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of the configuration that admission looks at."""

    max_sessions: int
    window_mib: int
    default_compute_percent: int
    default_memory_mib: int
    end_grace_s: int = 10
    connections: int = 8  # of one session over a stream
    queue_s: int = 3600  # how long a client may wait for room
    caps: Caps = Caps()


@dataclass(frozen=True, slots=True)
class Door:
    """The endpoint a client came through."""

    name: str  # "unix:/run/gpupool/hostd.sock"
    transports: frozenset[TransportKind]
    token: bytes  # empty: none needed
    scrub: bool = True
    tenant: str = ""  # whose vGPUs of the controller clients may use here; empty: anybody's
    vm: str = ""  # UUID of the domain whose clients come here; empty: any client
    vgpus: tuple[str, ...] = ()  # of that domain, by name
    sandbox: str = ""  # of Kata, whose containers come here and say by their tokens which they are
    window_mib: int = 0  # of that domain; 0: it has none
    vms_only: bool = False  # nobody but virtual machines that we know may come here
    closed: str = ""  # why a client may not come here after all


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer no."""

    status: WelcomeStatus
    text: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer yes, with everything filled in."""

    transport: TransportKind
    library: str
    wanted: Wanted
    window_bytes: int
    window_base: int
    caps: Caps
    kind: SessionKind = SessionKind.CUDA


def wanted_of(asking: Hello | Query, limits: Limits) -> Wanted:
    """The vGPU that a client asks for, its defaults filled in."""
    quota = Quota(
        asking.compute_percent or limits.default_compute_percent,
        asking.memory_mib or limits.default_memory_mib,
        _policy(asking.policy) if isinstance(asking, Hello) else SharePolicy.ELASTIC,
    )
    shares = asking.vgpu.startswith("~") and not quota.holds
    first, *more = names_of(asking.vgpu)
    return Wanted(quota, "" if shares else first, more=tuple(more), all_of_them=bool(more))


def names_of(vgpu: str) -> list[str]:
    """A client that names several vGPUs sees as many devices; there is always one, "" for none."""
    return [vgpu] if vgpu.startswith("~") else vgpu.split(",")


def _policy(number: int) -> SharePolicy:
    """As in hostd/pages/quota_page.hpp."""
    return SharePolicy.HARD if number else SharePolicy.ELASTIC


def check_header(header: HelloHeader, host_version: str) -> Refusal | None:
    """Versions first: the rest of a Hello of another version may mean something else."""
    name, expected = "Hello", hello_bytes(header.protocol_minor)
    if header.is_lane:
        name, expected = "LaneHello", LANE_BYTES
    if header.is_query:
        name, expected = "Query", query_bytes(header.protocol_minor)
    major, minor = header.protocol_major, header.protocol_minor
    asked, ours = f"{major}.{minor}", f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    if major != PROTOCOL_MAJOR or not PROTOCOL_MINOR - 1 <= minor <= PROTOCOL_MINOR:
        older = "client" if (major, minor) < (PROTOCOL_MAJOR, PROTOCOL_MINOR) else "host"
        return Refusal(
            WelcomeStatus.VERSION,
            f"the client speaks protocol {asked}, this host {ours} (gpupool {host_version}); "
            f"update gpupool on the {older}",
        )
    if header.size_bytes != expected:
        return Refusal(
            WelcomeStatus.BAD_REQUEST,
            f"{name} says it has {header.size_bytes} bytes; protocol {asked} has {expected}: the "
            "client is damaged, install it again",
        )
    return None


def admit(
    hello: Hello, door: Door, limits: Limits, inventory: Inventory, sessions: int
) -> Grant | Refusal:
    """Decides on a well-formed Hello of a version we serve, except for its vGPU (`allocation`).

    `sessions` counts those that exist now.
    """
    return (
        check_token(hello.token, door)
        or _check_transport(hello, door)
        or check_lanes(hello)
        or _check_kind(hello)
        or _check_window(hello, limits)
        or check_devices(inventory)
        or _check_limits(hello, limits, inventory, sessions)
        or _check_vgpu(hello, limits)
        or Grant(
            transport=TransportKind(hello.transport),
            library=inventory.library,
            wanted=wanted_of(hello, limits),
            window_bytes=limits.window_mib * MIB,
            window_base=hello.window_base,
            caps=replace(limits.caps, scrub=door.scrub),
            kind=SessionKind(hello.kind),
        )
    )


def check_token(token: bytes, door: Door) -> Refusal | None:
    """Whoever comes through a door, with a Hello or a Query, needs its token."""
    if not door.token or hmac.compare_digest(token, door.token):
        return None
    wrong = "a wrong token" if token else "no token"
    return Refusal(
        WelcomeStatus.TOKEN,
        f"{door.name} needs a token and the client sent {wrong}; set GPUPOOL_TOKEN_FILE to a copy "
        "of the host's token file",
    )


def _check_transport(hello: Hello, door: Door) -> Refusal | None:
    offered = " and ".join(sorted(kind.word for kind in door.transports))
    try:
        asked = TransportKind(hello.transport)
    except ValueError:
        return Refusal(
            WelcomeStatus.BAD_REQUEST,
            f"unknown transport {hello.transport}; {door.name} offers {offered}",
        )
    if asked in door.transports:
        return None
    return Refusal(
        WelcomeStatus.BAD_REQUEST,
        f"transport {asked.word} was asked for, but {door.name} offers {offered}; "
        "choose another endpoint or unset GPUPOOL_TRANSPORT",
    )


Asking = TypeVar("Asking", Hello, Query)


def of_vm(asking: Asking, door: Door) -> Asking | Refusal:
    """What a client in a virtual machine asks for: a vGPU of its VM, or no name for all of them.

    Programs there may say a KEY ("~..."), as they share those anyway.
    """
    if not door.vm:
        return asking
    policy = asking.policy if isinstance(asking, Hello) else 0
    if asking.compute_percent or asking.memory_mib or policy:
        return Refusal(
            WelcomeStatus.BAD_REQUEST,
            "a share or memory was asked for inside a virtual machine: its vGPU has its own "
            "(`gpupool vm show` on the host); ask for none",
        )
    if not door.vgpus:
        return Refusal(
            WelcomeStatus.LIMIT,
            "this virtual machine has no vGPU; `gpupool vm attach` on the host gives it one",
        )
    if asking.vgpu.startswith("~"):
        return replace(asking, vgpu="")
    if not asking.vgpu or all(one in door.vgpus for one in names_of(asking.vgpu)):
        return asking
    return Refusal(
        WelcomeStatus.LIMIT,
        f"this virtual machine has no vGPU {asking.vgpu!r}; it has {', '.join(door.vgpus)}"[:250],
    )


def check_lanes(hello: Hello) -> Refusal | None:
    """Further connections are for streams, and their number is small."""
    if not hello.lanes or (hello.transport != TransportKind.SHM and hello.lanes <= MAX_LANES):
        return None
    return Refusal(
        WelcomeStatus.BAD_REQUEST,
        f"the client has {hello.lanes} further connections; allowed are {MAX_LANES}, and none on "
        "shared memory",
    )


def _check_kind(hello: Hello) -> Refusal | None:
    """OpenGL has one connection."""
    if hello.kind == SessionKind.CUDA or (hello.kind == SessionKind.OPENGL and not hello.lanes):
        return None
    return Refusal(
        WelcomeStatus.BAD_REQUEST,
        f"a session of kind {hello.kind} with {hello.lanes} further connections: update gpupool "
        "on the host",
    )


def _check_window(hello: Hello, limits: Limits) -> Refusal | None:
    window_bytes = limits.window_mib * MIB
    base = hello.window_base
    if base % _PAGE_BYTES == 0 and _PAGE_BYTES <= base <= _USER_SPACE_END - window_bytes:
        return None
    return Refusal(
        WelcomeStatus.BAD_REQUEST,
        f"window base {base:#x} is no page of user space; the client is damaged",
    )


def check_devices(inventory: Inventory) -> Refusal | None:
    """A host without a GPU has nothing to give."""
    if inventory.gpus and inventory.library:
        return None
    why = inventory.notes[0] if inventory.notes else "none was found"
    return Refusal(
        WelcomeStatus.NO_DEVICE,
        f"this host has no GPU to give: {why}; run `gpupool doctor` on the host",
    )


def _check_limits(
    hello: Hello, limits: Limits, inventory: Inventory, sessions: int
) -> Refusal | None:
    if sessions >= limits.max_sessions:
        return Refusal(
            WelcomeStatus.LIMIT,
            f"this host already has {sessions} sessions, its limit; end one (`gpupool status`) or "
            "raise limits.max_sessions",
        )
    if hello.compute_percent > 100:
        return Refusal(
            WelcomeStatus.LIMIT,
            f"compute share {hello.compute_percent}% was asked for; ask for 1 to 100 percent of a "
            "GPU",
        )
    if hello.policy > 1:
        return Refusal(WelcomeStatus.BAD_REQUEST, f"unknown policy {hello.policy}: update gpupool")
    most_mib = max(usable_mib(gpu) for gpu in inventory.gpus)
    if hello.memory_mib > most_mib:
        return Refusal(
            WelcomeStatus.LIMIT,
            f"memory {hello.memory_mib} MiB was asked for, a GPU here has {most_mib} MiB for "
            "programs; ask for at most that",
        )
    return None


def _check_vgpu(hello: Hello, limits: Limits) -> Refusal | None:
    problem = check_quota(wanted_of(hello, limits).quota)
    if hello.vgpu and not problem:
        names = names_of(hello.vgpu)
        problem = next(filter(None, (check_name(one, or_key=True) for one in names)), "")
        if len(set(names)) < len(names):
            problem = f"vGPUs {hello.vgpu} were asked for, one of them twice; name each once"
        if not hello.vgpu.startswith("~") and (
            hello.compute_percent or hello.memory_mib or hello.policy
        ):
            problem = (
                f"vGPU {hello.vgpu} was asked for, and a share or memory besides: a named vGPU has "
                "its own; ask for one or the other"
            )
    if problem:
        return Refusal(WelcomeStatus.BAD_REQUEST, problem)
    return None
