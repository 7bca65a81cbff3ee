"""A plain container with nothing but the edits of `gpupool cdi` computes: crun, an OCI bundle whose
root is this machine's, seen through an overlay, so that nothing of the machine is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Host, end_host, make_host
from tests.e2e.test_opengl import CLEAR
from tests.tree import ROOT

pytestmark = pytest.mark.softgpu

# In a mount namespace of its own: an overlay on a tmpfs as the container's root, then crun, which
# knows no machine that has both versions of cgroups.
CRUN = """
set -e
cd "$1"
mount -t tmpfs none layer
mkdir layer/upper layer/work
mount -t overlay none -o lowerdir=/,upperdir=layer/upper,workdir=layer/work bundle/rootfs
mount -t cgroup2 none /sys/fs/cgroup
exec crun --root "$1/state" --cgroup-manager=disabled run --bundle "$1/bundle" gpupool-test
"""
PROGRAM = """
import os
assert "LD_LIBRARY_PATH" not in os.environ and os.getpid() < 10
from tests.e2e.client import *
counter = Counter()
for _ in range(5):
    assert counter.add() == 0
assert counter.value() == 5
free, total = ctypes.c_size_t(), ctypes.c_size_t()
assert counter.driver.lib.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
print("total", total.value >> 20)
"""


@pytest.fixture
def host() -> Iterator[Host]:
    """A hostd with a socket for containers in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="gpupool-test-") as name:
        folder = Path(name)
        more = f'[[endpoint]]\nlisten = "unix:{folder}/containers/hostd.sock"\n'
        one = make_host(folder, gpu="software", more=more, memory_mib=256, threads=2)
        yield one
        end_host(one)


def cdi(host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    """`gpupool cdi` for the socket of that host."""
    where = ("--socket", f"{host.folder}/containers/hostd.sock")
    return subprocess.run(
        [sys.executable, "-m", "gpupool.cli", "cdi", *where, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "GPUPOOL_NATIVE_DIR": str(host.native)},
    )


def device(host: Host, *options: str) -> dict[str, Any]:
    """The edits of the device that it describes."""
    done = cdi(host, *options)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert set(content) == {"cdiVersion", "kind", "devices"}
    (one,) = content["devices"]
    assert set(one) == {"name", "containerEdits"}
    edits: dict[str, Any] = one["containerEdits"]
    assert set(edits) == {"env", "mounts"}
    return edits


def run_container(
    folder: Path, edits: dict[str, Any], *command: str, user: int = 0
) -> tuple[int, str]:
    """Runs it with the environment and mounts that a runtime makes of the edits."""
    for name in ("bundle/rootfs", "layer", "state"):
        (folder / name).mkdir(parents=True)
    image = [f"PYTHONPATH={ROOT}", "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"]
    # What an image would have: this checkout, wherever it lies.
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108 (its own)
        *(
            {"destination": str(path), "source": str(path), "options": ["rbind", "ro"]}
            for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix))
        ),
    ]
    for mount in edits.get("mounts", ()):
        mounts.append(
            {
                "destination": mount["containerPath"],
                "source": mount["hostPath"],
                "options": mount["options"],
            }
        )
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "cwd": "/",
            "user": {"uid": user, "gid": user},
            "args": list(command),
            "env": [*image, *edits.get("env", ())],
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "network")]},
    }
    (folder / "bundle" / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", CRUN, "sh", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


needs_crun = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("crun") is None, reason="needs root and crun"
)


@needs_crun
def test_a_container_computes_with_nothing_but_the_edits(host: Host, tmp_path: Path) -> None:
    edits = device(host, "--memory", "64M")
    code, output = run_container(tmp_path / "with", edits, sys.executable, "-c", PROGRAM)
    assert (code, output.splitlines()[-1:]) == (0, ["total 64"]), output
    code, output = run_container(tmp_path / "without", {}, sys.executable, "-c", PROGRAM)
    assert code != 0
    assert "libcuda.so.1" in output


