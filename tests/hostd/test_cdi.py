"""CDI devices: the file to the byte, and the rules of the format for any."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gpupool.hostd.adapters.cdi import CdiFolder, specification
from gpupool.hostd.core.pool_ports import CdiDevice
from gpupool.hostd.core.ports import PortError

GOLDEN = Path(__file__).parents[1] / "golden" / "cdi"
UUID = "GPU-00000000-1111-2222-3333-444455556666"
DEVICE = CdiDevice(UUID, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"))


def check_rules(content: dict[str, Any]) -> None:
    """What SPEC.md of version 0.6.0 demands of what we write, in our words: no keys but these,
    a vendor and a class, named devices, and something that each of them changes.
    """
    assert set(content) == {"cdiVersion", "kind", "devices"}
    assert content["cdiVersion"] == "0.6.0"
    vendor, _, kind = content["kind"].partition("/")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", vendor)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*[A-Za-z0-9]", kind)
    assert content["devices"]
    names = [one["name"] for one in content["devices"]]
    assert len(names) == len(set(names))
    for one in content["devices"]:
        assert set(one) == {"name", "containerEdits"}
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]", one["name"])
        edits = one["containerEdits"]
        assert edits
        assert set(edits) <= {"env", "deviceNodes"}
        assert all(re.fullmatch(r"[A-Z_]+=.*", text) for text in edits["env"])
        assert all(
            set(node) == {"path"} and node["path"].startswith("/dev/")
            for node in edits.get("deviceNodes", [])
        )


@pytest.mark.parametrize("nodes", [DEVICE.nodes, ("/dev/vfio/12", "/dev/vfio/vfio"), ()])
def test_it_follows_the_rules(nodes: tuple[str, ...]) -> None:
    check_rules(specification(CdiDevice(UUID, nodes)))


def test_the_file(tmp_path: Path) -> None:
    CdiFolder(tmp_path / "cdi").publish(DEVICE)
    (written,) = (tmp_path / "cdi").iterdir()
    assert written.read_text() == (GOLDEN / written.name).read_text()
    assert written.stat().st_mode & 0o777 == 0o644  # container runtimes of users read it


@pytest.mark.parametrize("name", ["", "x", "GPU 1", "../x", "GPU-1/", "GPU\n1", "GPU-é"])
def test_no_other_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(PortError, match="no name for a CDI device"):
        CdiFolder(tmp_path).publish(CdiDevice(name, ()))
    assert list(tmp_path.iterdir()) == []


def test_it_appears_at_once_and_disappears(tmp_path: Path) -> None:
    folder = CdiFolder(tmp_path)
    folder.publish(CdiDevice(UUID, ()))
    assert folder.published(UUID)
    (path,) = tmp_path.iterdir()
    with path.open() as reader:  # a runtime that reads it now
        folder.publish(DEVICE)
        assert "deviceNodes" not in json.load(reader)["devices"][0]["containerEdits"]
    check_rules(json.loads(path.read_text()))
    path.with_suffix(".new").touch()  # of a hostd that died
    folder.withdraw(UUID)
    assert not folder.published(UUID)
    folder.withdraw(UUID)
    assert list(tmp_path.iterdir()) == []


def test_what_a_runtime_does_not_read(tmp_path: Path) -> None:
    """Runtimes take *.json and *.yaml: not what is being written."""
    folder = CdiFolder(tmp_path)
    folder.publish(DEVICE)
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".json"
    assert path.with_suffix(".new").suffix == ".new"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = CdiFolder(tmp_path / "file")
    with pytest.raises(PortError, match=r"pool\.cdi_dir must be a folder"):
        folder.publish(DEVICE)
    folder.withdraw(UUID)  # there is none
    assert not folder.published(UUID)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(PortError, match="Permission denied"):
            CdiFolder(tmp_path / "closed").publish(DEVICE)
