"""The table of states is closed, and every thing can come to an end."""

import pytest

from node.domain.states import OPENING_STATES, TRANSITIONS, DeliveryState, JobState, SeriesState, State, StudyState, is_allowed

ALL_STATES: list[State] = [*StudyState, *SeriesState, *JobState, *DeliveryState]


def test_every_state_stands_in_the_table() -> None:
    assert [state for kind in TRANSITIONS.values() for state in kind] == ALL_STATES


@pytest.mark.parametrize("state", ALL_STATES)
def test_steps_stay_within_their_kind(state: State) -> None:
    assert all(type(after) is type(state) for after in TRANSITIONS[type(state)][state])


@pytest.mark.parametrize("kind", [StudyState, SeriesState, JobState, DeliveryState])
def test_every_state_can_be_reached_from_the_opening_one(kind: type[StudyState]) -> None:
    reached: set[State] = set()
    frontier = {OPENING_STATES[kind]}
    while frontier:
        reached |= frontier
        frontier = {after for before in frontier for after in TRANSITIONS[kind][before]} - reached
    assert reached == set(kind)


def test_a_completed_job_is_immutable() -> None:
    assert not any(is_allowed(JobState.COMPLETED, after) for after in JobState)


def test_only_a_canceled_job_can_be_scheduled_again() -> None:
    assert [before for before in JobState if is_allowed(before, JobState.SCHEDULED)] == [JobState.CANCELED]


def test_a_step_between_kinds_is_no_step_though_the_words_are_equal() -> None:
    assert not is_allowed(StudyState.RECEIVING, SeriesState.SELECTED)
    assert not is_allowed(SeriesState.DECLINED, StudyState.RECEIVING)
