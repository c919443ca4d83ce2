"""Retrying waits ever longer within its bounds and ends by the clock alone."""

from hypothesis import given
from hypothesis import strategies as st

from node.domain.delivery import JITTER, GiveUp, Outage, RetryAt, RetryPolicy, decide_outage, decide_retry

POLICY = RetryPolicy(first_s=10, max_s=900, give_up_h=72)


@given(attempts=st.integers(1, 10**6), chance=st.floats(0, 1), waited_s=st.floats(0, 72 * 3600 - 1))
def test_waits_lie_between_first_and_max_with_jitter(attempts: int, chance: float, waited_s: float) -> None:
    decision = decide_retry(attempts=attempts, first_attempt_s=0, now_s=waited_s, policy=POLICY, chance=chance)
    assert isinstance(decision, RetryAt)
    wait_s = decision.when_s - waited_s
    assert POLICY.first_s * (1 - JITTER) - 1e-6 <= wait_s <= POLICY.max_s * (1 + JITTER) + 1e-6


def test_waits_double() -> None:
    waits = [decide_retry(attempts=n, first_attempt_s=0, now_s=0, policy=POLICY, chance=0.5) for n in (1, 2, 3, 8)]
    assert waits == [RetryAt(10), RetryAt(20), RetryAt(40), RetryAt(900)]


def test_gives_up_after_the_window_not_before() -> None:
    last = decide_retry(attempts=90, first_attempt_s=0, now_s=72 * 3600 - 1, policy=POLICY, chance=0.5)
    assert isinstance(last, RetryAt)
    end = decide_retry(attempts=91, first_attempt_s=0, now_s=72 * 3600, policy=POLICY, chance=0.5)
    assert end == GiveUp("gave up after 91 attempts in 72.0 h")


def test_a_single_attempt_is_told_as_one() -> None:
    end = decide_retry(attempts=1, first_attempt_s=0, now_s=72 * 3600, policy=POLICY, chance=0.5)
    assert end == GiveUp("gave up after 1 attempt in 72.0 h")


def test_an_outage_begins_goes_on_and_remembers_since_when() -> None:
    first = decide_outage(None, destination="pacs", reason="refused", now_s=100, policy=POLICY, chance=0.5)
    assert first == Outage("pacs", 1, 100, 110, "refused")
    second = decide_outage(first, destination="pacs", reason="no answer in time", now_s=110, policy=POLICY, chance=0.5)
    assert second == Outage("pacs", 2, 100, 130, "no answer in time")


@given(failures=st.integers(1, 10**6), chance=st.floats(0, 1))
def test_an_outage_is_tried_again_within_the_longest_wait_for_ever(failures: int, chance: float) -> None:
    """Deliveries give up by their own clocks; the destination itself is never written off."""
    before = Outage("pacs", failures, 0, 10**6, "refused")
    after = decide_outage(before, destination="pacs", reason="refused", now_s=10**6, policy=POLICY, chance=chance)
    assert POLICY.first_s * (1 - JITTER) <= after.next_attempt_s - 10**6 <= POLICY.max_s * (1 + JITTER) + 1e-6