@needs_crun
def test_a_container_draws(host: Host, tmp_path: Path) -> None:
    pytest.importorskip("moderngl")
    if not (host.native / "libexec" / "gpupool-renderer").exists():
        pytest.skip("gpupool-renderer is not built (libvirglrenderer-dev, libegl-dev)")
    words = ("/usr/bin/gpupool-opengl", "run", "--", sys.executable, "-c", CLEAR)
    code, output = run_container(tmp_path / "draws", device(host), *words)
    assert (code, output) == (0, "virgl 12288 {64} {128}\n"), host.log[-2000:]


# moderngl asks for EGL's first device.
VENDOR = """
import ctypes
egl = ctypes.CDLL("libEGL.so.1")
egl.eglGetCurrentDisplay.restype = ctypes.c_void_p
egl.eglQueryString.restype = ctypes.c_char_p
print(egl.eglQueryString(ctypes.c_void_p(egl.eglGetCurrentDisplay()), 0x3053).decode())
"""


@needs_crun
@pytest.mark.parametrize(
    ("words", "options"),
    [(("/usr/bin/gpupool-opengl", "run", "--direct", "--"), ()), ((), ("--opengl-direct",))],
)
def test_a_container_draws_with_gpupools_own_egl(
    host: Host, tmp_path: Path, words: tuple[str, ...], options: tuple[str, ...]
) -> None:
    pytest.importorskip("moderngl")
    program = (sys.executable, "-c", CLEAR + VENDOR)
    code, output = run_container(tmp_path / "draws", device(host, *options), *words, *program)
    assert code == 0, f"{output}\n{host.log[-2000:]}"
    drawn, vendor = output.splitlines()
    assert drawn == "llvmpipe 12288 {64} {128}"  # the host's driver
    assert "gpupool" in vendor.lower()
    code, output = run_container(tmp_path / "without", device(host), *program)
    assert code == 0, output
    assert "gpupool" not in output.lower()


@needs_crun
def test_a_named_vgpu(host: Host, tmp_path: Path) -> None:
    from gpupool.cli import admin

    admin.call(host.folder / "admin.sock", "vgpu_create", name="trainer", memory_mib=96)
    edits = device(host, "--vgpu", "trainer")
    code, output = run_container(tmp_path / "one", edits, sys.executable, "-c", PROGRAM)
    assert (code, output.splitlines()[-1:]) == (0, ["total 96"]), output


@needs_crun
def test_a_container_sees_no_other_socket(host: Host, tmp_path: Path) -> None:
    look = f"import os; print([sorted(each[1:]) for each in os.walk({str(host.folder)!r})])"
    code, output = run_container(tmp_path / "one", device(host), sys.executable, "-c", look)
    assert (code, output.strip()) == (0, "[[[], ['containers']], [[], ['hostd.sock']]]"), output


def test_what_the_folder_of_the_socket_must_be(host: Host, tmp_path: Path) -> None:
    done = cdi(host, "--socket", str(host.folder / "hostd.sock"))
    assert done.returncode == 1
    assert "a socket for containers needs a folder of its own" in done.stderr
    done = cdi(host, "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 1
    assert "let hostd listen there first" in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--name", "a b"), "is no name for a CDI device"),
        (("--vgpu", "trainer", "--compute", "5"), "leave --compute and --memory"),
        (("--memory", "much"), "allowed is an amount of GPU memory"),
    ],
)
def test_what_is_refused(host: Host, options: tuple[str, ...], text: str) -> None:
    done = cdi(host, *options)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_an_installation_without_our_egl(host: Host, tmp_path: Path) -> None:
    lacking = tmp_path / "native" / "guest"
    lacking.mkdir(parents=True)
    for name in ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"):
        (lacking / name).write_bytes(b"library")
    one = replace(host, native=lacking.parent)
    done = cdi(one, "--opengl-direct")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--opengl-direct" in done.stderr
    assert f"{lacking} has no libEGL_gpupool.so" in done.stderr
    mounts = device(one)["mounts"]
    assert all(Path(mount["hostPath"]).exists() for mount in mounts)


def test_it_is_written_whole(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "cdi" / "gpupool.dev-vgpu_any.json"
    for _ in range(2):
        assert cdi(host, "--output", str(path)).returncode == 0
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text())["devices"][0]["name"] == "any"
