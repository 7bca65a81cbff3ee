"""The choice among candidates."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpupool.controller.core import scheduler
from gpupool.controller.core.scheduler import Candidate
from gpupool.controller.core.vgpu import Share, Strategy

MEMORY_MIB = 1000


def candidate(number: int, node: str, compute: int, memory: int) -> Candidate:
    """A GPU with so much left."""
    return Candidate(f"gpu{number}", f"U{number}", node, node, "", MEMORY_MIB, compute, memory)


rooms = st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.integers(0, MEMORY_MIB))
shares = st.builds(Share, st.integers(0, 100), st.integers(0, MEMORY_MIB))


@given(
    st.lists(rooms, max_size=9),
    st.lists(shares, min_size=1, max_size=4),
    st.sampled_from(Strategy),
    st.booleans(),
)
def test_a_group_never_gets_more_than_there_is(
    found: list[tuple[str, int, int]], asked: list[Share], strategy: Strategy, distinct: bool
) -> None:
    gpus = [candidate(number, *room) for number, room in enumerate(found)]
    placed = scheduler.best_group(gpus, asked, strategy, distinct=distinct)
    if placed is None:
        return
    assert len({one.node_id for one in placed}) == 1
    if distinct:
        assert len({one.gpu_id for one in placed}) == len(asked)
    for gpu in gpus:
        mine = [share for one, share in zip(placed, asked, strict=True) if one.gpu_id == gpu.gpu_id]
        assert sum(share.compute_percent for share in mine) <= gpu.compute_free_percent
        assert sum(share.memory_mib for share in mine) <= gpu.memory_free_mib


@given(st.lists(rooms, max_size=6), st.lists(shares, min_size=1, max_size=3))
def test_equal_shares_on_distinct_gpus_are_always_found(
    found: list[tuple[str, int, int]], asked: list[Share]
) -> None:
    """Largest first finds a place for equal shares whenever there is one."""
    equal = [asked[0]] * len(asked)
    gpus = [candidate(number, *room) for number, room in enumerate(found)]
    possible = any(
        len({gpu.node_id for gpu in chosen}) == 1 and all(gpu.fits(asked[0]) for gpu in chosen)
        for chosen in itertools.combinations(gpus, len(equal))
    )
    placed = scheduler.best_group(gpus, equal, Strategy.BINPACK, distinct=True)
    assert (placed is not None) == possible


def test_both_resources_count() -> None:
    nearly_full = candidate(1, "a", 50, 100)
    empty = candidate(2, "a", 60, 1000)
    share = Share(10, 100)
    assert scheduler.best([empty, nearly_full], share, Strategy.BINPACK) == nearly_full
    assert scheduler.best([empty, nearly_full], share, Strategy.SPREAD) == empty
    assert scheduler.best([nearly_full], Share(10, 101), Strategy.SPREAD) is None
