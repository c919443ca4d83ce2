"""A worker that lives and does nothing: it is killed, its job goes to the next one at once, with the reason."""

import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from node.app import Child, WorkerWatch
from node.config import Config
from node.dispatcher import worker_lock
from node.domain.states import JobState
from node.journal import JobJournal, open_database
from node.journal.queries import list_jobs
from tests.faults.setting import copy_of, finish
from tests.peers import wait_until

HANGING_WORKER = """
import os, sys, time
from pathlib import Path
from node.dispatcher import worker_lock
from node.journal import JobJournal, open_database
from node.locks import Heart, HeldLock
state_dir = Path(sys.argv[1])
name = f"worker-cpu-{os.getpid()}-1"
heart = Heart(HeldLock(worker_lock(state_dir, name)))
with heart.busy():
    print(JobJournal(open_database(state_dir)).claim(name, now_s=time.time()).job_id, name, flush=True)
    time.sleep(600)
"""


def hang(config: Config) -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen([sys.executable, "-c", HANGING_WORKER, str(config.node.state_dir)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        return process, stdout.readline().decode().split()[1]


def watch_over(config: Config, **limits: float) -> WorkerWatch:
    return WorkerWatch(config.model_copy(update={"worker": config.worker.model_copy(update=limits)}))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "hanging"])
def test_a_worker_that_hangs_is_killed_and_its_job_is_done_by_the_next(prepared: Path, tmp_path: Path, frozen: bool) -> None:
    config = copy_of(prepared, tmp_path / "node")
    process, name = hang(config)
    if frozen:
        process.send_signal(signal.SIGSTOP)
    watch = watch_over(config, **({"heartbeat_timeout_s": 3.0} if frozen else {"attempt_timeout_s": 3.0}))
    child = Child(("worker", "cpu"), process)
    watch.tend([child], time.monotonic())
    assert process.poll() is None, "it has time yet"
    with closing(open_database(config.node.state_dir)) as connection:
        assert JobJournal(connection).claim("another", now_s=time.time()) is None

    def is_dead() -> bool:
        watch.tend([child], time.monotonic())
        return process.poll() is not None

    wait_until(is_dead, "the end of the worker")
    assert process.returncode == -signal.SIGKILL
    with closing(open_database(config.node.state_dir)) as connection:
        (job,) = list_jobs(connection)
        assert (job.owner, job.attempt) == ("", 1)
        assert ("no sign of life" if frozen else "longer than 3 s") in job.reason
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 2)
    worker_lock(config.node.state_dir, name).unlink()


def test_a_study_on_which_every_worker_hangs_is_quarantined_with_the_reason(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    for _ in range(config.worker.max_attempts):
        process, _ = hang(config)
        watch = watch_over(config, attempt_timeout_s=0.001)
        watch.tend([Child(("worker", "cpu"), process)], time.monotonic() + 1)
        assert process.wait(10) == -signal.SIGKILL
    (job,) = finish(config)
    assert (job.state, job.outcome) == (JobState.CANCELED, "failed")
    assert "died 3 times on this study; the last time: the attempt took longer than" in job.reason
