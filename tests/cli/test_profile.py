"""What `gpupool run --profile` makes of the files of several processes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gpupool.cli import profile, profile_file
from gpupool.cli.profile_file import Counter, Profile

NAMES = ("none", "cuLaunchKernel", "cuStreamSynchronize")


def one(pid: int, **functions: Counter) -> Profile:
    return Profile(
        pid, "train", "GPU", "shm", True, 10, 3, 0, 0, functions, Path(f"{pid}-0.profile")
    )


def test_totals_put_the_longest_wait_first() -> None:
    launches = Counter(5, 0, 500, 0, 200, 0, 0)
    waits = Counter(2, 1, 400, 300, 250, 0, 8)
    summed = profile.totals([one(1, b=launches, a=waits), one(2, b=launches), one(3, a=waits)])
    assert list(summed) == ["a", "b"]
    assert summed["a"] == Counter(4, 2, 800, 600, 250, 0, 16)
    assert summed["b"] == Counter(10, 0, 1000, 0, 200, 0, 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "-"),
        (9_999, "9999 B"),
        (10_000, "9.8 KiB"),
        (3 << 30, "3072.0 MiB"),
        (1 << 54, "16384.0 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    counter = Counter(1, 0, 0, 0, 0, count, 0)
    table = profile.render([one(1, f=counter)], [], Path("/t.json"))
    assert f"  {text}  " in table


def written(threads: int = 1, **changes: int) -> bytes:
    """A file as the guest runtime writes it, with one launch."""
    header = {"magic": 0x3130464F52505047, "functions": len(NAMES), "names": 4096, "threads": 8192,
              "thread_bytes": 4096, "events": 4, "count": threads} | changes  # fmt: skip
    raw = bytearray(8192 + 4096)
    struct.pack_into(
        "<QIIQQQQQIIQ16s256s64s", raw, 0, header["magic"], 77, header["functions"], header["names"],
        header["threads"], header["thread_bytes"], header["events"], 5, header["count"], 1, 0,
        b"shm", b"GPU", b"train",
    )  # fmt: skip
    for number, name in enumerate(NAMES):
        raw[4096 + number * 64 : 4096 + number * 64 + len(name)] = name.encode()
    struct.pack_into("<QQ", raw, 8192, 1, 12)
    struct.pack_into("<7Q", raw, 8192 + 64 + 64, 1, 0, 40, 0, 40, 0, 0)
    struct.pack_into("<5QII", raw, 8192 + 64 + 3 * 64, 100, 40, 0, 0, 0, 1, 78)
    return bytes(raw)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "77-0.profile"
    path.write_bytes(written())
    found = profile_file.read(path)
    assert (found.pid, found.program, found.messages, found.ended) == (77, "train", 12, True)
    assert found.functions == {"cuLaunchKernel": Counter(1, 0, 40, 0, 40, 0, 0)}
    (event,) = found.events()
    assert (event.function, event.thread, event.start_ns) == ("cuLaunchKernel", 78, 100)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(8192),
        written()[:9000],
        written(magic=7),
        written(functions=1 << 30),
        written(thread_bytes=64),
        written(names=1 << 62),
        written(threads=2),
        written(count=1 << 30),
        written(events=0),
    ],
)
def test_what_is_no_profile_is_told(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "77-0.profile").write_bytes(raw)
    profiles, problems = profile.gather(tmp_path)
    assert profiles == []
    assert len(problems) == 1
    assert "process 77 left no profile: " in problems[0]
    assert "77" in profile.render(profiles, problems, Path("/t.json"))


def test_the_command_line() -> None:
    from gpupool.cli.main import main, parser

    for words, expected in (
        (["--", "x"], None),
        (["--profile", "--", "x"], Path("gpupool-trace.json")),
        (["--profile=a.json", "--", "x"], Path("a.json")),
    ):
        assert parser("run").parse_args(words).profile == expected
    for words in (["--json", "--", "true"], ["--profile", "--print-env"]):
        assert main(["run", *words]) == 2
    with pytest.raises(SystemExit):
        parser("run").parse_args(["--profile", "python", "x.py"])


def test_a_trace_that_cannot_be_written_stops_before_the_program(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from gpupool.cli import run
    from gpupool.cli.main import parser

    arguments = parser("run").parse_args(["--profile=/nonexistent/t.json", "--", "echo", "it ran"])
    assert run._profiled(["echo", "it ran"], {}, arguments) == 125
    out, err = capfd.readouterr()
    assert "it ran" not in out
    assert "/nonexistent/t.json" in err
