"""The hook by itself: what it asks hostd for which domain, and what it says against it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import hooks
from tests.fakes.admin_socket import AdminSocket
from tests.tree import ROOT

HOOK = ROOT / "qemu_hooks" / "qemu"
UUID = "2fe20f45-15dc-48bf-8271-c2bcd2e6b34c"
OTHER = "00000000-15dc-48bf-8271-c2bcd2e6b34c"
VGPU = '<gpupool:vgpu compute="25" memory="4096"/>'
ADDED = '<gpupool:added devices="window"/>'
WINDOW = (
    f"<shmem name='gpupool-{UUID}'><model type='ivshmem-plain'/><size unit='M'>64</size></shmem>"
)
PLAIN = {"compute_percent": 25, "memory_mib": 4096, "count": 1}
hook = hooks.load(HOOK)


def domain(metadata: str = "", devices: str = "", more: str = "") -> bytes:
    """A domain's XML as libvirt gives it to a hook."""
    return f"""<domain type='kvm' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; more</name>
  <uuid>{UUID}</uuid>
  <metadata>
    <app:other xmlns:app="https://example.org/app"><app:vgpu compute="x"/></app:other>
    {metadata}
  </metadata>
  <memory unit='KiB'>32768</memory>
  <devices>{devices}</devices>{more}
</domain>""".encode()


def wrapped(*vgpus: str) -> str:
    """Our metadata."""
    return (
        '<gpupool:vgpus xmlns:gpupool="https://gpupool.dev/xmlns/libvirt/1.0">'
        f"{''.join(vgpus)}</gpupool:vgpus>"
    )


def call(hostd: AdminSocket | Path, operation: str, xml: bytes) -> tuple[int, str]:
    """What the hook answers."""
    path = hostd if isinstance(hostd, Path) else hostd.path
    sub = "end" if operation in ("stopped", "release") else "begin"
    code, said = hook.main(["web", operation, sub, "-"], xml, {"GPUPOOL_ADMIN_SOCKET": str(path)})
    assert bool(code) <= bool(said)  # nothing is refused without a word
    return code, said


def test_a_request_is_passed_on(hostd: AdminSocket) -> None:
    vgpus = (VGPU, '<gpupool:vgpu memory="1" count="2" mode="on-demand" policy="hard"/>')
    devices = WINDOW + "<vsock model='virtio'><cid auto='no' address='7'/></vsock>"
    assert call(hostd, "prepare", domain(wrapped(*vgpus, ADDED), devices)) == (0, "")
    assert hostd.asked == [
        {
            "method": "vm_prepare",
            "uuid": UUID,
            "name": "web & more",
            "vgpus": [
                {**PLAIN, "mode": "reserved", "policy": "elastic"},
                {
                    "compute_percent": 0,
                    "memory_mib": 1,
                    "count": 2,
                    "mode": "on-demand",
                    "policy": "hard",
                },
            ],
            "window_mib": 64,
            "cid": 7,
            "domain_mib": 32,
        }
    ]


def test_memory_that_can_be_plugged_in_counts(hostd: AdminSocket) -> None:
    more = "<maxMemory slots='2' unit='KiB'>65537</maxMemory><memory unit='pages'>9999999</memory>"
    assert call(hostd, "prepare", domain(wrapped(VGPU), more=more)) == (0, "")
    assert hostd.asked[0]["domain_mib"] == 65


def test_one_bare_element_is_a_request_too(hostd: AdminSocket) -> None:
    bare = '<vgpu xmlns="https://gpupool.dev/xmlns/libvirt/1.0" compute="25" memory="4096"/>'
    assert call(hostd, "prepare", domain(bare)) == (0, "")
    assert hostd.asked[0]["vgpus"] == [{**PLAIN, "mode": "reserved", "policy": "elastic"}]
    assert hostd.asked[0]["window_mib"] == 0


def test_an_automatic_cid_is_told_when_it_is_known(hostd: AdminSocket) -> None:
    metadata = wrapped(VGPU)
    call(hostd, "prepare", domain(metadata, "<vsock><cid auto='yes'/></vsock>"))
    call(hostd, "started", domain(metadata, "<vsock><cid auto='yes' address='3'/></vsock>"))
    assert [one["cid"] for one in hostd.asked] == [0, 3]
    assert hostd.asked[1] == {"method": "vm_started", "uuid": UUID, "cid": 3}


