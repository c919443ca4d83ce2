"""What happens to an instance between its last byte and the answer: checked, kept, recorded."""

import sqlite3
import threading
import time
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

import structlog
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from node.domain.identifiers import is_usable_uid
from node.errors import CannotUnderstand, DataSetMismatch, OutOfResources
from node.intake.headers import MALFORMED
from node.intake.spool import IncomingFile, KeptFile, Spool
from node.journal import ReceivedInstance, ReceivedJournal, Recorded, open_database
from node.journal.database import JournalUnusable

_SOP_CLASS_UID: Final = Tag("SOPClassUID")
_SOP_INSTANCE_UID: Final = Tag("SOPInstanceUID")
_STUDY_INSTANCE_UID: Final = Tag("StudyInstanceUID")
_SERIES_INSTANCE_UID: Final = Tag("SeriesInstanceUID")
_PIXELS: Final = Tag(0x7FDFFFFF)
_NEEDED: Final = (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID)

HEAD_BYTES: Final = 1 << 22
"""How much of a deflated data set is inflated to find its UIDs: a few kB can stand for gigabytes."""

_DEFLATED: Final = frozenset(
    {
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)


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

    def __init__(self, state_dir: Path, spool: Spool) -> None:
        self._state_dir = state_dir
        self._spool = spool
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
            return self._record(self._spool.keep(incoming), uids, request)
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
            connection = self._of_thread.connection = open_database(self._state_dir)
        return connection

    def close_connection(self) -> None:
        """Closes this thread's connection to the journal; the next instance opens another."""
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        self._of_thread.connection = None
        if connection is not None:
            connection.close()


def read_uids(incoming: IncomingFile, request: StoreRequest) -> InstanceUids:
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
    for name, uid in (("Study", uids.study), ("Series", uids.series), ("SOP", uids.sop_instance)):
        if not is_usable_uid(uid):
            raise CannotUnderstand(f"{name} Instance UID is {'no UID' if uid else 'absent'}")
    if uids.sop_instance != request.sop_instance_uid:
        raise DataSetMismatch(f"the data set is SOP instance {uids.sop_instance}")
    if uids.sop_class != request.sop_class_uid:
        raise DataSetMismatch(f"the data set is of SOP class {uids.sop_class}")
    return uids


def _read_needed(incoming: IncomingFile, transfer_syntax_uid: str, *, stop_after: BaseTag) -> Dataset:
    def is_behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > int(stop_after)

    syntax = UID(transfer_syntax_uid)
    try:
        with incoming.path.open("rb") as stream:
            stream.seek(incoming.head_bytes)
            data_set: BinaryIO = stream
            if syntax in _DEFLATED:
                data_set = BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(HEAD_BYTES), HEAD_BYTES))
            return read_dataset(data_set, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=is_behind, specific_tags=list(_NEEDED))
    except OSError as error:
        raise OutOfResources(f"the spool cannot be read: {error.strerror}") from error
    except MALFORMED as error:
        raise CannotUnderstand(f"no data set of {syntax.name} ({type(error).__name__})") from error


def _text(dataset: Dataset, tag: BaseTag) -> str:
    """Answers the value of a UID element without converting it: pydicom would warn of what we judge ourselves."""
    try:
        value = dataset.get_item(tag).value
    except MALFORMED:  # a KeyError where it is absent
        return ""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return str(value).strip("\x00 ")
