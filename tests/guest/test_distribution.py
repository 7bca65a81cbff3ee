"""Packages for dpkg and rpm: installed, used, upgraded and removed by the real programs, on a copy
of this system's folders that goes with its mount namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpupool.cli.main import main as command
from gpupool.guest import distribution, package
from tests.conftest import native_dir
from tests.tree import ROOT

UNIT = "/usr/lib/systemd/system/gpupool-guest-agent.service"
WANTED = "/etc/systemd/system/multi-user.target.wants/gpupool-guest-agent.service"
AGENT = "/opt/gpupool-guest/agent"
# Nothing of this machine's Python environments: what a guest has.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
FOLDERS = ("/etc", "/opt", "/usr/lib/systemd", "/var/lib", "/var/log", "/var/cache")
BEGIN = """
set -e
mount -t tmpfs scratch {scratch}
for folder in {folders}; do
  upper={scratch}/upper$folder work={scratch}/work$folder
  mkdir -p $upper $work
  mount -t overlay -o "lowerdir=$folder,upperdir=$upper,workdir=$work" overlay $folder
done
mount -t tmpfs run /run
list() {{
  find /etc /opt /usr/lib/systemd -xdev ! -name 'ld.so.cache*' ! -type d | sort
  ls -d /etc/gpupool || true
}}
"""


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Files that are named like the libraries."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for name in package.LIBRARIES:
        (folder / name).write_bytes(b"library")
    return folder


def make(kind: str, tmp_path: Path, libraries: Path, version: str = "") -> Path:
    """A package; skips where this machine has not the program that makes it."""
    tool = {"deb": "dpkg-deb", "rpm": "rpmbuild"}[kind]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing")
    target = tmp_path / f"gpupool-guest{version}.{kind}"
    distribution.make_kind(kind, target, libraries)
    return target


def on_a_copy(script: str, scratch: Path) -> str:
    """What a script says that may change this system and does not."""
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    scratch.mkdir()
    begin = BEGIN.format(scratch=scratch, folders=" ".join(FOLDERS))
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", begin + script],
        capture_output=True,
        text=True,
        timeout=240,
        env={"PATH": PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if "mount: " in done.stderr and "overlay" in done.stderr:
        pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


LIVES = {
    "deb": ("dpkg -i {file}", "dpkg -i {file}", "dpkg -P gpupool-guest"),
    # An rpm database of its own, which knows of no glibc.
    "rpm": ("rpm -i --nodeps {file}", "rpm -U --force --nodeps {file}", "rpm -e gpupool-guest"),
}


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_from_install_to_removal(kind: str, tmp_path: Path) -> None:
    libraries = native_dir() / "lib" / "guest"
    if not (libraries / "libcuda.so.1").exists():
        pytest.skip(f"{libraries} has no libcuda.so.1: run ./run build")
    file = make(kind, tmp_path, libraries)
    install, upgrade, remove = (each.format(file=file) for each in LIVES[kind])
    said = on_a_copy(
        f"""
list > {tmp_path}/before
{install}
[ -x {AGENT} ] && [ -f {UNIT} ] && [ -L /opt/gpupool-guest/lib/libcuda.so ]
if command -v systemctl >/dev/null; then [ -L {WANTED} ] && echo enabled; fi
code=0
{AGENT} --once --force || code=$?  # with the system's Python
echo "agent $code"
ls /etc/ld.so.conf.d/gpupool.conf
mkdir -p /etc/gpupool
echo 'endpoint = "vsock://2:9177"' > /etc/gpupool/guest.toml  # as after a host's answer
if command -v systemctl >/dev/null; then systemctl disable gpupool-guest-agent; fi
{upgrade}
[ -x {AGENT} ] && [ ! -L {WANTED} ] && echo "upgraded, still disabled"
{remove}
list > {tmp_path}/after
""",
        tmp_path / "scratch",
    )
    assert "upgraded, still disabled" in said
    assert ("enabled" in said.splitlines()) == (shutil.which("systemctl", path=PATH) is not None)
    assert "agent 69" in said  # there is no host, and the runtime is in place
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()


def test_they_are_the_same_each_time(tmp_path: Path, libraries: Path) -> None:
    first = make("deb", tmp_path, libraries).read_bytes()
    assert make("deb", tmp_path, libraries, "-again").read_bytes() == first


def test_the_command(
    tmp_path: Path,
    libraries: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--libraries", str(libraries)]
    named = make("deb", tmp_path, libraries)
    assert command(["vm", "package", str(tmp_path / "x"), "--format", "deb", *words]) == 0
    assert (tmp_path / "x").read_bytes() == named.read_bytes()
    assert command(["vm", "package", str(tmp_path / "y.deb"), *words]) == 0
    assert (tmp_path / "y.deb").read_bytes() == named.read_bytes()
    capsys.readouterr()
    assert command(["vm", "package", str(tmp_path / "z"), "--format", "zip", *words]) == 2
    assert "allowed is tar, deb, rpm" in capsys.readouterr().err
    assert command(["vm", "package", str(tmp_path / "z.rpm"), "--libraries", str(tmp_path)]) != 0
    assert "has no libcuda.so.1" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command(["vm", "package", str(tmp_path / "z.rpm"), *words]) != 0
    assert "rpmbuild is missing here (Debian: rpm; Fedora" in capsys.readouterr().err


def test_templates_have_no_gaps(tmp_path: Path, libraries: Path) -> None:
    for kind in ("deb", "rpm"):
        file = make(kind, tmp_path, libraries)
        show = ["dpkg-deb", "--ctrl-tarfile"] if kind == "deb" else ["rpm", "-qp", "--scripts"]
        said = subprocess.run([*show, str(file)], capture_output=True, check=True).stdout
        assert b"{{" not in said
        assert b"--uninstall" in said
    assert (ROOT / "templates" / "guest" / "rpm-spec.j2").exists()
