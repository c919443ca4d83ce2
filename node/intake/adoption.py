"""The spool against the journal: files that no row names, after a crash between two steps or a restored backup.

A file whose rows were all purged is swept: the crash came between the commit and the unlink. One that the journal has never heard of
is taken in, as if it had just been received: after a restored backup these are instances that were answered with success.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydicom.filereader import read_file_meta_info

from node.errors import CannotUnderstand, IntakeError
from node.intake.incoming import SealedFile
from node.intake.spool import Spool
from node.intake.uids import InstanceUids, StoreRequest, read_uids
from node.journal import ReceivedInstance, ReceivedJournal
from node.journal.retention import RetentionJournal
from node.network.malformed import MALFORMED_DATA_SET

ADOPTION: Final = "adoption"
"""Stands for an association where an instance was taken from the spool."""

ADOPTED_AT_ONCE: Final = 500

_BEFORE_GROUP: Final = 128 + 4 + 12
"""Preamble, prefix, and the element that says how long the rest of group 0002 is (PS3.10 7.1)."""

_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _KeptBytes:
    path: Path
    head_bytes: int
    beginning: bytes = b""

    def flush(self) -> None:
        """It is whole on the disk."""


@dataclass
class Reconciled:
    """What came of the files of a folder."""

    adopted: int = 0
    swept: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Names of files that are no instance, or not the bytes that their name says."""


class Reconciler:
    """Holds spool and journal against each other. One object serves one thread."""

    def __init__(self, spool: Spool, connection: sqlite3.Connection) -> None:
        self._spool = spool
        self._retention = RetentionJournal(connection)
        self._received = ReceivedJournal(connection)

    def reconcile(self, folder: str, *, now_s: float, younger_than_s: float) -> Reconciled:
        """Sweeps and adopts what no row names in one folder of the spool; files not older than `younger_than_s` may be on their way.

        Raises OutOfResources when the folder is held by others for long.
        """
        result = Reconciled()
        for sha256, facts in list(self._unnamed(folder)):
            if result.adopted >= ADOPTED_AT_ONCE:
                break  # the rest at the next round: every byte of them is read
            if self._retention.is_known(sha256):
                result.swept += self.remove_unnamed([sha256])
            elif now_s - facts.st_mtime >= younger_than_s:
                self._adopt(sha256, now_s, result)
        return self._end(result)

    def adopt_all(self, folder: str, *, now_s: float) -> Reconciled:
        """Adopts whatever no row names in one folder, purged or not: the journal is older than the spool, and cannot tell."""
        result = Reconciled()
        for sha256, _ in list(self._unnamed(folder)):
            self._adopt(sha256, now_s, result)
        return self._end(result)

    def _end(self, result: Reconciled) -> Reconciled:
        if result.adopted:
            self._received.close_association(ADOPTION)
        return result

    def _unnamed(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        return ((sha256, facts) for sha256, facts in self._spool.kept_in(folder) if not self._retention.is_named(sha256))

    def remove_unnamed(self, digests: list[str]) -> int:
        """Removes files of one folder that no row names any more; answers how many.

        Alone with the folder, so that nobody who has just found the file there is about to record it.
        """
        removed = 0
        with self._spool.alone_with(digests[0][:2]):
            for sha256 in digests:
                path = self._spool.path_of(sha256)
                if path.exists() and self._retention.is_known(sha256) and not self._retention.is_named(sha256):
                    path.unlink()
                    removed += 1
        return removed

    def _adopt(self, sha256: str, now_s: float, result: Reconciled) -> None:
        path = self._spool.path_of(sha256)
        try:
            received = read_kept(path, sha256)
        except FileNotFoundError:
            return  # whoever had it on its way has taken it back
        except (IntakeError, OSError):
            result.unreadable.append(path.name)
            return
        with self._spool.alone_with(sha256[:2]):
            if path.exists():
                self._received.record_instance(received, association=ADOPTION, now_s=now_s)
                result.adopted += 1


def read_kept(path: Path, sha256: str) -> ReceivedInstance:
    """Answers what a kept file would have been recorded as.

    Raises
    ------
    CannotUnderstand
        When it is no instance, or other bytes than its name says.
    """
    with path.open("rb") as stream:
        head = stream.read(_BEFORE_GROUP)
        if len(head) < _BEFORE_GROUP or head[128:132] != b"DICM":
            raise CannotUnderstand("no DICOM file")
        head_bytes = _BEFORE_GROUP + int.from_bytes(head[-4:], "little")
        stream.seek(head_bytes)
        found = hashlib.sha256()
        size_bytes = 0
        while piece := stream.read(_PIECE):
            found.update(piece)
            size_bytes += len(piece)
    if found.hexdigest() != sha256:
        raise CannotUnderstand("not the bytes that were kept")
    uids, request = _read_identity(path, head_bytes)
    return ReceivedInstance(
        sop_instance_uid=uids.sop_instance,
        series_instance_uid=uids.series,
        study_instance_uid=uids.study,
        sop_class_uid=uids.sop_class,
        transfer_syntax_uid=request.transfer_syntax_uid,
        sha256=sha256,
        size_bytes=size_bytes,
        calling_ae_title=request.calling_ae_title,
    )


def read_sealed(file: SealedFile) -> tuple[InstanceUids, StoreRequest]:
    """Answers what a sealed file of an earlier life came as.

    Raises CannotUnderstand when it is no instance.
    """
    return _read_identity(file.path, file.seal.head_bytes)


def _read_identity(path: Path, head_bytes: int) -> tuple[InstanceUids, StoreRequest]:
    try:
        meta = read_file_meta_info(path)
        request = StoreRequest(
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
            calling_ae_title=str(meta.get("SourceApplicationEntityTitle", "")),
            association=ADOPTION,
        )
    except MALFORMED_DATA_SET as error:
        raise CannotUnderstand(f"no file meta information ({type(error).__name__})") from error
    return read_uids(_KeptBytes(path, head_bytes), request), request
