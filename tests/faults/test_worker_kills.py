"""Kill -9 of the worker at every step of the pipeline: the next worker ends the job with the same bytes, once.

The list of steps comes from the code: a new step is covered by itself.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node.config import Config
from node.domain.states import JobState
from node.journal import open_database
from node.journal.queries import list_deliveries, list_jobs
from node.pipeline import Step
from tests.faults.anomalies import Driver
from tests.faults.driver import JOB_ENDED
from tests.faults.setting import copy_of, finish


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with closing(Driver(tmp_path_factory.mktemp("driver") / "driver.log")) as found:
        yield found


def killed_worker(driver: Driver, config: Path, moment: str) -> None:
    driver.begin(config=str(config), roles=["work"], die_at=moment)
    assert driver.end().signal == signal.SIGKILL


def frozen(config: Config) -> dict[str, bytes]:
    folder = config.node.state_dir / "results" / "1" / "0"
    return {name: (folder / name).read_bytes() for name in ("seg.dcm", "sr.dcm")}


@pytest.mark.parametrize("step", [*Step, JOB_ENDED])
def test_a_killed_worker_costs_one_attempt_and_nothing_else(driver: Driver, prepared: Path, tmp_path: Path, step: str) -> None:
    config = copy_of(prepared, tmp_path / "node")
    killed_worker(driver, tmp_path / "node" / "node.toml", step)
    connection = open_database(config.node.state_dir)
    encoded_before = list_jobs(connection, all=True)[0].encoded_at
    connection.close()
    (job,) = finish(config)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 1 if step == JOB_ENDED else 2)
    assert encoded_before in {None, job.encoded_at}
    connection = open_database(config.node.state_dir)
    assert sorted(delivery.role for delivery in list_deliveries(connection)) == ["seg", "sr"]
    connection.close()


def test_encoding_twice_gives_the_same_bytes(driver: Driver, prepared: Path, tmp_path: Path) -> None:
    """What makes a repeated run harmless: the moment of the first encoding is kept, every UID derives from the job key."""
    config = copy_of(prepared, tmp_path / "once")
    killed_worker(driver, tmp_path / "once" / "node.toml", JOB_ENDED)
    first = frozen(config)
    connection = open_database(config.node.state_dir)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("DELETE FROM delivery")
    connection.execute("DELETE FROM evidence")
    connection.execute("UPDATE job SET state = 'IN PROGRESS', owner = ''")  # as if the final commit had been lost
    connection.close()
    finish(config)
    assert frozen(config) == first


def test_a_job_that_kills_every_worker_ends_failed(driver: Driver, prepared: Path, tmp_path: Path) -> None:
    config = copy_of(prepared, tmp_path / "node")
    for _ in range(config.worker.max_attempts):
        killed_worker(driver, tmp_path / "node" / "node.toml", Step.INFER)
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
