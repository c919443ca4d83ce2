"""Kill -9 of the worker at every step of the pipeline: the next worker ends the job with the same bytes, once.

The list of steps comes from the code: a new step is covered by itself.
"""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from node.config import Config, load_config
from node.dispatcher import Dispatcher, Rules
from node.domain.completeness import CompletenessPolicy
from node.domain.states import JobState
from node.intake.reception import Intake, StoreRequest
from node.intake.spool import FileIdentity, Spool
from node.journal import JobRecord, open_database
from node.journal.queries import list_deliveries, list_jobs
from node.modelstore import load_cards
from node.pipeline import Step
from node.worker import Worker
from tests.acceptance.harness import CONFIG
from tests.bundles import make_bundle
from tests.factories import make_ct_series

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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder with one scheduled job in its journal."""
    folder = tmp_path_factory.mktemp("prepared")
    make_bundle(folder / "models")
    series = make_ct_series(folder / "ct")
    (folder / "node.toml").write_text(
        CONFIG.format(models_dir="models", model="thresholds", quiet_s=0.0, archive_ae_title="ARCHIVE", archive_port=104)
    )
    state_dir = folder / "state"
    spool = Spool(state_dir / "spool")
    state_dir.mkdir()
    spool.prepare()
    intake = Intake(state_dir, spool)
    for uid, path in zip(series.sop_instance_uids, series.paths, strict=True):
        receive(intake, spool, uid, path)
    intake.close_connection()
    connection = open_database(state_dir)
    config = load_config(folder / "node.toml")
    rules = Rules(tuple(r.as_route() for r in config.routes), load_cards(folder / "models"), CompletenessPolicy(0.0, 60.0))
    connection.execute("DELETE FROM open_association")
    Dispatcher(connection, state_dir, rules).tick(time.time())
    assert [job.state for job in list_jobs(connection)] == [JobState.SCHEDULED]
    connection.close()
    return folder


def receive(intake: Intake, spool: Spool, uid: str, path: Path) -> None:
    from pydicom import dcmread

    dataset = dcmread(path)
    meta = dataset.file_meta
    incoming = spool.open_incoming(FileIdentity(str(dataset.SOPClassUID), uid, str(meta.TransferSyntaxUID)))
    content = path.read_bytes()
    incoming.write(content[132 + 12 + int(meta.FileMetaInformationGroupLength) :])
    intake.accept(incoming, StoreRequest(str(dataset.SOPClassUID), uid, str(meta.TransferSyntaxUID), "ARCHIVE", "association"))


def copy_of(prepared: Path, folder: Path) -> Config:
    shutil.copytree(prepared, folder)
    return load_config(folder / "node.toml")


def finish(config: Config) -> JobRecord:
    """Runs a worker until nothing waits; answers the one job."""
    worker = Worker(config, "cpu", "finisher")
    while worker.work_once():
        pass
    connection = open_database(config.node.state_dir)
    (job,) = list_jobs(connection, all=True)
    connection.close()
    return job


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
    job = finish(config)
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
    job = finish(config)
    assert (job.state, job.outcome) == (JobState.CANCELED, "failed")
    assert "died 3 times" in job.reason


def test_a_worker_stops_between_jobs(prepared: Path, tmp_path: Path) -> None:
    from node.worker import run_worker

    config = copy_of(prepared, tmp_path / "node")
    stop = threading.Event()
    stop.set()
    run_worker(config, "cpu", stop)
    assert not list((config.node.state_dir / "run").glob("worker-*.lock"))
