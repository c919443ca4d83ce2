"""The states of studies, series, jobs and deliveries, and every step between them that is allowed.

This is the one table: the journal refuses any other step, the tests close it, the documentation is drawn from it.
Job states are those of a Unified Procedure Step (PS3.4 Table CC.1.1-1); a retry is a new lease on a job IN PROGRESS.
"""

from enum import StrEnum
from typing import Final


class StudyState(StrEnum):
    """A study gathers instances until it is quiet; then its series are decided on; a late instance opens it again."""

    RECEIVING = "RECEIVING"
    DECIDED = "DECIDED"


class SeriesState(StrEnum):
    """Every series ends SELECTED (a job carries it) or DECLINED (with a reason that a person can read)."""

    RECEIVING = "RECEIVING"
    SELECTED = "SELECTED"
    DECLINED = "DECLINED"


class JobState(StrEnum):
    """A job is one model on one selection of instances."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"


class DeliveryState(StrEnum):
    """One evidence object on its way to one destination."""

    PENDING = "PENDING"
    STORED = "STORED"
    COMMITTED = "COMMITTED"
    REFUSED = "REFUSED"
    GIVEN_UP = "GIVEN UP"


State = StudyState | SeriesState | JobState | DeliveryState

TRANSITIONS: Final[dict[type[StrEnum], dict[State, frozenset[State]]]] = {
    StudyState: {
        StudyState.RECEIVING: frozenset({StudyState.DECIDED}),
        StudyState.DECIDED: frozenset({StudyState.RECEIVING}),  # a late instance
    },
    SeriesState: {
        SeriesState.RECEIVING: frozenset({SeriesState.SELECTED, SeriesState.DECLINED}),
        SeriesState.SELECTED: frozenset({SeriesState.RECEIVING, SeriesState.DECLINED}),  # late instance; a better series came
        SeriesState.DECLINED: frozenset({SeriesState.RECEIVING, SeriesState.SELECTED}),
    },
    JobState: {
        JobState.SCHEDULED: frozenset({JobState.IN_PROGRESS, JobState.CANCELED}),
        JobState.IN_PROGRESS: frozenset({JobState.COMPLETED, JobState.CANCELED}),
        JobState.COMPLETED: frozenset(),
        JobState.CANCELED: frozenset({JobState.SCHEDULED}),  # only by a person: `radnode job retry`
    },
    DeliveryState: {
        DeliveryState.PENDING: frozenset({DeliveryState.STORED, DeliveryState.REFUSED, DeliveryState.GIVEN_UP}),
        # PENDING: the archive lost it; REFUSED: the archive will never answer for it
        DeliveryState.STORED: frozenset({DeliveryState.COMMITTED, DeliveryState.PENDING, DeliveryState.REFUSED}),
        DeliveryState.COMMITTED: frozenset(),
        DeliveryState.REFUSED: frozenset({DeliveryState.PENDING}),  # only by a person
        DeliveryState.GIVEN_UP: frozenset({DeliveryState.PENDING}),  # only by a person
    },
}
"""Keyed by kind first: members of different kinds that share a word are equal texts."""


class Outcome(StrEnum):
    """What a job came to: told to the reader in the SR, never left silent (promise P4)."""

    FOUND = "found"
    NOTHING_FOUND = "nothing found"
    NOT_ATTEMPTED = "not attempted"
    FAILED = "failed"


class Confirmation(StrEnum):
    """What the archive said when it was asked whether it keeps a stored object."""

    AWAITED = "AWAITED"
    GIVEN = "GIVEN"
    WAIVED = "WAIVED"
    """Not asked for, or the archive has no way to say so."""
    MISSED = "MISSED"
    """Asked until the time was over, never answered: a person should look."""


class Priority(StrEnum):
    """How urgent a job is (Priority of DIMSE, PS3.7 C.1.1)."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


OPENING_STATES: Final[dict[type[StrEnum], State]] = {
    StudyState: StudyState.RECEIVING,
    SeriesState: SeriesState.RECEIVING,
    JobState: JobState.SCHEDULED,
    DeliveryState: DeliveryState.PENDING,
}
"""The state in which each kind of thing is born."""

KINDS: Final[dict[type[StrEnum], str]] = {StudyState: "study", SeriesState: "series", JobState: "job", DeliveryState: "delivery"}
"""What the states are states of, as the journal's history names it."""


def is_allowed(before: State, after: State) -> bool:
    """Answers whether the step from `before` to `after` is in the table."""
    return type(before) is type(after) and after in TRANSITIONS[type(before)][before]
