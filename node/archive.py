"""A small DICOM archive on a folder, for trials without a PACS: takes what is sent, keeps it readable, answers C-ECHO.

It is made of the listener's parts with another end: files go to `DIR/STUDY/SERIES/INSTANCE.dcm` and no journal is kept.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from node.domain.identifiers import is_uid
from node.files import fsync_folder, write_durably
from node.intake.admission import AdmissionRules
from node.intake.association import ScpOptions, StorageScp
from node.intake.incoming import IncomingFile
from node.intake.spool import Spool
from node.intake.uids import InstanceUids, StoreRequest, read_uids

SPOOL: Final = ".spool"
PORT_FILE: Final = "archive.port"
MAX_ASSOCIATIONS: Final = 32

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance that the archive has."""

    path: Path
    uids: InstanceUids
    size_bytes: int
    calling_ae_title: str


OnStored = Callable[[StoredInstance], None]
"""Called after each instance, in the thread of its association."""


def run_archive(
    folder: Path,
    *,
    ae_title: str = "ARCHIVE",
    host: str = "127.0.0.1",
    port: int = 11113,
    on_stored: OnStored | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Keeps what is sent below `folder` until `stop`; the port it got (0: any) stands in `folder/archive.port`.

    Raises
    ------
    CannotListen
        When the port cannot be had.
    """
    with serving_archive(folder, ae_title=ae_title, host=host, port=port, on_stored=on_stored):
        (stop or threading.Event()).wait()


@contextmanager
def serving_archive(
    folder: Path, *, ae_title: str = "ARCHIVE", host: str = "127.0.0.1", port: int = 0, on_stored: OnStored | None = None
) -> Iterator[int]:
    """Keeps what is sent below `folder` while the block runs, which gets the port.

    Raises
    ------
    CannotListen
        When the port cannot be had.
    """
    spool = Spool(folder / SPOOL)
    spool.prepare()
    rules = AdmissionRules(ae_title, max_associations=MAX_ASSOCIATIONS, accept_unlisted_peers=True)
    scp = StorageScp(ScpOptions(rules, host, port), spool, Archive(folder, spool, on_stored).accept)
    bound = scp.start()
    write_durably(folder / PORT_FILE, f"{bound}\n".encode())
    log.info("archive.ready", ae_title=ae_title, host=host, port=bound, folder=str(folder))
    try:
        yield bound
    finally:
        scp.stop()
        log.info("archive.stopped")


class Archive:
    """Files instances by their UIDs; the last one sent under a UID is the one that counts."""

    def __init__(self, folder: Path, spool: Spool, on_stored: OnStored | None = None) -> None:
        self._folder = folder
        self._spool = spool
        self._on_stored = on_stored
        self._one_at_a_time = threading.Lock()  # two senders of one data set would take its file from each other

    def accept(self, incoming: IncomingFile, request: StoreRequest) -> None:
        """Takes an instance into the spool, and from there to its place."""
        try:
            incoming.flush()
            incoming.check()
            uids = read_uids(incoming, request)
            with self._one_at_a_time:
                self._file(incoming, uids, request)
        finally:
            incoming.discard()

    def _file(self, incoming: IncomingFile, uids: InstanceUids, request: StoreRequest) -> None:
        kept = self._spool.keep(incoming)
        path = self._folder.joinpath(*(safe_name(uid) for uid in (uids.study, uids.series)), f"{safe_name(uids.sop_instance)}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.path.replace(path)
        fsync_folder(path.parent)
        if self._on_stored is not None:
            self._on_stored(StoredInstance(path, uids, kept.size_bytes, request.calling_ae_title))


def safe_name(uid: str) -> str:
    """Answers a UID as the name of a file or folder: itself where it is valid, else a digest of it."""
    return uid if is_uid(uid) else hashlib.sha256(uid.encode()).hexdigest()[:32]
