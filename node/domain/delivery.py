"""When to try a delivery again, and when to stop. Pure: the clock and the chance are arguments."""

from dataclasses import dataclass
from typing import Final

from node.domain.identifiers import derive_uid

MAX_DOUBLINGS: Final = 16
"""The exponent is clamped: 2**attempts would overflow long before a 72 h window ends."""

JITTER: Final = 0.2
"""A wait is spread by this fraction to both sides, so that a returning archive is not stormed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait between attempts and when to give up."""

    first_s: float = 10.0
    max_s: float = 900.0
    give_up_h: float = 72.0


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again at `when_s` (seconds since the epoch)."""

    when_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop trying, for `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Outage:
    """A destination that no association can be had with; it costs no delivery an attempt."""

    destination: str
    failures: int
    """Attempts to connect in a row."""
    down_since_s: float
    next_attempt_s: float
    reason: str


def archived_as(sop_class_uid: str, sop_instance_uid: str, sent_as: str) -> tuple[str, str]:
    """Answers SOP Class and Instance UID under which a destination has an object: its own, or those of the class that it was sent as.

    An object in another class must not bear the same UID (PS3.5 9): the other one derives from it.
    """
    if not sent_as or sent_as == sop_class_uid:
        return sop_class_uid, sop_instance_uid
    return sent_as, derive_uid(sop_instance_uid, sent_as)


def backoff_s(attempts: int, policy: RetryPolicy, chance: float) -> float:
    """Answers the wait after failed attempt number `attempts` (from 1); `chance` lies in 0..1."""
    wait_s = min(policy.max_s, policy.first_s * 2.0 ** min(attempts - 1, MAX_DOUBLINGS))
    return wait_s * (1 + JITTER * (2 * chance - 1))


def decide_retry(*, attempts: int, first_attempt_s: float, now_s: float, policy: RetryPolicy, chance: float) -> RetryAt | GiveUp:
    """Answers what follows failed attempt number `attempts` (from 1) of a retryable fault; `chance` lies in 0..1."""
    ended = end_of_patience(attempts=attempts, first_attempt_s=first_attempt_s, now_s=now_s, policy=policy)
    return ended or RetryAt(now_s + backoff_s(attempts, policy, chance))


def end_of_patience(*, attempts: int, first_attempt_s: float, now_s: float, policy: RetryPolicy) -> GiveUp | None:
    """Answers why a delivery is given up, None while its time is not over."""
    waited_h = (now_s - first_attempt_s) / 3600
    if waited_h < policy.give_up_h:
        return None
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return GiveUp(f"gave up after {times} in {waited_h:.1f} h")


def decide_outage(before: Outage | None, *, destination: str, reason: str, now_s: float, policy: RetryPolicy, chance: float) -> Outage:
    """Answers the outage after one more association that could not be had: when the next one is tried."""
    failures = before.failures + 1 if before else 1
    down_since_s = before.down_since_s if before else now_s
    return Outage(destination, failures, down_since_s, now_s + backoff_s(failures, policy, chance), reason)
