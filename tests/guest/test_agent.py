"""The guest agent without a guest: its channel is a unix socket, its system a folder."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gpupool.cli.main import main as command
from gpupool.guest import package
from gpupool.guest.agent.channel import Channel
from gpupool.guest.agent.failure import DRIVER_PRESENT, NO_RUNTIME, REFUSED, AgentError
from gpupool.guest.agent.main import PERMANENT
from gpupool.guest.agent.opengl import OpenGl
from gpupool.guest.agent.runtime import Runtime
from gpupool.guest.agent.terms import Terms
from tests.conftest import Host, native_dir
from tests.fakes.daemon import eventually
from tests.tree import ROOT

AGENT = ROOT / "guest" / "agent"
VGPU = {"name": "web", "compute_percent": 25, "memory_mib": 4096, "policy": "elastic"}
TERMS = {"ok": True, "version": "0.1.0", "endpoint": "vsock://2:9177", "vgpus": [VGPU]}


class Desk:
    """Answers at a unix socket as hostd would, each question with the next of its answers."""

    def __init__(self, path: Path, answers: list[bytes]) -> None:
        self.asked: list[Any] = []
        self.answers = answers
        self.where = f"unix:{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while self.answers:
                connection, _ = self._listener.accept()
                with connection:
                    self.asked.append(json.loads(connection.recv(65536)))
                    connection.sendall(self.answers.pop(0))

    def end(self) -> None:
        """No more answers."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=10)


def ask(tmp_path: Path, answer: bytes) -> dict[str, Any]:
    """What the channel makes of an answer."""
    one = Desk(tmp_path / "desk", [answer])
    try:
        return Channel(one.where).ask({"method": "terms"})
    finally:
        one.end()


def test_terms_become_a_file_that_programs_read(tmp_path: Path) -> None:
    line = json.dumps({**TERMS, "window": {"bytes": 1 << 28}}).encode()
    terms = Terms.parse(ask(tmp_path, line + b"\n"))
    assert (terms.endpoint, terms.window_bytes) == ("vsock://2:9177", 1 << 28)
    assert str(terms.vgpus[0]) == "web: 25 % compute (elastic), 4096 MiB"
    keys = [line for line in terms.guest_file().splitlines() if not line.startswith("#")]
    assert keys == ['endpoint = "vsock://2:9177"']


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{\n",
        b"[" * 60000 + b"\n",
        b"x" * 70000 + b"\n",
        b'{"ok": false, "error": "no such domain"}\n',
        b'{"ok": "yes"}\n',
    ],
)
def test_answers_that_are_none(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(AgentError, match="host"):
        ask(tmp_path, answer)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": 'vsock://2:9177"\nwindow_socket = "/tmp/x'},
        {"endpoint": "vsock://2:9177\n"},
        {"endpoint": "tcp://10.0.0.1:9177"},
        {"endpoint": None},
        {"version": 1},
        {"vgpus": {}},
        {"vgpus": [None]},
        {"vgpus": [{**VGPU, "memory_mib": True}]},
        {"window": {"bytes": "many"}},
    ],
)
def test_terms_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AgentError) as caught:
        Terms.parse({**TERMS, "window": None, **change})
    assert caught.value.code == REFUSED


@pytest.mark.parametrize("where", ["", "vsock://2", "vsock://host:9178", "tcp://h:1", "unix:x"])
def test_channels_that_are_none(where: str) -> None:
    with pytest.raises(ValueError, match="is no channel"):
        Channel(where)


