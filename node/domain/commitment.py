"""Confirmation by the archive, decided: how it is asked, and what its answer means for each object (PS3.4 Annex J). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum

from node.domain.delivery import MAX_DOUBLINGS


class FailureReason(IntEnum):
    """Why an archive does not commit an object (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    REFERENCED_SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION_UID = 0x0131
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What an N-EVENT-REPORT of the Storage Commitment Push Model says."""

    transaction_uid: str
    committed: frozenset[str] = frozenset()
    """SOP Instance UIDs that the archive answers for."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """SOP Instance UID → Failure Reason (0008,1197)."""


class AfterFailure(Enum):
    """What follows when an archive does not commit an object."""

    SEND_AGAIN = "send again"
    ASK_AGAIN = "ask again"
    ASK_A_PERSON = "ask a person"


def judge_failure(reason: int) -> AfterFailure:
    """Answers what follows a Failure Reason: what the archive lost is sent again, what it cannot say now is asked again later."""
    if reason == FailureReason.NO_SUCH_OBJECT_INSTANCE:
        return AfterFailure.SEND_AGAIN
    if reason in {FailureReason.PROCESSING_FAILURE, FailureReason.RESOURCE_LIMITATION, FailureReason.DUPLICATE_TRANSACTION_UID}:
        return AfterFailure.ASK_AGAIN
    return AfterFailure.ASK_A_PERSON


def words_of_failure(reason: int) -> str:
    """Answers a Failure Reason for people: `0112: no such object instance`."""
    known = {one.value: one.name.replace("_", " ").lower() for one in FailureReason}
    return f"{reason:04X}: {known.get(reason, 'a reason that the standard does not know')}"


class Confirm(StrEnum):
    """How a destination is asked whether it keeps what it stored, as the configuration says."""

    AUTO = "auto"
    COMMITMENT = "commitment"
    QUERY = "query"
    NONE = "none"


class Means(Enum):
    """How one object is asked about, this time."""

    COMMITMENT = "by storage commitment"
    QUERY = "by query"
    WAIVE = "not at all"
    LATER = "not now"


@dataclass(frozen=True, slots=True)
class ConfirmationPolicy:
    """How long an archive may take to confirm, and how it is asked again."""

    settle_s: float = 1.0
    """After an object was stored: what is stored meanwhile is asked about together."""
    report_wait_s: float = 1.0
    """How long the report is awaited on the association of the request; later it comes to our listener."""
    first_s: float = 60.0
    max_s: float = 3600.0
    give_up_h: float = 72.0
    requests_before_query: int = 3
    """Requests without a report after which `auto` asks by query."""
    ask_at_least: int = 5
    """However old an object is: what was stored by an older radnode is asked about first."""


def ask_again_at(asked: int, *, now_s: float, policy: ConfirmationPolicy) -> float:
    """Answers when to ask again about an object that was asked about `asked` times, this one included."""
    return now_s + min(policy.max_s, policy.first_s * 2.0 ** min(asked - 1, MAX_DOUBLINGS))


def is_missed(*, asked: int, stored_at_s: float, now_s: float, policy: ConfirmationPolicy) -> bool:
    """Answers whether the time for asking about an object is over."""
    return asked >= policy.ask_at_least and now_s - stored_at_s >= policy.give_up_h * 3600


def choose_means(confirm: Confirm, *, unreported: int, commitment: bool, query: bool, policy: ConfirmationPolicy) -> Means:
    """Answers how to ask about an object, of which `unreported` requests had no report; what the archive takes is said by the flags."""
    match confirm:
        case Confirm.NONE:
            return Means.WAIVE
        case Confirm.COMMITMENT:
            return Means.COMMITMENT if commitment else Means.LATER
        case Confirm.QUERY:
            return Means.QUERY if query else Means.LATER
    if commitment and (unreported < policy.requests_before_query or not query):
        return Means.COMMITMENT
    return Means.QUERY if query else Means.WAIVE
