"""What may be removed from the disk, as laws over any rows."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.retention import (
    ROOM_IS_MADE_FROM,
    DeliveryFacts,
    JobFacts,
    RetentionPolicy,
    Standing,
    StudyFacts,
    judge_standing,
    plan_purge,
    purged_reason,
)
from node.domain.states import Confirmation, DeliveryState, JobState, Outcome, SeriesState, StudyState

DONE = JobFacts(JobState.COMPLETED, Outcome.FOUND, 100.0, has_report=True, is_superseded=False)
FAILED = JobFacts(JobState.CANCELED, Outcome.FAILED, 100.0, has_report=True, is_superseded=False)
COMMITTED = DeliveryFacts(DeliveryState.COMMITTED, Confirmation.GIVEN, 110.0)
TRUSTED = DeliveryFacts(DeliveryState.STORED, Confirmation.WAIVED, 105.0)
DELIVERED = StudyFacts(
    study_instance_uid="1.2",
    state=StudyState.DECIDED,
    open_associations=0,
    series=(SeriesState.SELECTED, SeriesState.DECLINED),
    last_instance_at=90.0,
    jobs=(DONE,),
    deliveries=(COMMITTED, TRUSTED),
    unqueued_evidence=0,
    kept_bytes=1000,
)
DECLINED = replace(DELIVERED, series=(SeriesState.DECLINED,), jobs=(), deliveries=())
POLICY = RetentionPolicy(delivered_s=1000.0, declined_s=500.0, failed_s=2000.0, purge_below_free_bytes=10_000)

SECONDS = st.floats(0, 10_000, allow_nan=False)
JOBS = st.builds(
    JobFacts,
    st.sampled_from(JobState),
    st.sampled_from(["", *Outcome]),
    st.none() | SECONDS,
    has_report=st.booleans(),
    is_superseded=st.booleans(),
)
DELIVERIES = st.builds(DeliveryFacts, st.sampled_from(DeliveryState), st.none() | st.sampled_from(Confirmation), SECONDS)
STUDIES = st.lists(
    st.builds(
        StudyFacts,
        study_instance_uid=st.integers(1, 10**6).map(lambda number: f"1.2.{number}"),
        state=st.sampled_from(StudyState),
        open_associations=st.sampled_from([0, 0, 0, 1]),
        series=st.lists(st.sampled_from(SeriesState), max_size=3).map(tuple),
        last_instance_at=SECONDS,
        jobs=st.lists(JOBS, max_size=3).map(tuple),
        deliveries=st.lists(DELIVERIES, max_size=3).map(tuple),
        unqueued_evidence=st.sampled_from([0, 0, 0, 1]),
        kept_bytes=st.integers(0, 5000),
    )
    | st.builds(lambda last, kept, number: replace(DELIVERED, study_instance_uid=f"1.3.{number}", last_instance_at=last, kept_bytes=kept),
                SECONDS, st.integers(0, 5000), st.integers(1, 10**6))
    | st.builds(lambda last, kept, number: replace(DECLINED, study_instance_uid=f"1.4.{number}", last_instance_at=last, kept_bytes=kept),
                SECONDS, st.integers(0, 5000), st.integers(1, 10**6)),
    max_size=12,
    unique_by=lambda study: study.study_instance_uid,
)  # fmt: skip


def test_the_standings_of_studies_that_have_ended() -> None:
    assert judge_standing(DELIVERED) is Standing.DELIVERED
    assert judge_standing(DECLINED) is Standing.DECLINED
    assert judge_standing(replace(DELIVERED, jobs=(DONE, FAILED))) is Standing.FAILED
    superseded = JobFacts(JobState.CANCELED, Outcome.NOT_ATTEMPTED, 95.0, has_report=False, is_superseded=True)
    assert judge_standing(replace(DELIVERED, jobs=(superseded, DONE))) is Standing.DELIVERED


@pytest.mark.parametrize(
    "changed",
    [
        {"state": StudyState.RECEIVING},
        {"open_associations": 1},
        {"series": (SeriesState.RECEIVING, SeriesState.DECLINED)},
        {"jobs": (DONE, replace(DONE, state=JobState.SCHEDULED, outcome="", ended_at=None))},
        {"jobs": (DONE, replace(DONE, state=JobState.IN_PROGRESS))},
        {"jobs": (replace(FAILED, has_report=False),)},
        {"jobs": (), "deliveries": ()},  # a series was selected, and no job tells what became of it
        {"unqueued_evidence": 1},
        *(
            {"deliveries": (COMMITTED, DeliveryFacts(state, confirmation, 1.0))}
            for state, confirmation in [
                (DeliveryState.PENDING, None),
                (DeliveryState.STORED, None),
                (DeliveryState.STORED, Confirmation.AWAITED),
                (DeliveryState.STORED, Confirmation.MISSED),
                (DeliveryState.REFUSED, None),
                (DeliveryState.GIVEN_UP, None),
            ]
        ),
    ],
    ids=str,
)
def test_what_is_not_settled_is_active_and_stays_whatever_its_age_and_however_full_the_disk(changed: dict[str, object]) -> None:
    study = replace(DELIVERED, **changed)  # type: ignore[arg-type]
    assert judge_standing(study) is Standing.ACTIVE
    assert plan_purge([study], POLICY, free_bytes=0, now_s=1e12) == ()


@given(STUDIES, st.integers(0, 20_000), SECONDS)
def test_nothing_undelivered_is_ever_in_a_plan(studies: list[StudyFacts], free_bytes: int, now_s: float) -> None:
    for purge in plan_purge(studies, POLICY, free_bytes=free_bytes, now_s=now_s):
        study = purge.study
        assert study.state is StudyState.DECIDED
        assert all(job.state in {JobState.COMPLETED, JobState.CANCELED} for job in study.jobs)
        assert all(job.has_report or job.is_superseded for job in study.jobs)
        for delivery in study.deliveries:
            stored = delivery.state is DeliveryState.STORED and delivery.confirmation is Confirmation.WAIVED
            assert stored or delivery.state is DeliveryState.COMMITTED


@given(STUDIES, st.integers(0, 20_000), SECONDS)
def test_a_plan_holds_all_that_is_over_and_then_no_more_than_makes_room(studies: list[StudyFacts], free_bytes: int, now_s: float) -> None:
    plan = plan_purge(studies, POLICY, free_bytes=free_bytes, now_s=now_s)
    kept = [study for study in studies if study.kept_bytes > 0]
    over = [study for study in kept if now_s - study.last_event_at >= POLICY.time_of(judge_standing(study))]
    early = [purge for purge in plan if purge.study not in over]
    assert len(plan) == len(over) + len(early) == len({purge.study.study_instance_uid for purge in plan})
    free_bytes += sum(study.kept_bytes for study in over)
    for purge in early:
        assert free_bytes < POLICY.purge_below_free_bytes, "the one before had made enough room"
        assert purge.standing in ROOM_IS_MADE_FROM
        free_bytes += purge.study.kept_bytes
    if free_bytes < POLICY.purge_below_free_bytes:
        left = [study for study in kept if study not in [purge.study for purge in plan]]
        assert not [study for study in left if judge_standing(study) in ROOM_IS_MADE_FROM], "short of room, and something could have gone"


@given(STUDIES, st.integers(0, 20_000), SECONDS)
def test_the_oldest_goes_first_and_the_delivered_before_the_declined(studies: list[StudyFacts], free_bytes: int, now_s: float) -> None:
    plan = plan_purge(studies, POLICY, free_bytes=free_bytes, now_s=now_s)
    early = ["below" in purge.reason for purge in plan]
    assert early == sorted(early)
    for group in (False, True):
        purges = [purge for purge, is_early in zip(plan, early, strict=True) if is_early is group]
        ranks = [(ROOM_IS_MADE_FROM.index(purge.standing) if group else 0, purge.study.last_event_at) for purge in purges]
        assert ranks == sorted(ranks)


@given(STUDIES, st.integers(0, 20_000), SECONDS, SECONDS)
def test_time_alone_never_brings_a_study_back_nor_does_a_clock_set_back_remove_one(
    studies: list[StudyFacts], free_bytes: int, now_s: float, later_s: float
) -> None:
    policy = replace(POLICY, purge_below_free_bytes=0)
    early, late = sorted((now_s, later_s))
    before = {purge.study.study_instance_uid for purge in plan_purge(studies, policy, free_bytes=free_bytes, now_s=early)}
    after = {purge.study.study_instance_uid for purge in plan_purge(studies, policy, free_bytes=free_bytes, now_s=late)}
    assert before <= after


def test_the_time_counts_from_the_last_thing_that_happened() -> None:
    assert DELIVERED.last_event_at == 110.0
    assert not plan_purge([DELIVERED], POLICY, free_bytes=10**9, now_s=1109.0)
    (purge,) = plan_purge([DELIVERED], POLICY, free_bytes=10**9, now_s=1110.0)
    assert purge.reason == "delivered for longer than retention keeps it"


def test_failed_studies_make_no_room_before_their_time() -> None:
    failed = replace(DELIVERED, jobs=(FAILED,))
    assert not plan_purge([failed], POLICY, free_bytes=0, now_s=111.0)
    assert plan_purge([failed], POLICY, free_bytes=0, now_s=2110.0)


def test_a_series_with_removed_images_is_told_how_many_and_when() -> None:
    assert purged_reason([None, None]) == ""
    assert purged_reason([0.0, None, 86400.0]) == (
        "node: 2 of its 3 images were removed by retention on 1970-01-02: send the whole series again"
    )
