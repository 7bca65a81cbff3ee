"""Medians, ratios of interleaved pairs, and bootstrap intervals of them."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 2000
_SEED = 20  # the same samples give the same interval


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of pairs, with its 95 % interval."""

    median: float
    low: float
    high: float
    pairs: int
    resampled: tuple[float, ...] = ()  # medians of the resamples, for means over rows

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return {"median": self.median, "low": self.low, "high": self.high, "pairs": self.pairs}


def _interval(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.025 * last)], ordered[round(0.975 * last)]


def of_pairs(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """Of (native, other) times. None without a pair."""
    ratios = [other / native for native, other in pairs if native > 0]
    if not ratios:
        return None
    generator = random.Random(_SEED)  # noqa: S311 (statistics, no secret)
    medians = tuple(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)
    )
    low, high = _interval(medians)
    return Ratio(statistics.median(ratios), low, high, len(ratios), medians)


def geometric_mean(ratios: Sequence[Ratio]) -> Ratio | None:
    """Over rows; its interval is that of the means of the rows' resamples."""
    usable = [each for each in ratios if each.median > 0 and min(each.resampled, default=0) > 0]
    if not usable:
        return None

    def mean(values: Sequence[float]) -> float:
        return math.exp(statistics.fmean(math.log(value) for value in values))

    means = [mean([each.resampled[i] for each in usable]) for i in range(_RESAMPLES)]
    low, high = _interval(means)
    return Ratio(
        mean([each.median for each in usable]),
        low,
        high,
        min(each.pairs for each in usable),
        tuple(means),
    )


def half_spread_percent(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, in percent of the median."""
    if len(values) < 2 or statistics.median(values) == 0:
        return 0.0
    quarters = statistics.quantiles(values, n=4, method="inclusive")
    return (quarters[2] - quarters[0]) / 2 / statistics.median(values) * 100
