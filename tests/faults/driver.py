"""`python -m tests.faults.driver`: forks a process of the node for every line it reads, breaks it, and answers what came of it.

It runs under the shim with everything imported (torch takes seconds), so that a broken run costs what the run costs. The roles are
the node's own, on a clock that stands wherever the caller puts it.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from node.config import Config, load_config
from node.delivery.outbox import Courier, Destination
from node.dispatcher import run_dispatcher
from node.housekeeper import run_housekeeper
from node.inference import parallel
from node.inference.bundle import load_bundle
from node.intake.contexts import supported_contexts
from node.intake.listener import run_listener
from node.journal import JobEnd, JobJournal, JobRecord, OutboxJournal, open_database
from node.journal.database import BUSY_TIMEOUT_S
from node.locks import die_with_parent
from node.modelstore import find_card
from node.pipeline import context_for, run_offline
from node.worker import Worker, run_worker
from tests.bundles import make_bundle
from tests.factories import make_ct_series
from tests.faults.shim import Arm, Hit, Kind, Mode, arm, disarm

STOP_FILE = "stop"
"""Beside the state: its appearance ends a listener."""

JOB_ENDED = "end"
"""A moment to die at that is no step: the job has ended, nothing else has been done."""

LEAP_S = 400.0
"""How far the clock moves on when a role has nothing to do: beyond every wait between attempts."""


LAST_THREAD_S = BUSY_TIMEOUT_S + 10.0
"""How long a thread of the listener may outlive it: SQLite waits so long for a log that a broken disk does not let it recover."""

SEASON_S = 90 * 86400.0


class Clock:
    """The node's clock, which leaps over waits."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._now_s = time.time
        time.time = self.now_s  # type: ignore[assignment]

    def now_s(self) -> float:
        return self._now_s() + self.ahead_s


