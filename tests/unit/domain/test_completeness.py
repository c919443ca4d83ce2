"""A study is complete when quiet and no association carries it, or when the maximum wait is over."""

import pytest

from node.domain.completeness import Completeness, CompletenessPolicy, judge_completeness

POLICY = CompletenessPolicy(quiet_s=30, max_wait_s=900)


@pytest.mark.parametrize(
    ("first_s", "last_s", "associations", "now_s", "verdict"),
    [
        (0, 10, 0, 39.9, Completeness.NOT_QUIET),
        (0, 10, 0, 40, Completeness.COMPLETE),
        (0, 10, 1, 400, Completeness.ASSOCIATION_OPEN),
        (0, 899, 1, 899.9, Completeness.ASSOCIATION_OPEN),
        (0, 899, 1, 900, Completeness.FORCED),
        (0, 899.5, 0, 900, Completeness.FORCED),
        (3600, 3600, 0, 100, Completeness.FORCED),  # the clock was set back by an hour
        (100, 130, 0, 60, Completeness.COMPLETE),  # by more than the quiet time
    ],
)
def test_verdicts(first_s: float, last_s: float, associations: int, now_s: float, verdict: Completeness) -> None:
    found = judge_completeness(first_instance_s=first_s, last_instance_s=last_s, open_associations=associations, now_s=now_s, policy=POLICY)
    assert found is verdict


def test_only_quiet_and_forced_count_as_complete() -> None:
    assert {verdict for verdict in Completeness if verdict.is_complete} == {Completeness.COMPLETE, Completeness.FORCED}
