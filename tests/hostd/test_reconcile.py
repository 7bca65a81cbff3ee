"""What has to be done so that a node has what the controller wants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpupool.hostd.core.link import Desired, DesiredVgpu
from gpupool.hostd.core.reconcile import Held, Resize, Steps, reconcile
from gpupool.hostd.core.vgpu import Quota


def wanted(name: str, percent: int = 25, gpu: str = "GPU-0") -> DesiredVgpu:
    return DesiredVgpu(name, name, "tenant-1", "acme", gpu, on_demand=False, quota=Quota(percent))


def held(name: str, percent: int = 25, gpu: str = "GPU-0", sessions: tuple[int, ...] = ()) -> Held:
    return Held(name, gpu, Quota(percent), sessions)


def test_what_is_there_needs_nothing() -> None:
    assert reconcile(Desired(1, (wanted("a"),)), [held("a")]) == Steps()


def test_what_is_missing_is_placed() -> None:
    assert reconcile(Desired(1, (wanted("a"),)), []).place == (wanted("a"),)


def test_what_is_not_wanted_goes_when_nobody_uses_it() -> None:
    steps = reconcile(Desired(1), [held("a"), held("b", sessions=(7,))])
    assert steps.drop == ("a",)
    assert steps.end == ()
    assert steps.orphans == {"b"}


def test_sessions_end_only_where_the_vgpu_is_deleted() -> None:
    steps = reconcile(Desired(1, deleting=("a",)), [held("a", sessions=(7, 8))])
    assert steps.end == (7, 8)
    assert steps.drop == ()


def test_what_shrinks_comes_before_what_grows() -> None:
    desired = Desired(1, (wanted("a", 60), wanted("b", 20)))
    steps = reconcile(desired, [held("a", 40), held("b", 60)])
    assert steps.resize == (Resize("b", Quota(20)), Resize("a", Quota(60)))


def test_one_on_another_gpu_moves_when_nobody_uses_it() -> None:
    desired = Desired(1, (wanted("a", gpu="GPU-1"),))
    moved = reconcile(desired, [held("a")])
    assert (moved.drop, moved.place) == (("a",), desired.vgpus)
    busy = reconcile(desired, [held("a", sessions=(7,))])
    assert busy == Steps(orphans=frozenset({"a"}))


NAMES = st.sampled_from("abcdef")
HELD = st.dictionaries(
    NAMES,
    st.tuples(st.integers(0, 100), st.sampled_from(["GPU-0", "GPU-1"]), st.booleans()),
)
WANTED = st.dictionaries(NAMES, st.tuples(st.integers(0, 100), st.sampled_from(["GPU-0", "GPU-1"])))


@given(HELD, WANTED, st.sets(NAMES))
def test_done_once_nothing_is_left_but_orphans(
    there: dict[str, tuple[int, str, bool]], goal: dict[str, tuple[int, str]], gone: set[str]
) -> None:
    desired = Desired(
        1,
        tuple(wanted(name, *one) for name, one in goal.items()),
        deleting=tuple(gone - set(goal)),
    )
    now = {
        name: held(name, percent, gpu, (1,) if busy else ())
        for name, (percent, gpu, busy) in there.items()
    }
    steps = reconcile(desired, list(now.values()))
    ended = [one for one in now.values() if set(steps.end) & set(one.sessions)]
    assert all(one.sessions for one in now.values() if one.id in steps.orphans)
    assert bool(steps.end) == any(one.id in desired.deleting for one in ended)
    for name in steps.drop:
        assert not now.pop(name).sessions
    for step in steps.resize:
        now[step.id] = Held(step.id, now[step.id].gpu, step.quota, now[step.id].sessions)
    for one in steps.place:
        assert one.id not in now
        now[one.id] = Held(one.id, one.gpu, one.quota)
    again = reconcile(desired, list(now.values()))
    assert (again.drop, again.resize, again.place) == ((), (), ())
    assert again.orphans == steps.orphans
