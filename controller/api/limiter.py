"""Rate limits: a bucket a token, in the memory of one replica.

With N replicas behind a balancer a token gets up to N times the rate: the limit keeps one client
from taking a replica for itself, it is no quota.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_s: float


class Limiter:
    """`rate` requests a second for each key, `burst` at once."""

    def __init__(
        self, rate: float, burst: int, monotonic_s: Callable[[], float], most_keys: int = 10_000
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic_s = monotonic_s
        self._most_keys = most_keys
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key: str) -> float:
        """0 when the request may go on, else after how many seconds to come again."""
        bucket = self._filled(key)
        if bucket.level >= 1:
            bucket.level -= 1
            return 0.0
        return (1 - bucket.level) / self._rate

    def empty(self, key: str) -> bool:
        """Whether `take` would refuse; takes nothing."""
        return self._filled(key).level < 1

    def _filled(self, key: str) -> _Bucket:
        now_s = self._monotonic_s()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(float(self._burst), now_s)
            if len(self._buckets) > self._most_keys:
                self._buckets.popitem(last=False)  # unused for longest: full again by now
        self._buckets.move_to_end(key)
        bucket.level = min(self._burst, bucket.level + (now_s - bucket.filled_s) * self._rate)
        bucket.filled_s = now_s
        return bucket
