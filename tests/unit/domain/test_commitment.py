"""Confirmation is asked for by what the archive takes, ever more seldom, and comes to an end."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.commitment import (
    AfterFailure,
    Confirm,
    ConfirmationPolicy,
    FailureReason,
    Means,
    ask_again_at,
    choose_means,
    is_missed,
    judge_failure,
    words_of_failure,
)

POLICY = ConfirmationPolicy()


@pytest.mark.parametrize(
    ("confirm", "commitment", "query", "unreported", "means"),
    [
        (Confirm.AUTO, True, True, 0, Means.COMMITMENT),
        (Confirm.AUTO, True, True, 2, Means.COMMITMENT),
        (Confirm.AUTO, True, True, 3, Means.QUERY),
        (Confirm.AUTO, True, False, 9, Means.COMMITMENT),
        (Confirm.AUTO, False, True, 0, Means.QUERY),
        (Confirm.AUTO, False, False, 0, Means.WAIVE),
        (Confirm.COMMITMENT, True, True, 9, Means.COMMITMENT),
        (Confirm.COMMITMENT, False, True, 0, Means.LATER),
        (Confirm.QUERY, True, True, 0, Means.QUERY),
        (Confirm.QUERY, True, False, 0, Means.LATER),
        (Confirm.NONE, True, True, 0, Means.WAIVE),
    ],
)
def test_an_archive_is_asked_as_the_site_says_by_what_it_takes(
    confirm: Confirm, commitment: bool, query: bool, unreported: int, means: Means
) -> None:
    assert choose_means(confirm, unreported=unreported, commitment=commitment, query=query, policy=POLICY) is means


def test_asking_doubles_from_a_minute_to_an_hour() -> None:
    assert [ask_again_at(n, now_s=0, policy=POLICY) for n in range(1, 9)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]


@given(asked=st.integers(1, 10**6))
def test_waits_never_shrink_and_never_end(asked: int) -> None:
    earlier, later = (ask_again_at(n, now_s=0, policy=POLICY) for n in (asked, asked + 1))
    assert POLICY.first_s <= earlier <= later <= POLICY.max_s


def test_asking_ends_by_the_clock_but_not_before_it_was_tried() -> None:
    over_s = POLICY.give_up_h * 3600
    assert not is_missed(asked=100, stored_at_s=0, now_s=over_s - 1, policy=POLICY)
    assert is_missed(asked=100, stored_at_s=0, now_s=over_s, policy=POLICY)
    assert not is_missed(asked=POLICY.ask_at_least - 1, stored_at_s=0, now_s=100 * over_s, policy=POLICY)


@given(confirm=st.sampled_from(Confirm), offers=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_whatever_an_archive_offers_in_whatever_order_asking_comes_to_an_end(confirm: Confirm, offers: list[tuple[bool, bool]]) -> None:
    """An archive that takes requests and answers none: unreported grows, the clock moves, the end is near."""
    now_s, asked, unreported = 0.0, 0, 0
    moments = [now_s]
    while not is_missed(asked=asked, stored_at_s=0, now_s=now_s, policy=POLICY):
        commitment, query = offers[asked % len(offers)]
        means = choose_means(confirm, unreported=unreported, commitment=commitment, query=query, policy=POLICY)
        if means is Means.WAIVE:
            return
        unreported += means is Means.COMMITMENT
        asked += 1
        now_s = ask_again_at(asked, now_s=now_s, policy=POLICY)
        moments.append(now_s)
    assert asked < 100
    assert all(earlier < later for earlier, later in pairwise(moments))


def test_every_failure_reason_has_a_fate_and_words() -> None:
    fates = {reason: judge_failure(reason) for reason in (*FailureReason, 0xBEEF)}
    assert fates[FailureReason.NO_SUCH_OBJECT_INSTANCE] is AfterFailure.SEND_AGAIN
    assert fates[FailureReason.RESOURCE_LIMITATION] is AfterFailure.ASK_AGAIN
    assert fates[FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED] is fates[0xBEEF] is AfterFailure.ASK_A_PERSON
    assert words_of_failure(0x0112) == "0112: no such object instance"
    assert words_of_failure(0xBEEF) == "BEEF: a reason that the standard does not know"
