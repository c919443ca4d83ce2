"""Memory that runs short costs time, never a study: what is tried next, and which models leave."""

from hypothesis import given
from hypothesis import strategies as st

from node.domain.ladder import Rung, rungs, surplus


def test_a_gpu_has_more_rungs_than_the_cpu_and_ends_there() -> None:
    assert rungs("cuda:0")[-1] is Rung.ON_CPU
    assert rungs("cpu") == (Rung.AS_PLANNED, Rung.ALONE)
    assert rungs("cuda:0")[0] is Rung.AS_PLANNED


def test_the_one_used_longest_ago_leaves_first() -> None:
    held = {"old": 4, "middle": 4, "new": 4}
    assert surplus(held, in_use="new", budget_bytes=12) == ()
    assert surplus(held, in_use="new", budget_bytes=9) == ("old",)
    assert surplus(held, in_use="old", budget_bytes=5) == ("middle", "new")


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100), min_size=1), st.integers(0, 300), st.data())
def test_the_rest_fits_or_only_the_one_in_use_is_left(held: dict[str, int], budget: int, data: st.DataObject) -> None:
    in_use = data.draw(st.sampled_from(sorted(held)))
    leaving = surplus(held, in_use=in_use, budget_bytes=budget)
    rest = {name: size for name, size in held.items() if name not in leaving}
    assert in_use in rest
    assert sum(rest.values()) <= budget or set(rest) == {in_use}
