"""Medians of pairs, their intervals, means over rows, and the verdicts on targets."""

from __future__ import annotations

import math

import pytest

from gpupool.bench import ratio, targets
from gpupool.bench.ratio import Ratio
from gpupool.bench.workloads.base import GPU, LAUNCH, Result, difference


def steady(value: float, pairs: int = 10) -> Ratio:
    """A ratio without noise."""
    found = ratio.of_pairs([(1.0, value)] * pairs)
    assert found is not None
    return found


def test_interval_holds_the_median_and_widens_with_noise() -> None:
    quiet = ratio.of_pairs([(1.0, 2.0 + 0.001 * k) for k in range(10)])
    noisy = ratio.of_pairs([(1.0, 2.0 + 0.5 * (-1) ** k) for k in range(10)])
    assert quiet is not None
    assert noisy is not None
    assert quiet.low <= quiet.median <= quiet.high
    assert [quiet.low, quiet.high] == pytest.approx([2.0, 2.0], abs=0.01)
    assert noisy.high - noisy.low > 0.4


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    import random

    generator = random.Random(1)  # noqa: S311
    hits = 0
    for _ in range(60):
        pairs = [(1.0, generator.lognormvariate(0, 0.2)) for _ in range(20)]
        found = ratio.of_pairs(pairs)
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert hits >= 50  # of 60; 57 are expected, 50 or fewer come once in some thousand tries


def test_ratio_is_of_pairs_not_of_medians() -> None:
    """A machine that slows down for everybody changes no ratio."""
    found = ratio.of_pairs([(speed, speed * 1.5) for speed in (1.0, 10.0, 100.0)])
    assert found is not None
    assert (found.low, found.median, found.high) == (1.5, 1.5, 1.5)


def test_geometric_mean() -> None:
    mean = ratio.geometric_mean([steady(0.5), steady(2.0), steady(3.0)])
    assert mean is not None
    assert mean.median == pytest.approx(3.0 ** (1 / 3))
    assert ratio.geometric_mean([]) is None


def verdict(what: str, mode: str, rows: dict[str, Ratio], classes: dict[str, str]) -> str:
    found = targets.judge({mode: rows}, classes)
    return next(
        each.state for each in found if each.target.what == what and each.target.mode == mode
    )


def test_a_target_is_met_when_the_interval_reaches_it() -> None:
    classes = {"a": GPU, "b": GPU, "item": "round trip"}
    reached = ratio.of_pairs([(1.0, 1.0), (1.0, 1.2)] * 5)
    assert reached is not None
    assert reached.median > 1.02
    good = {"a": reached, "b": steady(1.0)}
    assert verdict("GPU-bound", "shm", good, classes) == targets.MET
    bad = {**good, "b": steady(1.03)}
    assert verdict("GPU-bound", "shm", bad, classes) == targets.NOT_MET
    assert verdict("every row but .item()", "shm", {"item": steady(1.2)}, classes) == (
        targets.NO_FIGURE
    )
    assert verdict(".item()", "shm", {"item": steady(1.2)}, classes) == targets.MET


def test_few_pairs_are_told() -> None:
    state = verdict("launch-bound", "tcp", {"a": steady(1.0, pairs=9)}, {"a": LAUNCH})
    assert state == "met, fewer than 10 pairs"


def test_results_are_compared() -> None:
    same = Result(digest="ab")
    assert difference(same, Result(digest="ab"), 0.0) == ""
    assert "native has ab" in difference(same, Result(digest="cd"), 0.0)
    native = Result(values=(1.0, 100.0))
    assert difference(native, Result(values=(1.5, 100.0)), 0.01) == ""  # 1 % of the greatest
    assert "differ by more" in difference(native, Result(values=(3.0, 100.0)), 0.01)
    assert "differ by more" in difference(native, Result(values=(math.nan, 100.0)), 0.01)
    assert "1 values" in difference(native, Result(values=(1.0,)), 0.01)
