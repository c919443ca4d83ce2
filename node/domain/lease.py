"""Whether a worker still does what it holds: judged by its pulse. Pure; all times are of the machine's monotonic clock.

A worker that dies frees its lock at once, and needs no judgement. This is for one that lives and does nothing: a GPU that hangs,
a native library that waits for ever, a process that was frozen.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pulse:
    """The last sign of life of a worker."""

    beat_s: float
    busy_since_s: float | None = None
    """When it began what it does now; None while it waits for work."""


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """How long a worker may be silent, and how long it may take over one attempt."""

    heartbeat_timeout_s: float = 60.0
    attempt_timeout_s: float = 3600.0


def judge_pulse(pulse: Pulse, *, now_s: float, policy: LeasePolicy) -> str:
    """Answers why a worker has lost what it holds, '' while it has not."""
    silent_s = now_s - pulse.beat_s
    if silent_s > policy.heartbeat_timeout_s:
        return f"the worker gave no sign of life for {silent_s:.0f} s and was killed"
    if pulse.busy_since_s is not None and now_s - pulse.busy_since_s > policy.attempt_timeout_s:
        return f"the attempt took longer than {policy.attempt_timeout_s:.0f} s (worker.attempt_timeout_s) and was killed"
    return ""
