"""The files of `gpupool kata`: CDI specifications to the letter of the format, drop-in, archive."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpupool.cli import kata_device
from gpupool.cli.main import main
from tests.tree import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def kind(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """Of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        "minProperties": 1,
    }


def each(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a list."""
    return {"type": "array", "items": schema}


ABSOLUTE = {"type": "string", "pattern": "^/"}
WORDS = each({"type": "string"})
ENVIRONMENT = each({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*="})
HOOK = kind(
    ("hookName", "path"),
    hookName={
        "enum": [
            *("prestart", "createRuntime", "createContainer"),
            *("startContainer", "poststart", "poststop"),
        ]
    },
    path=ABSOLUTE,
    args=WORDS,
    env=ENVIRONMENT,
    timeout={"type": "integer", "minimum": 1},
)
MOUNT = kind(
    ("hostPath", "containerPath"),
    hostPath=ABSOLUTE,
    containerPath=ABSOLUTE,
    options=WORDS,
    type={"type": "string"},
)
EDITS = kind((), env=ENVIRONMENT, mounts=each(MOUNT), hooks=each(HOOK))
NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]$"}
# What SPEC.md of version 0.6.0 says of all that we write, in our words.
SCHEMA = kind(
    ("cdiVersion", "kind", "devices"),
    cdiVersion={"const": "0.6.0"},
    kind={"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*$"},
    devices={**each(kind(("name", "containerEdits"), name=NAME, containerEdits=EDITS))},
)
ON_HOST = kata_device.specification("trainer", "/run/gpupool/kata/trainer", Path("/opt/lib"))
IN_GUEST = kata_device.in_guest(Path("/opt/gpupool-guest/lib"))
WITHOUT = kata_device.specification("trainer", "/run/k/trainer", None, "/elsewhere/admin.sock")


@pytest.mark.parametrize("content", [ON_HOST, IN_GUEST, WITHOUT])
def test_the_format_allows_it(content: dict[str, Any]) -> None:
    jsonschema.validate(content, SCHEMA)


@pytest.mark.parametrize(
    "change", [{"cdiVersion": "9"}, {"kind": "gpupool"}, {"more": 1}, {"devices": [{"name": "a"}]}]
)
def test_the_schema_sees_what_is_wrong(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**ON_HOST, **change}, SCHEMA)


def test_what_a_container_gets() -> None:
    edits = ON_HOST["devices"][0]["containerEdits"]
    assert edits["env"] == [
        "GPUPOOL_ENDPOINT=vsock://2:9177",
        "GPUPOOL_TOKEN_FILE=/run/gpupool/token",
    ]
    places = {mount["containerPath"]: mount["hostPath"] for mount in edits["mounts"]}
    assert places["/run/gpupool"] == "/run/gpupool/kata/trainer"
    assert places["/usr/lib64/libcuda.so.1"] == "/opt/lib/libcuda.so.1"
    assert all("ro" in mount["options"] for mount in edits["mounts"])
    hooks = {hook["hookName"]: hook["args"] for hook in edits["hooks"]}
    assert set(hooks) == {"createRuntime", "createContainer", "poststop"}
    program = ROOT / "gpupool" / "kata_hooks" / "gpupool-kata"
    assert hooks["poststop"] == ["gpupool-kata", "-IS", str(program), "end", "trainer"]
    assert hooks["createRuntime"] == [*hooks["poststop"][:3], "begin", "trainer"]


def test_libraries_of_the_guest_image() -> None:
    """The host's device asks for the guest's by the one name that Kata's agent takes."""
    edits = WITHOUT["devices"][0]["containerEdits"]
    assert [mount["containerPath"] for mount in edits["mounts"]] == ["/run/gpupool"]
    asked = f"{IN_GUEST['kind']}={IN_GUEST['devices'][0]['name']}"
    assert f"VISIBLE_CDI_DEVICES={asked}" in edits["env"]
    assert all(
        hook["env"] == ["GPUPOOL_ADMIN_SOCKET=/elsewhere/admin.sock"] for hook in edits["hooks"]
    )
    inside = IN_GUEST["devices"][0]["containerEdits"]["mounts"]
    assert {mount["hostPath"].rpartition("/")[0] for mount in inside} == {"/opt/gpupool-guest/lib"}


OPENGL = ("gpupool-opengl", "libEGL_gpupool.so", "10_gpupool.json")


@pytest.mark.parametrize("opengl", [(), OPENGL[:1], OPENGL])
def test_the_archive_for_a_guest_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opengl: tuple[str, ...]
) -> None:
    (tmp_path / "lib").mkdir()
    for name in ("libcuda.so.1", "libnvidia-ml.so.1", *opengl):
        (tmp_path / "lib" / name).write_bytes(b"library")
    archive, words = tmp_path / "a.tar.gz", ["--folder", str(tmp_path / "lib")]
    assert main(["kata", "package", str(archive), *words]) == 0
    assert "wrote" in capsys.readouterr().out
    with tarfile.open(archive) as content:
        content.extractall(tmp_path / "root", filter="data")
    root = tmp_path / "root"
    written = json.loads((root / "opt/gpupool-guest/gpupool.dev-vgpu.json").read_text())
    mounts = written["devices"][0]["containerEdits"].pop("mounts")
    plain = json.loads(json.dumps(IN_GUEST))
    known = plain["devices"][0]["containerEdits"].pop("mounts")
    assert written == plain
    assert mounts[: len(known)] == known
    assert {Path(mount["hostPath"]).name for mount in mounts[len(known) :]} == set(opengl)
    for mount in mounts:  # a runtime starts no container when one is missing
        assert (root / mount["hostPath"].lstrip("/")).read_bytes() == b"library"
    (conf,) = (root / "usr/lib/tmpfiles.d").iterdir()
    lines = conf.read_text().splitlines()
    assert lines[-2:] == [
        "d /run/cdi 0755 root root -",
        "L+ /run/cdi/gpupool.dev-vgpu.json - - - - /opt/gpupool-guest/gpupool.dev-vgpu.json",
    ]
    assert main(["kata", "package", str(archive), "--folder", str(tmp_path / "none")]) == 3
    assert "has no libcuda.so.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--libraries", "guest"], {"agent": {"kata": {"visible_cdi_devices": True}}}),
        (["--no-guest-seccomp"], {"runtime": {"disable_guest_seccomp": True}}),
    ],
)
def test_the_drop_in(
    words: list[str], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kata", "config", *words]) == 0
    assert tomllib.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["config"], 3, "Kata needs no other configuration"),
        (["allow", "x"], 2, "say what it gets"),
        (["allow", "x-", "--compute", "5"], 2, "is no name for a CDI device"),
    ],
)
def test_refusals(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kata", *words]) == code
    assert text in capsys.readouterr().err
