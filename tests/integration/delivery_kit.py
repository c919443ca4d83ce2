"""Results of jobs in a journal, a courier that takes them, archives that answer as they are told."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from node.config import Config
from node.delivery.outbox import Confirmer, Courier, Destination, run_courier
from node.delivery.query import STUDY_ROOT_FIND
from node.delivery.store_scu import read_part10
from node.delivery.upper_layer import Peer, Timeouts
from node.domain.commitment import Confirm, ConfirmationPolicy
from node.domain.delivery import RetryPolicy
from node.domain.states import DeliveryState, JobState, Outcome, Priority
from node.journal import (
    CommitmentJournal,
    DeliveryRecord,
    EvidenceRecord,
    JobEnd,
    JobJournal,
    NewJob,
    OutboxJournal,
    ReceivedInstance,
    ReceivedJournal,
    open_database,
    transaction,
)
from node.journal.queries import list_deliveries
from node.network import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from tests.peers import HOST

CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
QUICK: Final = Timeouts(connect_s=2, answer_s=3)
IMPATIENT: Final = {"first_s": 0.2, "max_s": 0.4, "give_up_h": 1.0}


def queue(
    state_dir: Path, paths: Sequence[Path], destinations: Sequence[str], *, key: str = "key", priority: Priority = Priority.MEDIUM
) -> None:
    """Puts files into the journal as the results of a job on their study: the first is its SEG, the others are SRs."""
    state_dir.mkdir(parents=True, exist_ok=True)
    connection = open_database(state_dir)
    study = str(dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID)
    source = ReceivedInstance(f"{study}.1", "1.2.3", study, CT_IMAGE_STORAGE, "1.2.840.10008.1.2.1", "a" * 64, 9, "PACS")
    ReceivedJournal(connection).record_instance(source, association="a", now_s=1)
    jobs = JobJournal(connection)
    new = NewJob(key, study, "1.2.3", "route", "model", "d", {source.sop_instance_uid: "a" * 64}, tuple(destinations), priority)
    with transaction(connection):
        jobs.open_job(new, last_instance_s=1, now_s=2)
    job = jobs.claim("worker", now_s=3)
    assert job is not None
    evidence = []
    for number, path in enumerate(paths):
        file = read_part10(path)
        series = str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
        evidence.append(
            EvidenceRecord(file.sop_instance_uid, "sr" if number else "seg", file.sop_class_uid, series, path, "s", path.stat().st_size)
        )
    assert jobs.end(job, JobEnd(JobState.COMPLETED, Outcome.FOUND, "", tuple(evidence), {}), now_s=4)
    connection.close()


def deliveries(state_dir: Path) -> tuple[DeliveryRecord, ...]:
    connection = open_database(state_dir)
    try:
        return list_deliveries(connection, all=True)
    finally:
        connection.close()


def states(state_dir: Path, destination: str) -> set[str]:
    return {str(one.state) for one in deliveries(state_dir) if one.destination == destination}


def peer(port: int, title: str = "ARCHIVE", **retry: float) -> dict[str, Any]:
    return {"ae_title": title, "host": HOST, "port": port, "retry": {**IMPATIENT, **retry}}


@contextmanager
def delivering(config: Config) -> Iterator[None]:
    """Runs the courier while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=run_courier, args=(config, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(6)
        assert not thread.is_alive(), "the courier does not stop"


@contextmanager
def scripted_archive(answer: Callable[[str], int]) -> Iterator[int]:
    """An SCP that answers by SOP Instance UID, and offers storage only; gives its port."""
    with archive(Archive(on_store=answer)) as port:
        yield port


Reports = Callable[[Sequence[str]], dict[str, int] | None]
"""Asked about SOP Instance UIDs: the Failure Reasons of those that are not committed; None for no report at all."""


@dataclass
class Archive:
    """What a scripted archive does, and what it saw."""

    on_store: Callable[[str], int] = lambda _uid: 0
    reports: Reports | None = None
    """None where it does not offer storage commitment."""
    action_status: int = 0
    offers_query: bool = False
    held: Callable[[str], bool] | None = None
    """Whether a query finds an object; by default those that were stored."""
    find_status: int = 0
    stored: list[str] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    """Of each request for commitment."""
    queried: list[str] = field(default_factory=list)
    associations: int = 0
    answers_to_reports: list[int] = field(default_factory=list)

    def handlers(self) -> list[tuple[Any, Any]]:
        return [
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_C_FIND, self._on_find),
        ]

    def _on_accepted(self, _event: Any) -> None:
        self.associations += 1

    def _on_store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.priorities.append(event.request.Priority)
        status = self.on_store(uid)
        if status == 0:
            self.stored.append(uid)
        return status

    def _on_action(self, event: Any) -> tuple[int, None]:
        assert event.action_type == 1
        request = event.action_information
        references = [(str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in request.ReferencedSOPSequence]
        self.asked.append([uid for _, uid in references])
        assert self.reports is not None
        failures = self.reports(self.asked[-1])
        if self.action_status == 0 and failures is not None:
            report = commitment_report(str(request.TransactionUID), references, failures)
            threading.Timer(0.05, self._send_report, (event.assoc, report)).start()
        return self.action_status, None

    def _send_report(self, association: Any, report: Dataset) -> None:
        event_type = 2 if "FailedSOPSequence" in report else 1
        try:
            status, _ = association.send_n_event_report(report, event_type, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        except RuntimeError:
            return  # the association is over meanwhile: no report
        self.answers_to_reports.append(status.get("Status", -1))

    def _on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        uid = str(event.identifier.SOPInstanceUID)
        assert event.identifier.QueryRetrieveLevel == "IMAGE"
        self.queried.append(uid)
        if self.find_status:
            yield self.find_status, None
        elif self.held(uid) if self.held else uid in self.stored:
            yield 0xFF00, event.identifier


def commitment_report(transaction_uid: str, references: Sequence[tuple[str, str]], failures: dict[str, int]) -> Dataset:
    report = Dataset()
    report.TransactionUID = transaction_uid
    committed, failed = [], []
    for sop_class, sop_instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        if sop_instance in failures:
            item.FailureReason = failures[sop_instance]
            failed.append(item)
        else:
            committed.append(item)
    report.ReferencedSOPSequence = committed
    if failed:
        report.FailedSOPSequence = failed
    return report


@contextmanager
def archive(script: Archive, port: int = 0) -> Iterator[int]:
    """Runs a pynetdicom SCP by a script; gives its port."""
    entity = AE("ARCHIVE")
    entity.add_supported_context(CT_IMAGE_STORAGE)
    if script.reports is not None:
        entity.add_supported_context(STORAGE_COMMITMENT)
    if script.offers_query:
        entity.add_supported_context(STUDY_ROOT_FIND)
    server = entity.start_server((HOST, port), block=False, evt_handlers=script.handlers())
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


class Desk:
    """Courier and confirmer of one destination, on a clock that stands until it is moved."""

    def __init__(self, connection: sqlite3.Connection, destination: Destination) -> None:
        self.now_s = 1_000_000.0
        self.connection = connection
        self.destination = destination
        self.outbox = OutboxJournal(self.connection)
        self.commitments = CommitmentJournal(self.connection)
        self.courier = Courier(self.outbox, self.destination, clock=self.clock, chance=lambda: 0.5)
        self.confirmer = Confirmer(self.commitments, self.outbox, self.destination, clock=self.clock)

    def clock(self) -> float:
        return self.now_s

    def send(self) -> int:
        """Sends all that is due; answers how many attempts that were."""
        return sum(iter(lambda: self.courier.deliver_due(self.now_s), 0))

    def confirm(self) -> int:
        """Asks about all that is due; answers about how many."""
        return sum(iter(lambda: self.confirmer.confirm_due(self.now_s), 0))

    def leap(self) -> float:
        """Moves the clock to the next moment at which there is something to do; answers the seconds."""
        moments = [one.next_attempt_at for one in self.all() if one.state is DeliveryState.PENDING]
        moments += [one.confirm_at for one in self.all() if one.confirm_at is not None]
        outage = self.outbox.outage(self.destination.name)
        earliest = max(min(moments), outage.next_attempt_s if outage else 0.0)
        leapt_s = max(0.0, earliest - self.now_s)
        self.now_s += leapt_s
        return leapt_s

    def all(self) -> tuple[DeliveryRecord, ...]:
        return list_deliveries(self.connection, all=True)

    def one(self) -> DeliveryRecord:
        (only,) = self.all()
        return only

    def run(self, until: Callable[[], bool], rounds: int = 1000) -> None:
        """Sends and confirms, from moment to moment, until a condition holds."""
        for _ in range(rounds):
            self.send()
            self.confirm()
            if until():
                return
            self.leap()
        raise AssertionError(f"not after {rounds} rounds: {self.all()}")


@contextmanager
def desk(
    state_dir: Path, port: int, confirm: Confirm = Confirm.AUTO, policy: RetryPolicy | None = None, *, name: str = "archive"
) -> Iterator[Desk]:
    """A desk for a destination, whose AE title is its name; its journal is closed afterwards."""
    retry = policy or RetryPolicy()
    confirmation = ConfirmationPolicy(report_wait_s=0.3, give_up_h=retry.give_up_h)
    destination = Destination(name, Peer(HOST, port, name.upper(), "RADNODE"), retry, QUICK, confirm, confirmation)
    with closing(open_database(state_dir)) as connection:
        yield Desk(connection, destination)
