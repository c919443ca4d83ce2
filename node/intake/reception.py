"""What happens to an instance between its last byte and the answer: checked, kept, recorded."""

import sqlite3
import threading
import time
import zlib
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import structlog
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from node.domain.commitment import CommitmentReport
from node.domain.identifiers import is_usable_uid
from node.errors import CannotUnderstand, DataSetMismatch, OutOfResources
from node.files import Durability
from node.intake.bounded import bounded
from node.intake.spool import IncomingFile, KeptFile, Spool
from node.journal import CommitmentJournal, ReceivedInstance, ReceivedJournal, Recorded, open_database
from node.journal.database import JournalUnusable
from node.network.deflate import DEFLATED, LONGEST_INFLATED_BYTES, inflate_head, inflates_beyond
from node.network.malformed import MALFORMED_DATA_SET

_SOP_CLASS_UID: Final = Tag("SOPClassUID")
_SOP_INSTANCE_UID: Final = Tag("SOPInstanceUID")
_STUDY_INSTANCE_UID: Final = Tag("StudyInstanceUID")
_SERIES_INSTANCE_UID: Final = Tag("SeriesInstanceUID")
_PIXELS: Final = Tag(0x7FDFFFFF)
_NEEDED: Final = (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID)

HEAD_BYTES: Final = 1 << 22
"""How much of a data set is read to find its UIDs, what is skipped not counted: a few kB can stand for gigabytes."""

# What a sender can make the parser hold is held once, and not once an association; it parses no faster in several threads.
_one_parser: Final = threading.Lock()

_LONGEST_UID_BYTES: Final = 1024
"""What is longer is no UID, and not taken into memory; it may be gigabytes."""

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a C-STORE request says besides its data set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    association: str
    """Names the association, unlike every other that this node ever had."""


@dataclass(frozen=True, slots=True)
class InstanceUids:
    """The UIDs under which an instance is filed."""

    sop_class: str
    sop_instance: str
    series: str
    study: str


class Intake:
    """Takes instances into the spool and the journal. One object serves all threads of the listener."""

    def __init__(self, state_dir: Path, spool: Spool, durability: Durability = Durability.POWER_LOSS) -> None:
        self._state_dir = state_dir
        self._spool = spool
        self._durability = durability
        self._of_thread = threading.local()
        self._left_open: list[str] = []
        # Writers queue here and not at the database, where they would sleep and poll.
        self._one_writer = threading.Lock()

    def accept(self, incoming: IncomingFile, request: StoreRequest) -> Recorded:
        """Takes an instance; when this returns, its bytes and its record survive a power cut (promise P1).

        Raises
        ------
        OutOfResources
            When the disk is full or below the limit, or the journal is locked.
        DataSetMismatch
            When the data set says another SOP class or instance than the request.
        CannotUnderstand
            When the bytes are no data set, or lack the UIDs under which to file them.
        """
        try:
            incoming.flush()
            incoming.check()
            uids = read_uids(incoming, request)
            _refuse_bomb(incoming, request.transfer_syntax_uid)
            with self._spool.keeping(incoming) as kept:  # retention cannot take it away before it is recorded
                return self._record(kept, uids, request)
        finally:
            incoming.discard()

    def _record(self, kept: KeptFile, uids: InstanceUids, request: StoreRequest) -> Recorded:
        received = ReceivedInstance(
            sop_instance_uid=uids.sop_instance,
            series_instance_uid=uids.series,
            study_instance_uid=uids.study,
            sop_class_uid=uids.sop_class,
            transfer_syntax_uid=request.transfer_syntax_uid,
            sha256=kept.sha256,
            size_bytes=kept.size_bytes,
            calling_ae_title=request.calling_ae_title,
        )
        try:
            with self._one_writer:
                journal = ReceivedJournal(self._connection())
                return journal.record_instance(received, association=request.association, now_s=time.time())
        except (sqlite3.Error, JournalUnusable) as error:
            self.close_connection()  # it may still be inside the transaction that failed
            raise OutOfResources(f"the journal cannot be written: {error}") from error

    def record_report(self, report: CommitmentReport) -> bool:
        """Notes durably what an archive says about a storage commitment; answers False when it answers no request of ours."""
        with self._one_writer, closing(open_database(self._state_dir)) as connection:
            return CommitmentJournal(connection).record_report(report, now_s=time.time())

    def end_association(self, association: str) -> None:
        """Notes that an association has ended; called in its thread, as the last thing."""
        try:
            with self._one_writer:
                ReceivedJournal(self._connection()).close_association(association)
        except (sqlite3.Error, JournalUnusable) as error:
            log.warning("journal.busy", reason=str(error))
            self._left_open.append(association)
        finally:
            self.close_connection()

    def end_what_is_left(self) -> None:
        """Tries again to note the ends that the journal did not take."""
        left, self._left_open = self._left_open, []
        for association in left:
            self.end_association(association)

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = open_database(self._state_dir, durability=self._durability)
        return connection

    def close_connection(self) -> None:
        """Closes this thread's connection to the journal; the next instance opens another."""
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        self._of_thread.connection = None
        if connection is not None:
            connection.close()


