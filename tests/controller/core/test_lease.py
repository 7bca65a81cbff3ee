"""Silence is what was watched, not what a clock says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpupool.controller.core.lease import Leases


def test_a_node_is_lost_after_a_lease_of_silence() -> None:
    leases = Leases(30, most_step_s=5)
    for second in range(0, 30, 2):
        assert leases.look({"a": 7, "b": second}, second) == []
    assert leases.look({"a": 7, "b": 30}, 30) == [("a", 7)]


def test_one_beat_is_enough() -> None:
    leases = Leases(30, most_step_s=5)
    for second in range(0, 28, 2):
        leases.look({"a": 7}, second)
    for second in range(28, 56, 2):
        assert leases.look({"a": 8}, second) == []
    assert leases.look({"a": 8}, 58) == [("a", 8)]


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=5))
def test_no_jump_makes_a_node_silent(jumps: list[float]) -> None:
    """A replica that was stopped, a database that was away, a clock that went wrong."""
    leases = Leases(30, most_step_s=5)
    now_s = 0.0
    for jump in jumps:
        now_s += jump
        assert leases.look({"a": 7}, now_s) == []


def test_a_replica_that_has_just_started_knows_of_no_silence() -> None:
    assert Leases(30).look({"a": 1}, 1e9) == []


def test_nodes_that_are_gone_are_forgotten() -> None:
    leases = Leases(30, most_step_s=5)
    for second in range(0, 28, 2):
        leases.look({"a": 7}, second)
    leases.look({}, 28)
    assert leases.look({"a": 7}, 30) == []
