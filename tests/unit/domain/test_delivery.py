"""Retrying waits ever longer within its bounds and ends by the clock alone."""

from hypothesis import given
from hypothesis import strategies as st

from node.domain.delivery import JITTER, GiveUp, RetryAt, RetryPolicy, decide_retry

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
