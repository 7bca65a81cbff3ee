"""What libvirt's hook takes from start to finish, as libvirt calls it.

    python -m bench.hook [--rounds 200]

Interleaved each round: an interpreter that does nothing, the hook for a domain without a vGPU, and
the hook at `prepare` and `release` of a domain that has one, with a real hostd (software GPU, no
relay). Prints medians and 99th percentiles in ms, also of CPU time; docs/vms.md has figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import gpupool
from gpupool.bench.host import hostd

HOOK = Path(gpupool.__file__).parent / "qemu_hooks" / "qemu"
PYTHON = "/usr/bin/python3"  # as in the hook's first line
_TIMEOUT_S = 30
_VGPUS = (
    '<metadata><gpupool:vgpus xmlns:gpupool="https://gpupool.dev/xmlns/libvirt/1.0">'
    '<gpupool:vgpu compute="25"/></gpupool:vgpus></metadata>'
)
# As large as the XML of a domain with many devices.
_DISKS = "<disk type='file'><driver name='qemu' type='raw'/><target dev='vda' bus='virtio'/></disk>"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    domain = str(uuid.uuid4())
    settings = ('[vm]\nrelay = "no"\ngroup = "root"',)
    with (
        tempfile.TemporaryDirectory(prefix="gpupool-bench-") as folder,
        hostd(Path(folder) / "h", "software", settings),
    ):
        admin = Path(folder) / "h" / "admin.sock"
        allow(admin, domain)
        times = measure(rounds, domain, admin)
    print(f"{rounds} rounds, ms{'':10} median, 99th percentile, longest; of the CPU: the same")
    for name, found in times.items():
        wall, cpu = (sorted(one) for one in zip(*found, strict=True))
        print(f"{name:24} {_three(wall)}      {_three(cpu)}")


def _three(found: list[float]) -> str:
    ninety_nine = found[min(len(found) - 1, len(found) * 99 // 100)]
    return f"{found[len(found) // 2]:6.1f} {ninety_nine:6.1f} {found[-1]:6.1f}"


def allow(admin: Path, domain: str) -> None:
    """What `gpupool vm allow` does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(admin))
        request = {"method": "vm_allow", "uuid": domain, "compute_percent": 25}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(connection.recv(4096))
    if not answer["ok"]:
        raise SystemExit(f"vm_allow: {answer['error']}")


def measure(rounds: int, domain: str, admin: Path) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each call, and those on the CPU, by what was called."""
    hook = [PYTHON, "-IS", str(HOOK), "web"]
    plain, asking = xml(domain, ""), xml(domain, _VGPUS)
    calls = {
        "python that does nothing": ([PYTHON, "-ISc", "pass"], plain),
        "another domain": ([*hook, "prepare", "begin", "-"], plain),
        "prepare": ([*hook, "prepare", "begin", "-"], asking),
        "release": ([*hook, "release", "end", "-"], asking),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (command, given) in calls.items():
            used, begin = _children_s(), time.perf_counter()
            subprocess.run(  # noqa: S603 (our own hook)
                command,
                input=given,
                env={"GPUPOOL_ADMIN_SOCKET": str(admin)},
                check=True,
                timeout=_TIMEOUT_S,
            )
            wall_s = time.perf_counter() - begin
            times[name].append((1000 * wall_s, 1000 * (_children_s() - used)))
    return times


def _children_s() -> float:
    """CPU time of all that were waited for: hostd is not among them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def xml(domain: str, metadata: str) -> bytes:
    """What libvirt gives to the hook."""
    disks = _DISKS * 100
    return (
        f"<domain type='kvm'><name>web</name><uuid>{domain}</uuid>{metadata}"
        f"<devices>{disks}</devices></domain>"
    ).encode()


if __name__ == "__main__":
    main()
