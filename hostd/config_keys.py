"""Every key of hostd's configuration, with its default and what may be written.

The documentation's source too: tests/hostd/test_config.py holds docs/configuration.md to it.
"""

from __future__ import annotations

from pathlib import Path

from gpupool.hostd.config_vm import VM_KEYS
from gpupool.hostd.core.admission import MOST_HANDLES, MOST_STREAMS
from gpupool.hostd.log import LEVELS
from gpupool.wire.hello import MAX_LANES, WINDOW_BASE_STEP_BYTES
from gpupool.wire.settings import Key
from gpupool.wire.window import MIN_WINDOW_MIB

SYSTEM_DIR = Path("/run/gpupool")
SYSTEM_SOCKET = SYSTEM_DIR / "hostd.sock"
SYSTEM_ADMIN_SOCKET = SYSTEM_DIR / "admin.sock"


_MAX_WINDOW_MIB = WINDOW_BASE_STEP_BYTES >> 20

KEYS: tuple[Key, ...] = (
    Key(
        "gpu",
        str,
        "auto",
        "which GPUs to give out; auto: NVIDIA cards if there are any, else the software GPU",
        choices=("auto", "nvidia", "software"),
    ),
    Key(
        "libcuda",
        str,
        "",
        "absolute path of NVIDIA's libcuda.so.1; empty: look where drivers install it",
    ),
    Key("devices", list, [], "UUIDs of the GPUs to give out (`gpupool devices`); empty: all"),
    Key(
        "state_dir",
        str,
        "/run/gpupool/state",
        "where sessions are written down; a folder that a reboot empties",
    ),
    Key(
        "vgpu_dir",
        str,
        "/var/lib/gpupool",
        "where named vGPUs are written down; a folder that stays",
    ),
    Key(
        "admin_socket",
        str,
        str(SYSTEM_ADMIN_SOCKET),
        "socket of `gpupool status`; only hostd's user may open it",
    ),
    Key(
        "idle_timeout_s",
        int,
        0,
        "leave after so many seconds without sessions; 0: never",
        low=0,
        high=86400,
    ),
    Key("log.level", str, "info", "what to log", choices=tuple(LEVELS)),
    Key("log.format", str, "text", "text is key=value", choices=("text", "json")),
    Key(
        "log.priorities",
        str,
        "auto",
        "begin lines with <N> for journald; auto: when stderr is the journal",
        choices=("auto", "yes", "no"),
    ),
    Key(
        "metrics.listen",
        str,
        "",
        "address and port of a Prometheus endpoint, like 127.0.0.1:9178; empty: none",
    ),
    Key(
        "controller.url",
        str,
        "",
        "tls://host:port of the controller's nodes.listen; several, with commas between, are tried "
        "in turn; empty: this host has none",
    ),
    Key(
        "controller.token_file",
        str,
        "",
        "file with this node's token, which only hostd's user may read",
    ),
    Key(
        "controller.ca_file",
        str,
        "",
        "who must have signed the controller's certificate, in PEM; empty: those that gRPC trusts",
    ),
    Key(
        "controller.certificate",
        str,
        "",
        "this node's own certificate, in PEM, where the controller asks for one (nodes.client_ca)",
    ),
    Key("controller.key", str, "", "its key, which only hostd's user may read"),
    Key(
        "controller.node_name", str, "", "what the controller calls this node; empty: its hostname"
    ),
    Key("controller.labels", list, [], 'what vGPUs may ask for: ["zone=a", "rack=7"]'),
    Key(
        "controller.endpoint",
        str,
        "",
        "where clients on other machines dial this node, as the controller tells them; empty: its "
        "first tls endpoint",
    ),
    Key(
        "controller.insecure",
        bool,
        False,
        "must be true for tcp:// to another machine: token and orders travel in clear",
    ),
    Key("limits.max_sessions", int, 256, "client processes at one time", low=1, high=65536),
    Key(
        "limits.window_mib",
        int,
        16384,
        "shared memory of one session, for pinned memory; used only as it is touched",
        low=MIN_WINDOW_MIB,
        high=_MAX_WINDOW_MIB,
    ),
    Key(
        "limits.hello_timeout_s",
        int,
        5,
        "how long a new connection may take to say what it wants",
        low=1,
        high=600,
    ),
    Key(
        "limits.default_compute_percent",
        int,
        0,
        "compute share of clients that ask for none; 0: what others leave",
        low=0,
        high=100,
    ),
    Key(
        "limits.default_memory_mib",
        int,
        0,
        "memory quota of clients that ask for none; 0: the whole GPU",
        low=0,
        high=1 << 24,
    ),
    Key(
        "limits.queue_s",
        int,
        3600,
        "how long a client may wait for room on a GPU, if it asks to (`gpupool run --wait`)",
        low=0,
        high=7 * 86400,
    ),
    Key(
        "limits.pinned_mib",
        int,
        0,
        "pinned and registered host memory of one session; 0: as much as its window holds",
        low=0,
        high=1 << 24,
    ),
    Key(
        "limits.image_mib",
        int,
        8192,
        "code images that one session has loaded at one time",
        low=1,
        high=1 << 20,
    ),
    Key(
        "limits.handles",
        int,
        MOST_HANDLES,
        "objects of each kind (events, modules, functions, graphs, ...) of one session",
        low=16,
        high=MOST_HANDLES,
    ),
    Key(
        "limits.streams",
        int,
        MOST_STREAMS,
        "streams of one session; each context has two of its own",
        low=4,
        high=MOST_STREAMS,
    ),
    Key(
        "limits.connections",
        int,
        8,
        "connections of one session over tcp or vsock; a client that opens more has so many used",
        low=1,
        high=MAX_LANES + 1,
    ),
    Key(
        "limits.launch_threads",
        int,
        0,
        "threads of a worker that launch kernels of several streams at once; 0: by the number of "
        "cores (none below 8, at most 8), 1: only the one that does everything",
        low=0,
        high=16,
    ),
    Key(
        "limits.zero_copy",
        str,
        "auto",
        "whether workers send large data over plain tcp by reference (MSG_ZEROCOPY); auto: until "
        "the kernel says that it copies anyway; always: even then, to measure",
        choices=("auto", "off", "always"),
    ),
    Key(
        "limits.generated_opengl",
        bool,
        True,
        "let clients use OpenGL in their CUDA session's worker (docs/opengl.md); false: only "
        "through gpupool-renderer",
    ),
    Key(
        "limits.end_grace_s",
        int,
        10,
        "how long a worker may outlive its client before hostd kills it",
        low=1,
        high=3600,
    ),
    Key(
        "sandbox.mode",
        str,
        "auto",
        "how workers are locked in; auto: with what this machine has, required: hostd does not "
        "start where something is missing",
        choices=("auto", "required", "off"),
    ),
    Key(
        "sandbox.seccomp",
        str,
        "on",
        "filter of system calls; on: a refused one ends its session, report: it fails and is "
        "logged",
        choices=("on", "report", "off"),
    ),
    Key("sandbox.landlock", bool, True, "let workers open only what a driver opens"),
    Key(
        "sandbox.cgroup",
        bool,
        True,
        "give each session and each VM's relay a cgroup (version 2) with limits",
    ),
    Key(
        "sandbox.worker_user",
        str,
        "",
        "user that workers run as when hostd is root; empty: gpupool-worker if there is such a "
        "user, else a user number of its own for each tenant",
    ),
    Key(
        "sandbox.worker_uid_base",
        int,
        1_900_000_000,
        "first of 16777216 user numbers for tenants; 0: workers stay root",
        low=0,
        high=(1 << 31) - (1 << 24),
    ),
    Key(
        "sandbox.compile_cache",
        str,
        "auto",
        "keep what the driver compiles on disk; auto: where no two tenants would share it",
        choices=("auto", "yes", "no"),
    ),
    Key(
        "sandbox.cache_dir",
        str,
        "/var/cache/gpupool",
        "folder for what the driver compiles, with one folder a user number; a hostd that serves "
        "just its own user has it in ~/.nv/ComputeCache",
    ),
    Key("sandbox.threads", int, 1024, "threads of one worker", low=64, high=1 << 20),
    Key(
        "sandbox.memory_mib",
        int,
        0,
        "host memory of one session's cgroup; 0: limits.window_mib and 8192 more",
        low=0,
        high=1 << 24,
    ),
    Key(
        "ahead.workers",
        int,
        2,
        "workers that wait for the next program of each tenant that was here lately; 0: none",
        low=0,
        high=64,
    ),
    Key("ahead.most", int, 8, "workers that wait, of all tenants together", low=0, high=1024),
    Key(
        "ahead.keep_s",
        int,
        300,
        "how long they wait after the tenant's last session began or ended",
        low=1,
        high=86400,
    ),
    Key(
        "ahead.context",
        bool,
        False,
        "let them hold a context of the first GPU, too: a faster start for hundreds of MiB of that "
        "GPU's memory",
    ),
    Key(
        "pool.default",
        str,
        "pooled",
        "where a GPU goes that hostd sees for the first time since boot (`docs/pools.md`)",
        choices=("pooled", "native"),
    ),
    Key(
        "pool.native",
        list,
        [],
        "UUIDs or PCI addresses of GPUs that go to the native pool instead",
    ),
    Key(
        "pool.native_kind",
        str,
        "container",
        "what native GPUs are made ready for where nothing else is asked for: container by CDI, "
        "vfio by a driver for virtual machines",
        choices=("container", "vfio"),
    ),
    Key(
        "pool.scrub",
        bool,
        True,
        "clear a card's memory before it is given out whole; false: whoever gets it may see what "
        "tenants left",
    ),
    Key(
        "pool.cdi_dir",
        str,
        "/var/run/cdi",
        "where container runtimes look for CDI devices; a folder that a reboot empties",
    ),
    *VM_KEYS,
    Key(
        "endpoint.listen",
        str,
        f"unix:{SYSTEM_SOCKET}",
        "unix:/path, tls://host:port, tcp://host:port or vsock://any:port",
    ),
    Key("endpoint.mode", str, "0666", "permissions of a unix socket, in octal"),
    Key(
        "endpoint.transports",
        list,
        [],
        'what clients may use here; empty: ["shm"] on unix, else the one that the endpoint names',
    ),
    Key(
        "endpoint.token_file",
        str,
        "",
        "file with a token that clients must send; needed on tls and tcp; made if missing",
    ),
    Key(
        "endpoint.scrub",
        bool,
        True,
        "clear device memory before a client here sees it; false: its tenant may see what others "
        "left",
    ),
    Key(
        "endpoint.tenant",
        str,
        "",
        "whose vGPUs of the controller clients may use here, by the tenant's name or id; empty: "
        "every tenant's",
    ),
    Key("endpoint.insecure", bool, False, "must be true for tcp: its bytes are not encrypted"),
    Key(
        "endpoint.certificate",
        str,
        "",
        "certificate of a tls endpoint, with those who signed it, in PEM; empty: one of our own, "
        "tls-certificate.pem beside the token file, made if missing",
    ),
    Key("endpoint.key", str, "", "its key, which only hostd's user may read"),
)
