"""The states of a session and its record."""

from __future__ import annotations

import itertools
import json

import pytest

from gpupool.hostd.core.session import IllegalTransitionError, Session, SessionState

SESSION = Session(
    id=3,
    state=SessionState.STARTING,
    program="python3",
    pid=41,
    uid=1000,
    client_version="0.1.0",
    transport="shm",
    endpoint="unix:/run/gpupool/hostd.sock",
    devices=("GPU-1", "GPU-2"),
    compute_percent=50,
    memory_mib=1024,
    since="2026-01-02T03:04:05Z",
)
ALLOWED = {
    ("starting", "running"),
    ("starting", "ended"),
    ("running", "ending"),
    ("running", "ended"),
    ("ending", "ended"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SessionState, SessionState)))
def test_only_these_moves(before: SessionState, after: SessionState) -> None:
    content = SESSION.as_dict() | {"state": before.value}
    session = Session.from_dict(content)
    if (before.value, after.value) in ALLOWED:
        assert session.moved(after).state is after
    else:
        with pytest.raises(IllegalTransitionError):
            session.moved(after)


def test_a_worker_makes_it_run() -> None:
    running = SESSION.with_worker(77, 12345)
    assert running.state is SessionState.RUNNING
    assert (running.worker_pid, running.worker_start_ticks) == (77, 12345)
    with pytest.raises(IllegalTransitionError):
        running.with_worker(78, 1)


def test_the_record_survives_json() -> None:
    running = SESSION.with_worker(77, 12345)
    assert Session.from_dict(json.loads(json.dumps(running.as_dict()))) == running


def test_a_newer_hostd_may_have_added_keys() -> None:
    assert Session.from_dict(SESSION.as_dict() | {"colour": 5}) == SESSION


@pytest.mark.parametrize(
    "change",
    [{"state": "asleep"}, {"id": "3"}, {"worker_pid": None}, {"devices": 7}, {"program": 1}],
)
def test_a_wrong_record_is_no_session(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Session.from_dict(SESSION.as_dict() | change)


def test_a_short_record_is_no_session() -> None:
    content = SESSION.as_dict()
    del content["worker_pid"]
    with pytest.raises(ValueError, match="worker_pid"):
        Session.from_dict(content)
