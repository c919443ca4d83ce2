"""Kill -9 of the worker at every step of the pipeline: the next worker ends the job with the same bytes, once.

The list of steps comes from the code: a new step is covered by itself.
"""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from node.config import Config
from node.domain.states import JobState
from node.journal import open_database
from node.journal.queries import list_deliveries, list_jobs
from node.pipeline import Step
from tests.faults.setting import copy_of, finish

KILLED_WORKER = """
import os, signal, sys, threading
from pathlib import Path
from node.config import load_config
from node import worker
step_to_die_at = sys.argv[2]
enter = worker.Worker._enter
def enter_and_die(self, job, step, fraction):
    enter(self, job, step, fraction)
    if step == step_to_die_at and fraction == 0.0:
        os.kill(os.getpid(), signal.SIGKILL)
worker.Worker._enter = enter_and_die
if step_to_die_at == "end":
    end = worker.JobJournal.end
    worker.JobJournal.end = lambda *a, **k: (end(*a, **k), os.kill(os.getpid(), signal.SIGKILL))
worker.run_worker(load_config(Path(sys.argv[1])), "cpu", threading.Event())
"""


def frozen(config: Config) -> dict[str, bytes]:
    folder = config.node.state_dir / "results" / "1" / "0"
    return {name: (folder / name).read_bytes() for name in ("seg.dcm", "sr.dcm")}


@pytest.mark.parametrize("step", [*Step, "end"])
def test_a_killed_worker_costs_one_attempt_and_nothing_else(prepared: Path, tmp_path: Path, step: str) -> None:
    config = copy_of(prepared, tmp_path / "node")
    killed = subprocess.run([sys.executable, "-c", KILLED_WORKER, str(tmp_path / "node" / "node.toml"), step], check=False, timeout=120)
    assert killed.returncode == -9
    connection = open_database(config.node.state_dir)
    encoded_before = list_jobs(connection, all=True)[0].encoded_at
    connection.close()
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1 if step == "end" else 2)
    assert encoded_before in {None, job.encoded_at}
    connection = open_database(config.node.state_dir)
    assert sorted(delivery.role for delivery in list_deliveries(connection)) == ["seg", "sr"]
    connection.close()


def test_encoding_twice_gives_the_same_bytes(prepared: Path, tmp_path: Path) -> None:
    """What makes a repeated run harmless: the moment of the first encoding is kept, every UID derives from the job key."""
    config = copy_of(prepared, tmp_path / "once")
    subprocess.run([sys.executable, "-c", KILLED_WORKER, str(tmp_path / "once" / "node.toml"), "end"], check=False, timeout=120)
    first = frozen(config)
    connection = open_database(config.node.state_dir)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("DELETE FROM delivery")
    connection.execute("DELETE FROM evidence")
    connection.execute("UPDATE job SET state = 'IN PROGRESS', owner = ''")  # as if the final commit had been lost
    connection.close()
    finish(config)
    assert frozen(config) == first


def test_a_job_that_kills_every_worker_ends_failed(prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    for _ in range(config.worker.max_attempts):
        subprocess.run([sys.executable, "-c", KILLED_WORKER, str(tmp_path / "node" / "node.toml"), Step.INFER], check=False, timeout=120)
    (job,) = finish(config)
    assert (job.state, job.outcome) == (JobState.CANCELED, "failed")
    assert "died 3 times" in job.reason


def test_a_worker_stops_between_jobs(prepared: Path, tmp_path: Path) -> None:
    from node.worker import run_worker

    config = copy_of(prepared, tmp_path / "node")
    stop = threading.Event()
    stop.set()
    run_worker(config, "cpu", stop)
    assert not list((config.node.state_dir / "run").glob("worker-*.lock"))