@pytest.mark.parametrize("operation", ["stopped", "release"])
def test_the_end_frees(hostd: AdminSocket, operation: str) -> None:
    assert call(hostd, operation, domain(wrapped(VGPU))) == (0, "")
    assert hostd.asked == [{"method": "vm_release", "uuid": UUID}]


def test_wrong_metadata_does_not_keep_the_end_from_freeing(hostd: AdminSocket) -> None:
    assert call(hostd, "release", domain(wrapped("<gpupool:vgpu compute='x'/>")))[0] == 0
    assert hostd.methods() == ["vm_release"]


@pytest.mark.parametrize("operation", ["prepare", "start", "started", "restore", "stopped"])
def test_other_domains_are_not_touched(operation: str, tmp_path: Path) -> None:
    assert call(tmp_path / "nobody", operation, domain()) == (0, "")
    # Somebody wrote our namespace somewhere: that is no request.
    more = "<description>https://gpupool.dev/xmlns/libvirt/1.0</description>"
    assert call(tmp_path / "nobody", operation, domain(more=more)) == (0, "")


@pytest.mark.parametrize(
    ("vgpu", "said"),
    [
        ('<gpupool:vgpu compute="101"/>', "compute='101'; allowed is a whole number from 0 to 100"),
        ('<gpupool:vgpu compute="-1"/>', "compute='-1'"),
        ('<gpupool:vgpu compute="٣"/>', "compute='٣'"),
        ('<gpupool:vgpu memory="4G"/>', "memory='4G'"),
        ('<gpupool:vgpu compute="5" count="0"/>', "count='0'"),
        ('<gpupool:vgpu compute="5" mode="shared"/>', "mode='shared'; allowed is reserved or"),
        ('<gpupool:vgpu compute="5" policy=""/>', "policy=''"),
        ('<gpupool:vgpu compute="5" profile="h100"/>', "profile='h100'; known are: compute,"),
        ("<gpupool:vgpu/>", "asks for nothing"),
        ("<gpupool:gpu/>", "unknown element <vgpus/gpu>"),
        ('<gpupool:vgpu compute="5"><gpupool:x/></gpupool:vgpu>', "unknown element"),
        ('<gpupool:vgpu compute="5"/>' * 17, "more than 16"),
    ],
)
def test_wrong_metadata_is_refused_with_what_is_wrong(
    hostd: AdminSocket, vgpu: str, said: str
) -> None:
    code, text = call(hostd, "prepare", domain(wrapped(vgpu)))
    assert code == 1
    assert text.startswith("gpupool: domain web & more: its metadata is wrong: ")
    assert said in text
    assert not hostd.asked


def test_what_hostd_says_reaches_whoever_starts_it(hostd: AdminSocket) -> None:
    hostd.refusals["vm_prepare"] = "no GPU has 25% left"
    code, said = call(hostd, "prepare", domain(wrapped(VGPU)))
    assert (code, said) == (1, "gpupool: domain web & more: no GPU has 25% left")


@pytest.mark.parametrize(
    "raw", [b"", b"[]\n", b"{}\n", b"nonsense\n", b'{"ok": true}\n', b"\xff\n"]
)
def test_an_answer_that_makes_no_sense_is_a_refusal(hostd: AdminSocket, raw: bytes) -> None:
    hostd.raw = raw
    code, said = call(hostd, "prepare", domain(wrapped(VGPU)))
    assert code == 1
    assert str(hostd.path) in said


def test_without_hostd_only_who_asks_for_a_vgpu_is_refused(tmp_path: Path) -> None:
    code, said = call(tmp_path / "nobody", "prepare", domain(wrapped(VGPU)))
    assert code == 1
    assert "No such file" in said
    assert "systemctl start gpupool-hostd" in said
    assert "gpupool vm detach" in said


