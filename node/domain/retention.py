"""What may be removed from the disk, and when. Pure: the clock and the free space are arguments.

Nothing undelivered is ever removed: not what is still under way, not what an archive has refused or may have lost, not the images
of a job that ended without a report. Such a study is ACTIVE until a person or the archive has settled it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from node.domain.states import Confirmation, DeliveryState, JobState, Outcome, SeriesState, StudyState


class Standing(StrEnum):
    """What a study's files are still needed for."""

    ACTIVE = "ACTIVE"
    """Something is under way, undelivered, or waits for a person."""
    DELIVERED = "DELIVERED"
    """Every job has ended with a result, and the archive keeps all of it."""
    DECLINED = "DECLINED"
    """No route wanted it: there was no job."""
    FAILED = "FAILED"
    """A job failed or was not attempted; the report that says so is in the archive."""


ROOM_IS_MADE_FROM: Final = (Standing.DELIVERED, Standing.DECLINED)
"""What goes early when the disk runs short, in this order. Not FAILED: a person may want to try these again, and they are few;
below the second watermark the listener refuses, so the disk never fills."""

_UNSUCCESSFUL: Final = frozenset({Outcome.FAILED, Outcome.NOT_ATTEMPTED})
_ENDED: Final = frozenset({JobState.COMPLETED, JobState.CANCELED})


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job, as far as its study's files are concerned."""

    state: JobState
    outcome: str
    """An Outcome, '' before the end."""
    ended_at: float | None
    has_report: bool
    """Its present run has made evidence."""
    is_superseded: bool
    """A later job has its images and more."""


@dataclass(frozen=True, slots=True)
class DeliveryFacts:
    """A result on its way."""

    state: DeliveryState
    confirmation: Confirmation | None
    settled_at: float
    """The last thing that happened to it."""


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """All that retention asks about a study."""

    study_instance_uid: str
    state: StudyState
    open_associations: int
    series: tuple[SeriesState, ...]
    last_instance_at: float
    jobs: tuple[JobFacts, ...]
    deliveries: tuple[DeliveryFacts, ...]
    unqueued_evidence: int
    """Results that are on their way to nobody."""
    kept_bytes: int

    @property
    def last_event_at(self) -> float:
        """The moment from which its time counts."""
        ends = (job.ended_at for job in self.jobs if job.ended_at is not None)
        return max(self.last_instance_at, *ends, *(one.settled_at for one in self.deliveries), 0.0)


def judge_standing(study: StudyFacts) -> Standing:
    """Answers what the files of a study are still needed for; whoever does not fit a rule is ACTIVE."""
    if study.state is not StudyState.DECIDED or study.open_associations or SeriesState.RECEIVING in study.series:
        return Standing.ACTIVE
    if not all(is_told(job) for job in study.jobs) or study.unqueued_evidence:
        return Standing.ACTIVE
    if not all(is_settled(one) for one in study.deliveries):
        return Standing.ACTIVE
    if not study.jobs:
        return Standing.ACTIVE if SeriesState.SELECTED in study.series else Standing.DECLINED
    failed = any(job.outcome in _UNSUCCESSFUL and not job.is_superseded for job in study.jobs)
    return Standing.FAILED if failed else Standing.DELIVERED


def is_told(job: JobFacts) -> bool:
    """Answers whether a job has ended, and a report says how: its own, or that of the job that superseded it."""
    return job.state in _ENDED and (job.has_report or job.is_superseded)


def is_settled(delivery: DeliveryFacts) -> bool:
    """Answers whether the archive answers for a result, or was said to be trusted without asking."""
    if delivery.state is DeliveryState.COMMITTED:
        return True
    return delivery.state is DeliveryState.STORED and delivery.confirmation is Confirmation.WAIVED


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long what is kept, and from which free space on room is made."""

    delivered_s: float
    declined_s: float
    failed_s: float
    purge_below_free_bytes: int

    def time_of(self, standing: Standing) -> float:
        """Answers for how many seconds after its last event a study stays; for ever while it is ACTIVE."""
        times = {Standing.DELIVERED: self.delivered_s, Standing.DECLINED: self.declined_s, Standing.FAILED: self.failed_s}
        return times.get(standing, float("inf"))


@dataclass(frozen=True, slots=True)
class Purge:
    """A study whose files are to go, and why."""

    study: StudyFacts
    standing: Standing
    reason: str


def plan_purge(studies: Iterable[StudyFacts], policy: RetentionPolicy, *, free_bytes: int, now_s: float) -> tuple[Purge, ...]:
    """Answers what is to go, the oldest first: all whose time is over, and then no more than makes enough room.

    A clock that was set back keeps studies longer, never shorter.
    """
    judged = sorted(
        ((study, judge_standing(study)) for study in studies if study.kept_bytes > 0),
        key=lambda one: (one[0].last_event_at, one[0].study_instance_uid),
    )
    plan = [
        Purge(study, standing, f"{standing.value.lower()} for longer than retention keeps it")
        for study, standing in judged
        if now_s - study.last_event_at >= policy.time_of(standing)
    ]
    expired = {purge.study.study_instance_uid for purge in plan}
    free_bytes += sum(purge.study.kept_bytes for purge in plan)
    for wanted in ROOM_IS_MADE_FROM:
        for study, standing in judged:
            if free_bytes >= policy.purge_below_free_bytes:
                return tuple(plan)
            if standing is wanted and study.study_instance_uid not in expired:
                plan.append(Purge(study, standing, "the disk is below purge_below_free_gib"))
                free_bytes += study.kept_bytes
    return tuple(plan)


def purged_reason(purged_at: Sequence[float | None]) -> str:
    """Answers why a series cannot be analysed, '' where it can: of the moments at which its images were removed, one an image."""
    gone = [moment for moment in purged_at if moment is not None]
    if not gone:
        return ""
    day = datetime.fromtimestamp(max(gone), tz=UTC).date().isoformat()
    return f"node: {len(gone)} of its {len(purged_at)} images were removed by retention on {day}: send the whole series again"
