"""SQLite's anomaly loop over a whole node: the n-th system call fails, n = 1, 2, … until a run passes unfailed; then P1 to P4 hold.

Every role of the node runs in a process of its own, on a prepared state, with the disk or the network broken under it by a
preloaded library (shim.c): once, or from then on, or the process is killed there. While the fault lasts, nothing may be
acknowledged that is not kept. Afterwards a node is started that meets no fault, the sender sends what was not acknowledged, and
the end must be that of a run that met no fault: one result, delivered once, nothing left over.

`RADNODE_FAULTS=all` tries every n; without it a sample of them is tried.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest

from tests.faults.anomalies import LIVES, Life, Workshop, workshop
from tests.faults.shim import Arm, Kind, Mode, build

TRY_ALL = os.environ.get("RADNODE_FAULTS") == "all"
SAMPLES = 2
NEVER = 1 << 40

ONCE, ON, SHORT = Mode.FAIL_ONCE, Mode.FAIL_ON, Mode.SHORT
DISK = [Arm(Kind.DISK, mode, number) for mode in (ONCE, ON) for number in (errno.ENOSPC, errno.EIO)] + [Arm(Kind.WRITE, SHORT)]
NETWORK = [Arm(Kind.NETWORK, mode, number) for mode in (ONCE, ON) for number in (errno.ECONNRESET, errno.EPIPE)] + [Arm(Kind.SEND, SHORT)]
CONNECT = [Arm(Kind.CONNECT, mode, number) for mode in (ONCE, ON) for number in (errno.ECONNREFUSED, errno.ETIMEDOUT)]
KILLS = [Arm(Kind.DISK | Kind.NETWORK, Mode.KILL_BEFORE), Arm(Kind.DISK | Kind.NETWORK, Mode.KILL_AFTER)]
QUOTA = [Arm(Kind.DISK, ONCE, errno.EDQUOT)]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the way of a study: from which state, which role goes it, how many instances are sent meanwhile."""

    name: str
    snapshot: str
    role: str
    received: int = 6
    """How many of the instances the state has already."""


FIRST_START = Phase("first start", "new", "listen", received=0)
INTAKE = Phase("intake", "half", "listen", received=3)
DECIDE = Phase("decide", "received", "decide")
WORK = Phase("work", "decided", "work")
DELIVER = Phase("deliver", "worked", "deliver")
KEEP_HOUSE = Phase("keep house", "worked", "keep house")
"""A season later, with the results still undelivered: nothing of them may be removed, whatever fails on the way."""

CASES = [
    *((FIRST_START, replace(arm, kinds=arm.kinds & ~Kind.MKDIR)) for arm in DISK + KILLS),  # 256 folders, one like the other
    *((INTAKE, arm) for arm in DISK + QUOTA + NETWORK + KILLS),
    *((DECIDE, arm) for arm in DISK + KILLS),
    *((WORK, arm) for arm in DISK + KILLS),
    *((DELIVER, arm) for arm in DISK + NETWORK + CONNECT + KILLS),
    *((KEEP_HOUSE, arm) for arm in DISK + KILLS),
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("anomalies")
    with workshop(folder, build(folder)) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1800 if TRY_ALL else 300)
@pytest.mark.parametrize(("phase", "arm"), CASES, ids=[f"{phase.name}: {arm}" for phase, arm in CASES])
def test_wherever_a_call_fails_the_promises_hold(shop: Workshop, phase: Phase, arm: Arm) -> None:
    tried: Counter[str] = Counter()
    for nth in places(shop, phase, arm):
        try:
            life = go(shop, phase, replace(arm, nth=nth))
        except AssertionError as error:
            raise AssertionError(f"{phase.name}, {arm} at call {nth}: {error}") from error
        if not life.hits and not life.signal:
            break
        tried[life.first.partition(" ")[0]] += 1
    print(f"{phase.name}: {arm}: {tried.total()} places {dict(tried)}")
    assert tried, "no call was broken"


@cache
def calls_of(shop: Workshop, phase: Phase, kinds: Kind) -> int:
    """Answers how many calls a run makes that meets no fault."""
    return go(shop, phase, Arm(kinds, ONCE, nth=NEVER)).counted


def places(shop: Workshop, phase: Phase, arm: Arm) -> Iterator[int]:
    """Which calls to break: each until one run passes; or some, spread over as many as a run without faults makes."""
    if TRY_ALL:
        yield from range(1, 10_000)
        return
    calls = calls_of(shop, phase, arm.kinds)
    step = calls / SAMPLES
    shift = step * (CASES.index((phase, arm)) * 0.38 % 1.0)
    yield from sorted({1 + int(shift + step * number) for number in range(SAMPLES)})


def go(shop: Workshop, phase: Phase, arm: Arm) -> Life:
    """A broken life, further ones while the role dies of it; then a node without faults, and the promises. Answers the first life."""
    shop.restore(phase.snapshot)
    acknowledged = {file.sop_instance_uid for file in shop.files[: phase.received]}
    first = live(shop, phase, arm, acknowledged)
    life, lives = first, 1
    while not life.ended_well and lives < LIVES:
        life = live(shop, phase, replace(arm, nth=1 if arm.mode is ON else NEVER), acknowledged)
        lives += 1
    shop.recover(acknowledged, *(["keep house"] if phase is KEEP_HOUSE else []))  # which sweeps what it left
    shop.check_promises()
    return first


def live(shop: Workshop, phase: Phase, arm: Arm, acknowledged: set[str]) -> Life:
    """One life of the role; what it acknowledges is added, and must be kept."""
    if phase.role != "listen":
        life = shop.live(phase.role, arm=arm)
    else:
        life, more = shop.receive([file for file in shop.files if file.sop_instance_uid not in acknowledged][:3], arm)
        acknowledged |= more
    shop.check_kept(acknowledged)
    assert "AssertionError" not in life.error, life.error
    return life
