"""The hook by itself: what it tells hostd of which container, and what it says where it cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import hooks
from tests.fakes.admin_socket import AdminSocket
from tests.tree import ROOT

HOOK = ROOT / "kata_hooks" / "gpupool-kata"
CONTAINERD = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-id": "s1",
    "io.kubernetes.cri.sandbox-namespace": "research",
    "io.kubernetes.cri.sandbox-name": "trainer-0",
    "io.kubernetes.cri.container-name": "train",
}
CRIO = {
    "io.kubernetes.cri-o.SandboxID": "s1",
    "io.kubernetes.cri-o.Namespace": "research",
    "io.kubernetes.cri-o.KubeName": "trainer-0",
    "io.kubernetes.container.name": "train",
}
IN_POD = {"sandbox": "s1", "namespace": "research", "pod": "trainer-0", "container_name": "train"}
ALONE = {"sandbox": "c1", "namespace": "", "pod": "", "container_name": ""}
hook = hooks.load(HOOK)


class Container:
    """Its bundle and its state."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder
        self.state: dict[str, Any] = {"id": "c1", "pid": 77, "bundle": str(folder)}
        self.spec(process={"user": {"uid": 1000, "gid": 5}})

    def spec(self, **content: Any) -> None:
        """Its config.json."""
        (self.bundle / "config.json").write_text(json.dumps(content))

    def call(self, hostd: AdminSocket | Path, what: str = "begin", **state: Any) -> tuple[int, str]:
        """What the hook answers."""
        path = hostd if isinstance(hostd, Path) else hostd.path
        raw = json.dumps({**self.state, **state}).encode()
        code, said = hook.main([what, "trainer"], raw, {"GPUPOOL_ADMIN_SOCKET": str(path)})
        assert bool(code) == bool(said)
        return code, said


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [(CONTAINERD, IN_POD), (CRIO, IN_POD), ({}, ALONE), ({"x": 3}, ALONE), (None, ALONE)],
)
@pytest.mark.parametrize("where", ["state", "spec"])
def test_a_container_is_told(
    container: Container, hostd: AdminSocket, annotations: Any, expected: Any, where: str
) -> None:
    if where == "spec":
        container.spec(process={"user": {"uid": 1000}}, annotations=annotations)
        assert container.call(hostd) == (0, "")
    else:
        assert container.call(hostd, annotations=annotations) == (0, "")
    assert hostd.asked == [
        {
            "method": "kata_begin",
            "name": "trainer",
            "pid": 77,
            "container": "c1",
            "bundle": str(container.bundle),
            "uid": 1000,
            **expected,
        }
    ]


@pytest.mark.parametrize(
    "more", [{"io.kubernetes.cri.sandbox-namespace": "x"}, {"io.kubernetes.cri.sandbox-name": "x"}]
)
def test_annotations_of_another_runtime_do_not_count(
    container: Container, hostd: AdminSocket, more: dict[str, str]
) -> None:
    """A pod may have set them."""
    assert container.call(hostd, annotations={**CRIO, **more}) == (0, "")
    assert {key: hostd.asked[0][key] for key in IN_POD} == IN_POD
    code, said = container.call(hostd, annotations={**CRIO, **CONTAINERD})
    assert code == 1
    assert "annotations of two runtimes" in said


def test_its_end_is_told_by_its_bundle(container: Container, hostd: AdminSocket) -> None:
    (container.bundle / "config.json").unlink()  # it may be gone by then
    assert container.call(hostd, "end", id="s1", pid=0) == (0, "")
    bundle = str(container.bundle)
    assert hostd.asked == [{"method": "kata_end", "name": "trainer", "bundle": bundle}]


def test_a_refusal_is_passed_on(container: Container, hostd: AdminSocket) -> None:
    hostd.refusals["kata_begin"] = "device trainer is used by another"
    assert container.call(hostd) == (
        1,
        "gpupool: device trainer: device trainer is used by another\n",
    )


@pytest.mark.parametrize("raw", [b"", b"\n", b"nonsense\n", b"[]\n", b'{"ok": 3}\n', b"\xff\n"])
def test_answers_that_make_no_sense(container: Container, hostd: AdminSocket, raw: bytes) -> None:
    hostd.raw = raw
    code, said = container.call(hostd)
    assert code == 1
    assert "makes no sense" in said or "closed the connection" in said


def test_without_hostd(container: Container, tmp_path: Path) -> None:
    for what in ("begin", "end"):
        code, said = container.call(tmp_path / "none.sock", what)
        assert code == 1
        assert said.endswith("none.sock: No such file or directory; start hostd (systemctl start "
                             "gpupool-hostd)\n")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pid": 0}, "no pid of a hypervisor"),
        ({"pid": True}, "no pid of a hypervisor"),
        ({"id": None}, "has no id"),
        ({"bundle": ""}, "has no bundle"),
        ({"bundle": "/nowhere"}, "/nowhere/config.json: "),
    ],
)
def test_states_that_are_none(
    container: Container, hostd: AdminSocket, change: dict[str, Any], text: str
) -> None:
    code, said = container.call(hostd, **change)
    assert code == 1
    assert text in said
    assert hostd.asked == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"[" * 100_000, b"\xff"])
def test_what_is_no_state(hostd: AdminSocket, raw: bytes) -> None:
    for what in ("begin", "end"):
        code, said = hook.main([what, "x"], raw, {"GPUPOOL_ADMIN_SOCKET": str(hostd.path)})
        assert code == 1
        assert said.startswith("gpupool: device x: the ")


@pytest.mark.parametrize("words", [[], ["begin"], ["start", "x"], ["begin", "x", "y"]])
def test_the_command_line(words: list[str]) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", str(HOOK), *words],
        input=b"{}",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"usage: gpupool-kata begin|end DEVICE")
