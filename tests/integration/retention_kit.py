"""A state directory with studies in any standing, made by the node's own verbs, without a network or a model."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from node.config import Config
from node.delivery.store_scu import read_part10
from node.dispatcher import Dispatcher, Rules
from node.domain.completeness import CompletenessPolicy
from node.domain.states import JobState, Outcome, SeriesState
from node.files import write_durably
from node.housekeeper import Housekeeper
from node.intake.incoming import FileIdentity
from node.intake.reception import Intake
from node.intake.spool import Spool, spooled_path
from node.intake.uids import StoreRequest
from node.journal import EvidenceRecord, JobEnd, JobJournal, NewJob, ReceivedJournal, open_database, transaction
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import data_set_of

HOUR_S = 3600.0


class Place:
    """A state directory under a test's hands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True)
        self.spool = Spool(self.state_dir / "spool")
        self.spool.prepare()

    def config(self, **sections: dict[str, Any]) -> Config:
        """A configuration that purges by age alone and makes no backup, unless `sections` say otherwise."""
        table = {
            "node": {"ae_title": "RADNODE", "state_dir": str(self.state_dir), "models_dir": str(self.folder)},
            "retention": {"purge_below_free_gib": 0.0, **sections.get("retention", {})},
            "backup": {"every_h": 0.0, **sections.get("backup", {})},
            "listener": {"refuse_below_free_gib": 0.0, **sections.get("listener", {})},
        }
        return Config.model_validate(table, context={"folder": self.folder})

    @contextmanager
    def journal(self) -> Iterator[sqlite3.Connection]:
        with closing(open_database(self.state_dir)) as connection:
            yield connection

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self.journal() as connection:
            return [tuple(row) for row in connection.execute(query, values)]

    def series(self, name: str, slices: int = 3) -> SyntheticSeries:
        made = make_ct_series(self.folder / name, slices=max(slices, 4), rows=8, columns=8, study=name, series=name)
        return replace(made, paths=made.paths[:slices])

    def send(self, *paths: Path, now_s: float | None = None) -> None:
        """Takes instances as the listener does; `now_s` is when, by the journal."""
        intake = Intake(self.state_dir, self.spool)
        intake.start()
        for path in paths:
            file = read_part10(path)
            incoming = self.spool.open_incoming(FileIdentity(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "PACS"))
            incoming.write(data_set_of(path))
            intake.accept(incoming, StoreRequest(file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid, "PACS", "a1"))()
        intake.end_association("a1")
        intake.stop()
        if now_s is not None:
            with self.journal() as connection, transaction(connection):
                connection.execute("UPDATE instance SET received_at = ? WHERE received_at > ?", (now_s, now_s))
                connection.execute("UPDATE study SET last_instance_at = ?, opened_at = ? WHERE state = 'RECEIVING'", (now_s, now_s))

    def decide(self, now_s: float) -> None:
        """The dispatcher without routes: it declines everything."""
        with self.journal() as connection:
            Dispatcher(connection, self.state_dir, Rules((), {}, CompletenessPolicy(0.0, 1e9))).tick(now_s)

    def declined(self, name: str, now_s: float = 0.0, slices: int = 3) -> SyntheticSeries:
        """A study that no route wanted."""
        made = self.series(name, slices)
        self.send(*made.paths, now_s=now_s)
        self.decide(now_s)
        return made

    def analysed(self, name: str, now_s: float = 0.0, outcome: Outcome = Outcome.FOUND) -> SyntheticSeries:
        """A study with one job that has ended at `now_s`, its results not delivered yet."""
        made = self.series(name)
        self.send(*made.paths, now_s=now_s)
        with self.journal() as connection:
            received, jobs = ReceivedJournal(connection), JobJournal(connection)
            (study,) = received.gathering_studies()
            instances = received.instances_of_study(study.study_instance_uid)
            uid = instances[0].series_instance_uid
            new = NewJob(
                job_key=name,
                study_instance_uid=study.study_instance_uid,
                series_instance_uid=uid,
                route="r",
                model="m",
                model_digest="d",
                inputs={one.sop_instance_uid: one.sha256 for one in instances},
                destinations=("pacs",),
            )
            with transaction(connection):
                received.end_series({uid: (SeriesState.SELECTED, "")}, now_s=now_s)
                received.mark_decided(study, now_s=now_s, reason="quiet")
                jobs.open_job(new, last_instance_s=now_s, now_s=now_s)
            job = jobs.claim("w", now_s=now_s)
            assert job is not None
            evidence = tuple(self._evidence(job.job_id, name, role) for role in ("seg", "sr"))
            state = JobState.CANCELED if outcome in {Outcome.FAILED, Outcome.NOT_ATTEMPTED} else JobState.COMPLETED
            assert jobs.end(job, JobEnd(state, outcome, "", evidence, {}), now_s=now_s)
        return made

    def _evidence(self, job_id: int, name: str, role: str) -> EvidenceRecord:
        path = self.state_dir / "results" / str(job_id) / "0" / f"{role}.dcm"
        content = f"{name} {role}".encode()
        write_durably(path, content)
        return EvidenceRecord(
            f"9.{job_id}.{len(role)}", role, "66.4", f"9.{job_id}", path, hashlib.sha256(content).hexdigest(), len(content)
        )

    def deliver(self, state: str = "COMMITTED", confirmation: str = "GIVEN", now_s: float = 0.0) -> None:
        """Puts all deliveries that are pending into a state."""
        with self.journal() as connection:
            connection.execute(
                "UPDATE delivery SET state = ?, confirmation = ?, stored_at = ? WHERE state = 'PENDING'", (state, confirmation, now_s)
            )
            connection.execute("UPDATE transition SET at = ? WHERE at > ?", (now_s, now_s))

    def keep_house(self, now_s: float, **sections: dict[str, Any]) -> None:
        """One pass of a housekeeper that has just started, over every folder."""
        with self.journal() as connection:
            housekeeper = Housekeeper(self.config(**sections), connection)
            housekeeper.begin()
            housekeeper.pass_once(now_s)

    def files_of(self, series: SyntheticSeries) -> list[Path]:
        """Where the images of a series lie, those that do."""
        paths = [spooled_path(self.state_dir, digest_of(path)) for path in series.paths]
        return [path for path in paths if path.exists()]

    def require_every_row_has_its_file(self) -> None:
        """The invariant of retention."""
        for (sha256,) in self.rows("SELECT sha256 FROM instance WHERE purged_at IS NULL"):
            assert spooled_path(self.state_dir, sha256).exists(), f"{sha256} is recorded as here, and gone"


def digest_of(path: Path) -> str:
    """The digest of the data set of a file."""
    return hashlib.sha256(data_set_of(path)).hexdigest()
