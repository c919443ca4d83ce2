"""When a study counts as complete. DICOM has no signal for it; this is the rule. Pure: the clock is an argument."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class CompletenessPolicy:
    """A study is complete when it has been quiet for `quiet_s`, or at the latest after `max_wait_s`."""

    quiet_s: float = 30.0
    max_wait_s: float = 900.0


class Completeness(StrEnum):
    """The verdict, and why."""

    ASSOCIATION_OPEN = "an association that carried the study is still open"
    NOT_QUIET = "instances arrived a moment ago"
    COMPLETE = "quiet"
    FORCED = "maximum wait reached"

    @property
    def is_complete(self) -> bool:
        """Whether the series may be decided on now."""
        return self in {Completeness.COMPLETE, Completeness.FORCED}


def judge_completeness(
    *, first_instance_s: float, last_instance_s: float, open_associations: int, now_s: float, policy: CompletenessPolicy
) -> Completeness:
    """Answers whether a study is complete at `now_s`; times in seconds since the epoch.

    A clock that was set back must not silence a study: then the distance of the times counts, whichever comes first.
    """
    if abs(now_s - first_instance_s) >= policy.max_wait_s:
        return Completeness.FORCED
    if open_associations > 0:
        return Completeness.ASSOCIATION_OPEN
    if abs(now_s - last_instance_s) < policy.quiet_s:
        return Completeness.NOT_QUIET
    return Completeness.COMPLETE