class UntilFile(threading.Event):
    """Is set when a file appears."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def is_set(self) -> bool:
        return self._path.exists()

    def wait(self, timeout: float | None = None) -> bool:
        deadline = time.monotonic() + (timeout or 0.0)
        while not self.is_set() and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.is_set()


class Rounds(threading.Event):
    """Lets a role go round a number of times, and its clock leap at each."""

    def __init__(self, rounds: int, clock: Clock, leap_s: float = LEAP_S) -> None:
        super().__init__()
        self._left, self._clock, self._leap_s = rounds, clock, leap_s

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        self._clock.ahead_s += self._leap_s
        if self._left < 0:
            self.set()
        return self.is_set()


def listen(config: Config, clock: Clock, rounds: int) -> None:
    """The listener, until the stop file is there; no descriptor is left behind. In one process: it is this one that is broken."""
    before = _descriptors()
    config = config.model_copy(update={"listener": config.listener.model_copy(update={"processes": 1})})
    run_listener(config, UntilFile(config.node.state_dir.parent / STOP_FILE))
    deadline = time.monotonic() + LAST_THREAD_S
    while (leaked := _descriptors() - before) and time.monotonic() < deadline:
        time.sleep(0.01)  # the last threads of the associations
    assert not leaked, f"descriptors left open: {sorted(leaked)}"


def decide(config: Config, clock: Clock, rounds: int) -> None:
    """The dispatcher."""
    run_dispatcher(config, Rounds(rounds, clock))


def work(config: Config, clock: Clock, rounds: int) -> None:
    """The worker."""
    run_worker(config, "cpu", Rounds(rounds - 1, clock))


def deliver(config: Config, clock: Clock, rounds: int) -> None:
    """The courier of the one destination."""
    with contextlib.closing(open_database(config.node.state_dir)) as connection:
        courier = Courier(OutboxJournal(connection), Destination.of(config, "archive"))
        for _ in range(rounds):
            while courier.deliver_due(time.time()):
                pass
            clock.ahead_s += LEAP_S


def keep_house(config: Config, clock: Clock, rounds: int) -> None:
    """The housekeeper, a season later: everything is old enough to go."""
    run_housekeeper(config, Rounds(rounds, clock, SEASON_S))


Role = Callable[[Config, Clock, int], None]
ROLES: dict[str, Role] = {"listen": listen, "decide": decide, "work": work, "deliver": deliver, "keep house": keep_house}


def _descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            target = str(entry.readlink())
            if "/proc/" not in target:
                found.add(f"{entry.name} {target}")
    return found


def die_at(moment: str) -> None:
    """Kill -9 of this process when its worker enters a step, or right behind the end of a job."""
    enter, end = Worker._enter, JobJournal.end

    def enter_and_die(self: Worker, job: JobRecord, step: str, fraction: float) -> None:
        enter(self, job, step, fraction)
        if step == moment and fraction == 0.0:
            os.kill(os.getpid(), signal.SIGKILL)

    def end_and_die(self: JobJournal, job: JobRecord, how: JobEnd, *, now_s: float) -> bool:
        end(self, job, how, now_s=now_s)
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    Worker._enter = enter_and_die  # type: ignore[method-assign]
    if moment == JOB_ENDED:
        JobJournal.end = end_and_die  # type: ignore[method-assign]


def run_child(request: dict[str, Any], answers: int) -> None:
    """One life of a process of the node: its roles in order, the first fault ends it."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what it says is no answer
    answer: dict[str, Any] = {"error": ""}
    how = request.get("arm")
    clock = Clock()
    clock.ahead_s = request.get("ahead_s", 0.0)
    try:
        config = load_config(Path(request["config"]))
        if how:
            arm(config.node.state_dir, Arm(Kind(how["kinds"]), Mode(how["mode"]), how["error"], how["nth"]))
        if request.get("die_at"):
            die_at(request["die_at"])
        for role in request["roles"]:
            ROLES[role](config, clock, request.get("rounds", 1))
    except BaseException as error:  # noqa: BLE001 - a process of the node dies of it, and its supervisor sees that
        hit = disarm() if how else Hit(0, 0, "")
        answer["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    else:
        hit = disarm() if how else Hit(0, 0, "")
    answer.update(counted=hit.counted, hits=hit.hits, first=hit.first, ahead_s=clock.ahead_s)
    os.write(answers, json.dumps(answer).encode())
    os._exit(1 if answer["error"] else 0)


def prime(folder: Path) -> None:
    """Goes the way of a job once, so that no life pays for imports and tables."""
    torch.set_num_threads(1)
    models = folder / "models"
    bundle = load_bundle(make_bundle(models), find_card(models, "thresholds"), device="cpu", threads=1)
    series = make_ct_series(folder / "ct", slices=6, rows=32, columns=32, spacing_mm=(12.0, 4.0, 4.0), study="primer")
    context = context_for("primer", run=0, encoded_at_s=0.0, ae_title="PRIMER", device_serial_number="1")
    run_offline(series.paths, bundle, context, folder / "out", lambda _step, _fraction: None)
    supported_contexts(reports=True)
    parallel._pool(1).shutdown()
    parallel._pool.cache_clear()
    deadline = time.monotonic() + 5.0
    while (threads := len(list(Path("/proc/self/task").iterdir()))) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that has been joined may still be on its way out
    assert threads == 1, "a process with threads cannot be forked safely"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prime(Path(folder))
    gc.collect()
    gc.freeze()  # else every fork copies what its first collection touches
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        driver, pid = os.getpid(), os.fork()
        if pid == 0:
            die_with_parent(driver)
            os.close(reader)
            run_child(request, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            content = stream.read()
        _, status = os.waitpid(pid, 0)
        answer = json.loads(content) if content else {"error": "", "counted": 0, "hits": 0, "first": "", "ahead_s": 0.0}
        print(json.dumps({**answer, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}), flush=True)


if __name__ == "__main__":
    main()
