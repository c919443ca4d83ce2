"""When to try a delivery again, and when to stop. Pure: the clock and the chance are arguments."""

from dataclasses import dataclass
from typing import Final

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


def decide_retry(*, attempts: int, first_attempt_s: float, now_s: float, policy: RetryPolicy, chance: float) -> RetryAt | GiveUp:
    """Answers what follows failed attempt number `attempts` (from 1) of a retryable fault; `chance` lies in 0..1."""
    waited_h = (now_s - first_attempt_s) / 3600
    if waited_h >= policy.give_up_h:
        return GiveUp(f"gave up after {attempts} attempts in {waited_h:.1f} h")
    wait_s = min(policy.max_s, policy.first_s * 2.0 ** min(attempts - 1, MAX_DOUBLINGS))
    return RetryAt(now_s + wait_s * (1 + JITTER * (2 * chance - 1)))