class Part10Bytes(Protocol):
    """A Part 10 file and where its data set begins."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def head_bytes(self) -> int:
        """How long preamble and file meta information are."""


def read_uids(incoming: Part10Bytes, request: StoreRequest) -> InstanceUids:
    """Answers under which UIDs an instance is to be filed, after comparing it with the request that brought it.

    SOP Class and Instance UID may be absent in the data set: the request has them.
    """
    found = _read_needed(incoming, request.transfer_syntax_uid, stop_after=_SERIES_INSTANCE_UID)
    if not (_STUDY_INSTANCE_UID in found and _SERIES_INSTANCE_UID in found):
        found = _read_needed(incoming, request.transfer_syntax_uid, stop_after=_PIXELS)  # elements out of order, against PS3.5 7.1
    uids = InstanceUids(
        sop_class=_text(found, _SOP_CLASS_UID) or request.sop_class_uid,
        sop_instance=_text(found, _SOP_INSTANCE_UID) or request.sop_instance_uid,
        series=_text(found, _SERIES_INSTANCE_UID),
        study=_text(found, _STUDY_INSTANCE_UID),
    )
    for name, uid in (
        ("Study Instance", uids.study),
        ("Series Instance", uids.series),
        ("SOP Instance", uids.sop_instance),
        ("SOP Class", uids.sop_class),
    ):
        if not is_usable_uid(uid):
            raise CannotUnderstand(f"{name} UID is {'no UID' if uid else 'absent'}")
    if uids.sop_instance != request.sop_instance_uid:
        raise DataSetMismatch(f"the data set is SOP instance {uids.sop_instance}")
    if uids.sop_class != request.sop_class_uid:
        raise DataSetMismatch(f"the data set is of SOP class {uids.sop_class}")
    return uids


def _read_needed(incoming: Part10Bytes, transfer_syntax_uid: str, *, stop_after: BaseTag) -> Dataset:
    def is_behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > int(stop_after)

    syntax = UID(transfer_syntax_uid)
    try:
        with _one_parser, incoming.path.open("rb", buffering=0) as file:
            stream = bounded(file, HEAD_BYTES)
            stream.seek(incoming.head_bytes)
            data_set: BinaryIO = BytesIO(inflate_head(stream, HEAD_BYTES)) if syntax in DEFLATED else stream
            return read_dataset(
                data_set,
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                stop_when=is_behind,
                defer_size=_LONGEST_UID_BYTES,
                specific_tags=list(_NEEDED),
            )
    except MALFORMED_DATA_SET as error:
        if isinstance(error, OSError) and error.errno is not None:  # the parser raises one without a number for what is no data set
            raise OutOfResources(f"the spool cannot be read: {error.strerror}") from error
        raise CannotUnderstand(f"no data set of {syntax.name} ({type(error).__name__})") from error


def _refuse_bomb(incoming: IncomingFile, transfer_syntax_uid: str) -> None:
    """Raises CannotUnderstand for a deflated data set that nobody could hold in memory."""
    if transfer_syntax_uid not in DEFLATED:
        return
    try:
        with incoming.path.open("rb") as stream:
            stream.seek(incoming.head_bytes)
            if inflates_beyond(stream, LONGEST_INFLATED_BYTES):
                raise CannotUnderstand(f"the data set inflates to more than {LONGEST_INFLATED_BYTES >> 20} MiB")
    except OSError as error:
        raise OutOfResources(f"the spool cannot be read: {error.strerror}") from error
    except zlib.error as error:
        raise CannotUnderstand("the data set is not deflated as it should be") from error


def _text(dataset: Dataset, tag: BaseTag) -> str:
    """Answers the value of a UID element without converting it: pydicom would warn of what we judge ourselves."""
    try:
        value = dataset.get_item(tag).value
    except MALFORMED_DATA_SET:  # a KeyError where it is absent
        return ""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return str(value).strip("\x00 ")
