"""A real libvirtd of a test's own: its folders are bound over the system's in a mount namespace."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

HOOK_FOLDER = Path("etc/hooks")
# Everything that libvirtd writes goes below the test's folder; the hook finds our admin socket.
_BOUND = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "gpupool": "/run/gpupool",
}
_ENTER = """\
set -e
folder=$1
for covered in /run /var/lib /var/cache /var/log; do mount -t tmpfs gpupool-test "$covered"; done
"""
_LIBVIRTD = """\
log_outputs = "2:file:{folder}/libvirtd.log"
unix_sock_dir = "{folder}/socket"
auth_unix_rw = "none"
auth_unix_ro = "none"
"""
# No security driver, no cgroups, no log daemon: what a container lacks.
_QEMU = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
# A domain that needs nothing to boot: it is started paused.
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  {metadata}
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


def missing() -> str:
    """What this machine lacks for it; empty: nothing."""
    if os.geteuid() != 0:
        return "needs root, to give libvirtd folders of its own"
    wanted = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare", "xmllint", "virt-xml-validate")
    lacking = [name for name in wanted if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: libvirt-daemon, libvirt-clients, " + (
            "qemu-system-x86, libxml2-utils)"
        )
    if importlib.util.find_spec("libvirt") is None:
        return "libvirt-python is not installed (it needs libvirt-dev and pkg-config)"
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "gpupool-test", "/run"],
        capture_output=True,
        check=False,
        timeout=30,
    )
    return "" if done.returncode == 0 else "this machine lets root make no mount namespaces"


class Libvirtd:
    """Started when made; `close` ends it and every domain."""

    def __init__(self, hook: str) -> None:
        """`hook`: text of hooks/qemu."""
        self.folder = Path(tempfile.mkdtemp(prefix="gpupool-libvirt-"))
        self.folder.chmod(0o711)  # workers of other users find their files below it
        for name in _BOUND:
            (self.folder / name).mkdir()
        (self.folder / "socket").mkdir()
        (self.folder / HOOK_FOLDER).mkdir()
        self.hook_path = self.folder / HOOK_FOLDER / "qemu"
        self.hook_path.write_text(hook, encoding="utf-8")
        self.hook_path.chmod(0o755)
        (self.folder / "etc" / "qemu.conf").write_text(_QEMU)
        config = self.folder / "libvirtd.conf"
        config.write_text(_LIBVIRTD.format(folder=self.folder))
        self.uri = f"qemu:///system?socket={self.folder}/socket/libvirt-sock"
        self._config = config
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        (self.folder / "socket" / "libvirt-sock").unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                self._script(self._config),
                "sh",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "stderr").open("wb"),
        )
        deadline_s = time.monotonic() + 30
        try:
            while self.virsh("uri").returncode != 0:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise AssertionError(f"libvirtd did not start: {self.log()}")
                time.sleep(0.05)
        except BaseException:  # nobody else would end it
            process.kill()
            process.wait()
            raise
        return process

    @property
    def admin_socket(self) -> Path:
        """What the hook knows as /run/gpupool/admin.sock."""
        return self.folder / "gpupool" / "admin.sock"

    def log(self) -> str:
        """What libvirtd says."""
        texts = [self.folder / "stderr", self.folder / "libvirtd.log"]
        return "".join(one.read_text(errors="replace") for one in texts if one.exists())[-4000:]

    def virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What a user of virsh sees."""
        return subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def does(self, *words: str) -> str:
        """The same, where it must succeed."""
        done = self.virsh(*words)
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout

    def define(self, metadata: str = "", devices: str = "") -> str:
        """A new domain; its UUID, which is also in its name."""
        one = str(uuid.uuid4())
        path = self.folder / f"{one}.xml"
        path.write_text(
            _DOMAIN.format(
                name=f"vm-{one[:8]}",
                uuid=one,
                metadata=f"<metadata>{metadata}</metadata>" if metadata else "",
                devices=devices.replace("UUID", one),
            )
        )
        self.does("define", str(path))
        return one

    def xml(self, domain: str, *, live: bool = False) -> str:
        """As libvirt has it."""
        return self.does("dumpxml", domain, *(() if live else ("--inactive",)))

    def clear(self) -> None:
        """No domain is left."""
        for name in self.virsh("list", "--name").stdout.split():
            self.virsh("destroy", name)
        for name in self.virsh("list", "--all", "--name").stdout.split():
            self.virsh("undefine", name)

    def restart(self) -> None:
        """Domains go on meanwhile."""
        self._stop()
        self._process = self._start()

    def qemu_pid(self, domain: str) -> int:
        """Of a running domain."""
        name = self.does("domname", domain).strip()
        return int((self.folder / "run" / "qemu" / f"{name}.pid").read_text())

    def close(self) -> None:
        """Leaves no process and no file behind, also where libvirtd does not answer any more."""
        try:
            self.clear()
        finally:
            self._stop()
            self._kill_domains()
            shutil.rmtree(self.folder)

    def _kill_domains(self) -> None:
        """QEMU outlives libvirtd."""
        for path in (self.folder / "run" / "qemu").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(path.read_text())
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"qemu" in command and path.stem.encode() in command:
                    os.kill(pid, signal.SIGKILL)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _script(self, config: Path) -> str:
        lines = [_ENTER.replace("$1", str(self.folder))]
        for name, where in _BOUND.items():
            lines.append(f"mkdir -p {where}; mount --bind {self.folder}/{name} {where}")
        # Debian's package libvirt-daemon-system makes this user; libvirtd wants it in any case.
        for name, line in (
            ("passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin"),
            ("group", "libvirt-qemu:x:64055:\nkvm:x:64054:"),
        ):
            here = self.folder / name
            text = Path("/etc", name).read_text()
            have = {one.split(":")[0] for one in text.splitlines()}
            more = [one for one in line.splitlines() if one.split(":")[0] not in have]
            here.write_text(text + "".join(f"{one}\n" for one in more))
            lines.append(f"mount --bind {here} /etc/{name}")
        lines.append(f"exec libvirtd -f {config} -p {self.folder}/pid")
        return "\n".join(lines)
