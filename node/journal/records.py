"""Rows of the journal as values."""

import sqlite3
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from node.domain.delivery import archived_as
from node.domain.states import Confirmation, DeliveryState, JobState, Priority, SeriesState, StudyState


class Recorded(Enum):
    """What `record_instance` found."""

    NEW = "new"
    IDENTICAL = "the same bytes were here before"
    CHANGED = "other bytes under the same SOP Instance UID: kept beside the first"


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """An instance that lies durable in the spool and is to be recorded."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int
    calling_ae_title: str


class Reception(NamedTuple):
    """An instance, the association that brought it, and when it was safe."""

    received: ReceivedInstance
    association: str
    now_s: float


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as the dispatcher sees it."""

    study_instance_uid: str
    state: StudyState
    revision: int
    opened_at: float
    last_instance_at: float
    open_associations: int


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """A series and its end."""

    series_instance_uid: str
    study_instance_uid: str
    state: SeriesState
    reason: str
    instances: int
    updated_at: float
    changed: int = 0
    """How many instances came again with other bytes, which are kept beside the first and not used."""
    purged: int = 0
    """Of how many instances retention has removed the bytes."""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """A kept instance; `sha256` names its file in the spool."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sha256: str
    purged_at: float | None = None
    """When retention removed the bytes; None while they are there."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job."""

    job_id: int
    job_key: str
    study_instance_uid: str
    series_instance_uid: str
    route: str
    model: str
    model_digest: str
    state: JobState
    step: str
    outcome: str
    reason: str
    run: int
    attempt: int
    epoch: int
    owner: str
    not_before: float
    encoded_at: float | None
    predecessor_job_id: int | None
    created_at: float
    last_instance_at: float
    ended_at: float | None
    priority: Priority


def job_from_row(row: sqlite3.Row) -> JobRecord:
    """Answers a job out of a row of `job`."""
    values = {field.name: row[field.name] for field in fields(JobRecord)}
    return JobRecord(**{**values, "state": JobState(row["state"]), "priority": Priority(row["priority"])})


@dataclass(frozen=True, slots=True)
class TransitionRecord:
    """One step in the history of a thing."""

    at: float
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """An object that we made, frozen on the disk."""

    sop_instance_uid: str
    role: str
    sop_class_uid: str
    series_instance_uid: str
    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One evidence object on its way to one destination, with what the sender needs."""

    delivery_id: int
    job_id: int
    sop_instance_uid: str
    sop_class_uid: str
    role: str
    path: Path
    destination: str
    state: DeliveryState
    attempts: int
    first_attempt_at: float | None
    next_attempt_at: float
    reason: str
    stored_at: float | None
    study_instance_uid: str
    series_instance_uid: str
    priority: Priority
    unsure: bool
    """The last attempt had no answer: the peer may have the object."""
    confirmation: Confirmation | None
    confirm_at: float | None
    confirm_attempts: int
    sent_as: str = ""
    """The SOP class that it was sent in, where the destination does not take its own."""

    @property
    def archived_as(self) -> tuple[str, str]:
        """SOP Class and Instance UID under which the destination has it, or would have it."""
        return archived_as(self.sop_class_uid, self.sop_instance_uid, self.sent_as)