class System:
    """A folder that ldconfig takes for a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        libraries = native_dir() / "lib" / "guest"
        if not (libraries / "libcuda.so.1").exists():
            pytest.skip(f"{libraries} has no libcuda.so.1: run ./run build")
        if os.geteuid() != 0:
            pytest.skip("not root: ldconfig -r needs it")
        self.own = root / "opt" / "gpupool-guest" / "lib"
        self.own.mkdir(parents=True)
        for name in package.LIBRARIES:
            (self.own / name).write_bytes((libraries / name).read_bytes())
        (root / "etc" / "ld.so.conf.d").mkdir(parents=True)
        (root / "etc" / "ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
        self.runtime = Runtime(Path("/opt/gpupool-guest/lib"), root)

    def put_driver(self, folder: str) -> Path:
        """As packages of the driver do."""
        target = self.root / folder
        target.mkdir(parents=True, exist_ok=True)
        driver = target / "libcuda.so.580.65.06"
        driver.write_bytes((self.own / "libcuda.so.1").read_bytes())
        (target / "libcuda.so.1").symlink_to(driver.name)
        return target / "libcuda.so.1"


def test_the_runtime_is_found_and_taken_back(tmp_path: Path) -> None:
    system = System(tmp_path)
    assert not system.runtime.is_found()
    assert system.runtime.install(force=False)
    assert system.runtime.is_found()
    assert (system.own / "libcuda.so").resolve() == system.own / "libcuda.so.1"
    assert not system.runtime.install(force=False)  # nothing to do
    assert system.runtime.uninstall()
    assert not system.runtime.is_found()
    assert not system.runtime.uninstall()
    assert (system.own / "libcuda.so.1").exists()


@pytest.mark.parametrize("folder", ["usr/lib/x86_64-linux-gnu", "usr/lib64", "srv/driver"])
def test_a_real_driver_is_left_alone(tmp_path: Path, folder: str) -> None:
    system = System(tmp_path)
    driver = system.put_driver(folder)
    if folder == "srv/driver":  # known to ldconfig alone
        (tmp_path / "etc" / "ld.so.conf.d" / "driver.conf").write_text("/srv/driver\n")
        subprocess.run(["/sbin/ldconfig", "-r", str(tmp_path)], check=True, timeout=60)
    with pytest.raises(AgentError, match="a real NVIDIA driver is here") as caught:
        system.runtime.install(force=False)
    assert caught.value.code == DRIVER_PRESENT
    assert str(driver) in str(caught.value)
    assert not system.runtime.list_file.exists()


def test_force_comes_before_a_driver_of_the_distribution(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.put_driver("usr/lib/x86_64-linux-gnu")
    assert system.runtime.install(force=True)
    assert system.runtime.is_found()


def test_a_driver_that_the_linker_prefers_is_an_error(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.put_driver("srv/driver")
    (tmp_path / "etc" / "ld.so.conf.d" / "a-driver.conf").write_text("/srv/driver\n")
    with pytest.raises(AgentError, match="programs do not find libcuda") as caught:
        system.runtime.install(force=True)
    assert caught.value.code == NO_RUNTIME


def test_without_its_libraries_nothing_is_done(tmp_path: Path) -> None:
    system = System(tmp_path)
    (system.own / "libnvidia-ml.so.1").unlink()
    with pytest.raises(AgentError, match=r"libnvidia-ml\.so\.1 is not in"):
        system.runtime.install(force=False)
    assert not system.runtime.list_file.exists()


def run_agent(archive: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The agent as the guest package has it."""
    return subprocess.run(
        [sys.executable, str(archive), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent"
    path.write_bytes(package.agent())
    return path


def test_its_help_names_every_exit_code(zipapp: Path) -> None:
    done = run_agent(zipapp, "--help")
    assert done.returncode == 0
    codes = ast.parse((AGENT / "failure.py").read_text()).body
    numbers = [
        one.value.value
        for one in codes
        if isinstance(one, ast.Assign)
        and isinstance(one.value, ast.Constant)
        and isinstance(one.value.value, int)
    ]
    assert len(numbers) == 6
    assert all(f"\n  {number}  " in done.stdout for number in numbers)


def test_no_libraries_beside_it(zipapp: Path) -> None:
    done = run_agent(zipapp, "--once", "--wait", "0")
    assert done.returncode == NO_RUNTIME
    assert "libcuda.so.1 is not in" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_runs_on_python_38() -> None:
    """Its grammar; `ruff` has the same version for it, and tests/test_tidy.py its imports."""
    for path in sorted(AGENT.glob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_it_imports_the_standard_library_and_itself() -> None:
    for path in sorted(AGENT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or name.startswith("gpupool.guest.agent")


def test_the_unit_is_not_restarted_for_what_stays_wrong() -> None:
    unit = (ROOT / "templates" / "guest" / "gpupool-guest-agent.service.j2").read_text()
    line = next(one for one in unit.splitlines() if one.startswith("RestartPreventExitStatus="))
    codes = {int(one) for one in line.partition("=")[2].split()}
    assert codes == {2, *PERMANENT}  # 2: argparse


def test_the_command_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "guest.tar.gz"
    libraries = native_dir() / "lib" / "guest"
    assert command(["vm", "package", str(target), "--libraries", str(libraries)]) == 0
    assert f"wrote {target}" in capsys.readouterr().out
    with tarfile.open(target) as archive:
        assert "opt/gpupool-guest/lib/libcuda.so.1" in archive.getnames()
    assert command(["vm", "package", str(target), "--libraries", str(tmp_path)]) != 0
    assert "has no libcuda.so.1" in capsys.readouterr().err


def test_the_package_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    template = ROOT / "templates" / "guest" / "gpupool-guest-agent.service.j2"
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    with pytest.raises(package.PackageError, match="no libcuda"):
        package.write(tmp_path / "x.tar.gz", package.entries(libraries, template))
    for name in package.LIBRARIES:
        (libraries / name).write_bytes(b"library")
    package.write(tmp_path / "x.tar.gz", package.entries(libraries, template))
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        members = {one.name: one for one in archive.getmembers()}
        unit = archive.extractfile(package.UNIT)
        assert unit is not None
        text = unit.read().decode()
    assert "ExecStart=/opt/gpupool-guest/agent" in text
    assert "{" not in text
    assert members["opt/gpupool-guest/agent"].mode == 0o755
    assert members["opt/gpupool-guest/lib/libcuda.so"].linkname == "libcuda.so.1"
    assert all(one.uid == 0 for one in members.values())


def on_own_etc(script: str, scratch: Path) -> subprocess.Popen[str]:
    """Runs a script that may write below /etc and change nothing for others."""
    start = f"""
set -e
mount -t tmpfs scratch {scratch}
mkdir {scratch}/upper {scratch}/work
mount -t overlay -o lowerdir=/etc,upperdir={scratch}/upper,workdir={scratch}/work etc /etc
echo mounted
"""
    words = ["unshare", "--mount", "/bin/sh", "-c", start + script]
    pipe = subprocess.PIPE
    program = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert program.stdout is not None
    if program.stdout.readline() != "mounted\n":
        _, errors = program.communicate(timeout=20)
        pytest.skip(f"no mount namespace of our own: {errors.strip()}")
    return program


def test_a_program_gets_its_vgpu_and_the_host_hears_of_it(host: Host, tmp_path: Path) -> None:
    system = System(tmp_path)
    endpoint = f"unix:{host.folder}/hostd.sock"
    answer = json.dumps({**TERMS, "endpoint": endpoint, "window": None}).encode() + b"\n"
    desk = Desk(tmp_path / "desk", [answer, b'{"ok": true}\n'])
    (tmp_path / "scratch").mkdir()
    words = f"--channel {desk.where} --lib {system.own} --force"
    script = f"""
{sys.executable} -m gpupool.guest.agent --once {words}
cat /etc/gpupool/guest.toml
/sbin/ldconfig -p | grep -m 1 'libcuda.so.1 '
{sys.executable} -m gpupool.guest.agent --uninstall {words}
ls /etc/gpupool/guest.toml /etc/ld.so.conf.d/gpupool.conf || true
"""
    program = on_own_etc(script, tmp_path / "scratch")
    output, errors = program.communicate(timeout=120)
    desk.end()
    assert program.returncode == 0, errors
    assert "ready: programs see 1 vGPUs" in errors
    assert desk.asked == [
        {"method": "terms"},
        {"method": "health", "state": "ready", "detail": "1 vGPUs"},
    ]
    assert f'endpoint = "{endpoint}"' in output
    assert str(system.own) in output
    assert errors.count("No such file") == 2, errors  # both are gone again


def test_trouble_is_said_once_and_tried_again(tmp_path: Path) -> None:
    system = System(tmp_path)
    desk = Desk(tmp_path / "desk", [b'{"ok": false, "error": "not yet"}\n'] * 3)
    (tmp_path / "scratch").mkdir()
    words = f"--channel {desk.where} --lib {system.own} --force"
    script = f"exec {sys.executable} -m gpupool.guest.agent {words}\n"
    program = on_own_etc(script, tmp_path / "scratch")
    try:
        deadline = time.monotonic() + 60  # after 1 and 2 seconds
        while desk.answers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(desk.asked) == 3
        program.send_signal(signal.SIGTERM)
        _, errors = program.communicate(timeout=30)
    finally:
        program.kill()
        program.wait(timeout=20)
        desk.end()
    assert program.returncode == 0
    assert errors.count("the host refuses: not yet") == 1, errors


def test_opengl_programs_find_a_relay(tmp_path: Path) -> None:
    program = native_dir() / "lib" / "guest" / "gpupool-opengl"
    library, root = tmp_path / "lib", tmp_path / "root"
    library.mkdir()
    (root / "tmp").mkdir(parents=True)
    one = OpenGl(library, tmp_path / "guest.toml", root)
    assert one.step() == ""  # a package without it
    shutil.copy(program, library)
    places = [root / "run" / "gpupool" / "opengl", root / "tmp" / ".virgl_test"]
    try:
        assert "OpenGL" in one.step()
        for place in places:
            eventually(place.is_socket, f"{place} to be there")
            assert place.stat().st_mode & 0o777 == 0o777  # every user's programs
        assert one.step() == ""
        shell = (root / "etc" / "profile.d" / "gpupool-opengl.sh").read_text()
        assert f"VTEST_SOCKET_NAME={places[0]}" in shell
        one.end()
        assert "OpenGL" in one.step()  # started again
    finally:
        one.end()
    assert one.uninstall()
    assert not one.uninstall()
