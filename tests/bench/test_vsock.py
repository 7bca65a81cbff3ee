"""The bench of gpupool-vsock runs and measures both ways."""

from __future__ import annotations

import pytest

from gpupool.bench import vsock
from gpupool.bench.host import HostError


def test_both_ways_are_measured() -> None:
    try:
        rounds = vsock.measure(2)
    except HostError as error:
        pytest.skip(str(error))
    assert len(rounds) == 2
    for one in rounds:
        assert set(one) == set(vsock.WAYS)
        assert all(figure > 0 for way in one.values() for figure in way.values())