def test_libvirts_return_kills_no_domain(hostd: AdminSocket, tmp_path: Path) -> None:
    assert call(hostd, "reconnect", domain(wrapped(VGPU))) == (0, "")
    assert hostd.methods() == ["vm_started"]  # vm_prepare would end its programs
    hostd.refusals["vm_started"] = "not prepared"
    code, said = call(hostd, "reconnect", domain(wrapped(VGPU)))
    assert (code, said) == (0, "gpupool: domain web & more: not prepared")
    assert hostd.methods()[1:] == ["vm_started", "vm_prepare", "vm_started"]
    code, said = call(tmp_path / "nobody", "reconnect", domain(wrapped(VGPU)))
    assert code == 0
    assert "No such file" in said


def test_a_vgpu_does_not_migrate(hostd: AdminSocket) -> None:
    code, said = call(hostd, "migrate", domain(wrapped(VGPU)))
    assert code == 1
    assert "cannot migrate" in said
    assert call(hostd, "migrate", domain()) == (0, "")
    assert not hostd.asked


def test_another_domains_window_is_refused(hostd: AdminSocket) -> None:
    for metadata in ("", wrapped(VGPU)):
        code, said = call(hostd, "prepare", domain(metadata, WINDOW.replace(UUID, OTHER)))
        assert code == 1
        assert "would be the window of another domain" in said
    assert not hostd.asked


def test_a_window_without_vgpu_is_refused(hostd: AdminSocket) -> None:
    code, said = call(hostd, "prepare", domain(wrapped(), WINDOW))
    assert code == 1
    assert "no vGPU" in said


def test_metadata_that_went_while_it_ran_is_freed(
    hostd: AdminSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "VMS_FOLDER", str(tmp_path))
    call(hostd, "release", domain())
    assert not hostd.asked
    (tmp_path / OTHER).mkdir()
    call(hostd, "release", domain())
    assert not hostd.asked
    (tmp_path / UUID).mkdir()
    call(hostd, "release", domain())
    assert hostd.methods() == ["vm_release"]


def test_an_end_without_hostd_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "VMS_FOLDER", str(tmp_path))
    code, said = call(tmp_path / "nobody", "release", domain(wrapped(VGPU)))
    assert code == 1
    assert "gpupool vm detach frees it" in said
    (tmp_path / UUID).mkdir()
    code, said = call(tmp_path / "nobody", "release", domain(wrapped(VGPU)))
    assert code == 1
    assert "frees its vGPU when it is back" in said
    assert [one.name for one in (tmp_path / UUID).iterdir()] == ["ended"]


def test_it_is_a_program(hostd: AdminSocket) -> None:
    hostd.refusals["vm_prepare"] = "no"
    done = subprocess.run(
        [sys.executable, "-IS", str(HOOK), "web", "prepare", "begin", "-"],
        input=domain(wrapped(VGPU)),
        env={"GPUPOOL_ADMIN_SOCKET": str(hostd.path)},
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr == b"gpupool: domain web & more: no\n"
    assert done.stdout == b""  # libvirt would take it for the domain's new XML


def test_a_user_whom_hostd_does_not_answer_is_told(hostd: AdminSocket) -> None:
    python = Path("/usr/bin/python3")
    if os.geteuid() != 0 or not python.exists():
        pytest.skip("needs root, to be another user, and /usr/bin/python3")
    hostd.path.parent.chmod(0o711)
    hostd.path.chmod(0o600)
    done = subprocess.run(
        [str(python), "-IS", "-c", HOOK.read_text(), "web", "prepare", "begin", "-"],
        input=domain(wrapped(VGPU)),
        env={"GPUPOOL_ADMIN_SOCKET": str(hostd.path)},
        capture_output=True,
        check=False,
        timeout=30,
        user=65534,
    )
    assert done.returncode == 1
    assert b"hostd answers root and its own user only" in done.stderr
    assert not hostd.asked


@pytest.mark.parametrize("words", [[], ["web"], ["web", "prepare"], ["web", "x", "y", "z"]])
def test_calls_that_libvirt_does_not_make_do_nothing(words: list[str]) -> None:
    assert hook.main(words, domain(wrapped(VGPU)), {}) == (0, "")
