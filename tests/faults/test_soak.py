"""The promises under load and random kills, for some minutes: what `make soak` does for as long as wanted."""

import os
from pathlib import Path

import pytest

from benchmarks.soak import soak

MINUTES = float(os.environ.get("RADNODE_SOAK_MINUTES", "2.5"))


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_random_kills_lose_nothing_double_nothing_and_silence_nothing(tmp_path: Path) -> None:
    report = soak(tmp_path, minutes=MINUTES, seed="ci")
    print(report)
    assert report.is_good, str(report)
    assert report.acknowledged > 100 * MINUTES, str(report)
    assert sum(report.kills.values()) > 5 * MINUTES, str(report)
