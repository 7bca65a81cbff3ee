"""hostd follows domains of a real libvirtd while they run."""

from __future__ import annotations

from gpupool.hostd.adapters.libvirt_watch import read
from gpupool.hostd.core.vgpu import Quota, SharePolicy, VgpuMode
from gpupool.hostd.core.vm import VmVgpu
from tests.fakes.daemon import Daemon, eventually
from tests.fakes.libvirtd import Libvirtd
from tests.libvirt.test_domains import CONFIG, Host

NAMESPACE = "https://gpupool.dev/xmlns/libvirt/1.0"
METADATA = ("--live", "--uri", NAMESPACE, "--key", "gpupool")


def percents(host: Host, uuid: str) -> list[int]:
    """What its vGPUs have now."""
    now = host.now(uuid)
    return [one["compute_percent"] for one in now["vgpus"]] if now is not None else []


def test_metadata_of_a_running_domain_takes_effect(libvirtd: Libvirtd, hostd: Daemon) -> None:
    config = f'{CONFIG.format("yes")}\nlibvirt_uri = "{libvirtd.uri}"'
    hostd.start(config)
    host = Host(libvirtd, hostd)
    uuid = libvirtd.define()
    host.vm.says("attach", uuid, "--compute", "20", "--no-window")
    host.vm.says("allow", uuid, "--compute", "50")
    libvirtd.does("start", "--paused", uuid)
    assert percents(host, uuid) == [20]
    libvirtd.does("metadata", uuid, *METADATA, "--set", '<vgpus><vgpu compute="30"/></vgpus>')
    eventually(lambda: percents(host, uuid) == [30], "the change takes effect")
    libvirtd.does("metadata", uuid, *METADATA, "--set", '<vgpus><vgpu compute="60"/></vgpus>')
    eventually(lambda: "may have 50%" in hostd.log, "the refusal is logged")
    assert percents(host, uuid) == [30]
    libvirtd.does("metadata", uuid, *METADATA, "--remove")
    eventually(lambda: host.now(uuid) is None, "the vGPU goes")
    assert hostd.stop() == 0


def test_the_xml_is_read_as_the_hook_reads_it() -> None:
    xml = f"""<domain><name>web</name><uuid>0B0C0D0E-0000-4000-8000-00000000000A</uuid>
    <metadata><x xmlns="urn:other"><vgpu compute="1"/></x>
    <g:vgpus xmlns:g="{NAMESPACE}"><g:vgpu compute="5" memory="7" count="2" mode="on-demand"
    policy="hard"/><g:added devices="window"/></g:vgpus></metadata>
    <devices><vsock><cid auto="yes" address="9"/></vsock>
    <shmem name="gpupool-0b0c0d0e-0000-4000-8000-00000000000a"><size unit="M">16</size></shmem>
    </devices></domain>"""
    one = read(xml)
    vgpu = VmVgpu(Quota(5, 7, SharePolicy.HARD, 5), VgpuMode.ON_DEMAND)
    assert (one.wanted, one.cid, one.window_mib, one.problem) == ((vgpu, vgpu), 9, 16, "")
    assert "x" in read(xml.replace('memory="7"', 'memory="x"')).problem
