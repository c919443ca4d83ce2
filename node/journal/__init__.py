"""The node's only memory: a SQLite file of studies, series, jobs and deliveries, and the verbs on it."""

from node.journal.commitments import CommitmentJournal
from node.journal.database import JournalUnusable, journal_path, open_database, transaction
from node.journal.jobs import JobEnd, JobJournal, NewJob
from node.journal.outbox import OutboxJournal
from node.journal.received import ReceivedJournal
from node.journal.records import (
    DeliveryRecord,
    EvidenceRecord,
    InstanceRecord,
    JobRecord,
    ReceivedInstance,
    Reception,
    Recorded,
    SeriesRecord,
    StudyRecord,
    TransitionRecord,
)

__all__ = [
    "CommitmentJournal",
    "DeliveryRecord",
    "EvidenceRecord",
    "InstanceRecord",
    "JobEnd",
    "JobJournal",
    "JobRecord",
    "JournalUnusable",
    "NewJob",
    "OutboxJournal",
    "ReceivedInstance",
    "ReceivedJournal",
    "Reception",
    "Recorded",
    "SeriesRecord",
    "StudyRecord",
    "TransitionRecord",
    "journal_path",
    "open_database",
    "transaction",
]
