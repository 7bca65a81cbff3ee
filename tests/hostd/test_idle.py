"""When a private hostd leaves."""

from __future__ import annotations

from gpupool.hostd.core.idle import IdleRule


def test_leaves_after_the_timeout() -> None:
    rule = IdleRule(60, 0)
    assert rule.look(0, busy=False) == 60
    assert rule.look(59, busy=False) == 1
    assert rule.look(60, busy=False) is None


def test_counts_from_the_end_of_the_last_use() -> None:
    rule = IdleRule(60, 0)
    assert rule.look(10, busy=True) == 60
    assert rule.look(69, busy=False) == 60  # became free just now, however long ago the last look
    assert rule.look(128, busy=False) == 1
    assert rule.look(129, busy=False) is None


def test_never_leaves_while_busy() -> None:
    rule = IdleRule(60, 0)
    for now_s in range(0, 1000, 61):
        assert rule.look(now_s, busy=True) == 60


def test_waits_when_somebody_is_about_to_join() -> None:
    rule = IdleRule(60, 0)
    assert rule.look(60, busy=False, hold=lambda: False) == 60
    assert rule.look(119, busy=False, hold=lambda: True) == 1
    assert rule.look(120, busy=False, hold=lambda: True) is None
