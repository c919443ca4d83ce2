"""A node's folder with one scheduled job, made without a network; and a worker that finishes what waits."""

import shutil
import time
from pathlib import Path
from typing import Any

from pydicom import dcmread

from node.config import Config, load_config
from node.dispatcher import Dispatcher, Rules
from node.domain.completeness import CompletenessPolicy
from node.intake.incoming import FileIdentity
from node.intake.reception import Intake
from node.intake.spool import Spool
from node.intake.uids import StoreRequest
from node.journal import JobRecord, open_database
from node.journal.queries import list_jobs
from node.modelstore import load_cards
from node.worker import Worker
from tests.acceptance.harness import CONFIG
from tests.bundles import make_bundle
from tests.factories import SyntheticSeries, make_ct_series


def prepare(folder: Path, **options: Any) -> None:
    """Writes the model, the configuration, and a received study that has been decided on."""
    make_bundle(folder / "models")
    (folder / "node.toml").write_text(
        CONFIG.format(models_dir="models", model="thresholds", quiet_s=0.0, archive_ae_title="ARCHIVE", archive_port=104)
    )
    (folder / "state").mkdir()
    add_study(folder, make_ct_series(folder / "ct", **options))


def add_study(folder: Path, *several: SyntheticSeries) -> None:
    """Receives the series of a study and lets the dispatcher decide."""
    state_dir = folder / "state"
    spool = Spool(state_dir / "spool")
    spool.prepare()
    intake = Intake(state_dir, spool)
    intake.start()
    for series in several:
        for uid, path in zip(series.sop_instance_uids, series.paths, strict=True):
            receive(intake, spool, uid, path)
    intake.stop()
    connection = open_database(state_dir)
    config = load_config(folder / "node.toml")
    rules = Rules(tuple(r.as_route() for r in config.routes), load_cards(folder / "models"), CompletenessPolicy(0.0, 60.0))
    connection.execute("DELETE FROM open_association")
    Dispatcher(connection, state_dir, rules).tick(time.time())
    connection.close()


def receive(intake: Intake, spool: Spool, uid: str, path: Path) -> None:
    """Puts the data set of a file through the intake."""
    dataset = dcmread(path)
    sop_class_uid = str(dataset.file_meta.MediaStorageSOPClassUID)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    incoming = spool.open_incoming(FileIdentity(sop_class_uid, uid, syntax))
    content = path.read_bytes()
    incoming.write(content[132 + 12 + int(dataset.file_meta.FileMetaInformationGroupLength) :])
    intake.accept(incoming, StoreRequest(sop_class_uid, uid, syntax, "ARCHIVE", "association"))()


def copy_of(prepared: Path, folder: Path) -> Config:
    """A copy of a prepared folder, to break."""
    shutil.copytree(prepared, folder)
    return load_config(folder / "node.toml")


def finish(config: Config) -> tuple[JobRecord, ...]:
    """Runs a worker until nothing waits; answers all jobs."""
    worker = Worker(config, "cpu", "finisher")
    while worker.work_once():
        pass
    return jobs(config)


def jobs(config: Config) -> tuple[JobRecord, ...]:
    """All jobs of a node."""
    connection = open_database(config.node.state_dir)
    try:
        return list_jobs(connection, all=True)
    finally:
        connection.close()
