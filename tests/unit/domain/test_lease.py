"""A worker that lives and does nothing is told from one that works."""

import pytest

from node.domain.lease import LeasePolicy, Pulse, judge_pulse

POLICY = LeasePolicy(heartbeat_timeout_s=60.0, attempt_timeout_s=600.0)


@pytest.mark.parametrize(
    ("pulse", "told"),
    [
        (Pulse(beat_s=1000.0), ""),
        (Pulse(beat_s=940.0), ""),
        (Pulse(beat_s=939.0), "no sign of life for 61 s"),
        (Pulse(beat_s=999.0, busy_since_s=400.0), ""),
        (Pulse(beat_s=999.0, busy_since_s=399.0), "longer than 600 s"),
        (Pulse(beat_s=100.0, busy_since_s=100.0), "no sign of life for 900 s"),
    ],
)
def test_silence_and_overlong_work_cost_the_lease(pulse: Pulse, told: str) -> None:
    reason = judge_pulse(pulse, now_s=1000.0, policy=POLICY)
    assert told in reason if told else not reason
