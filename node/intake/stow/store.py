"""One Store request: its parts go straight from the network into files, and into the same intake as those of C-STORE."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cache
from typing import Final

import structlog

from node.codes import FailureReason
from node.errors import CannotUnderstand, DataSetMismatch, IntakeError
from node.intake.contexts import TRANSFER_SYNTAXES, supported_contexts
from node.intake.handlers import Accept, Rest, on_c_store
from node.intake.incoming import FileIdentity, IncomingFile
from node.intake.spool import Spool
from node.intake.stow.answer import Outcome
from node.intake.stow.multipart import MultipartReader, Part
from node.intake.stow.part10 import LONGEST_META_BYTES, FileMeta, read_file_meta
from node.intake.stow.rules import is_dicom_part
from node.intake.uids import StoreRequest, read_uids
from node.network import VERIFICATION

MOST_PARTS: Final = 50_000
"""Of one request: its answer names them all, and is held in memory."""

MOST_AT_ONCE: Final = 8
"""Instances of one request that are being made safe while the next ones arrive: their flushes then wait for the disk together."""

USUAL_META_BYTES: Final = 1 << 11
"""As much of a file is looked at first."""

log = structlog.get_logger("radnode")


class TooManyParts(Exception):
    """The body has more parts than one answer can name."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where the instances of a request go."""

    spool: Spool
    accept: Accept
    calling_ae_title: str
    association: str
    """Names the transfer, unlike every other, and every association, that this node ever had."""
    study_instance_uid: str = ""
    """That the path of the request names; '' where it names none."""
    aside: Executor | None = None
    """Makes instances safe while the next ones arrive; None where that takes no time."""


Pending = deque[Outcome | Future[Outcome]]


def store_parts(reader: MultipartReader, store: Store, outcomes: list[Outcome]) -> None:
    """Stores the parts of a body one after the other, and notes what became of each: also of those before a fault of the body."""
    pending: Pending = deque()
    try:
        for part in reader.parts():
            if len(outcomes) + len(pending) == MOST_PARTS:
                raise TooManyParts(f"a request has at most {MOST_PARTS} parts")
            pending.append(_store_part(part, store))
            while len(pending) > MOST_AT_ONCE or (pending and isinstance(pending[0], Outcome)):
                _settle_first(pending, outcomes)
    finally:
        while pending:
            _settle_first(pending, outcomes)


def _settle_first(pending: Pending, outcomes: list[Outcome]) -> None:
    first = pending.popleft()
    outcomes.append(first if isinstance(first, Outcome) else first.result())


def _store_part(part: Part, store: Store) -> Outcome | Future[Outcome]:
    try:
        if not is_dicom_part(part.media_type, part.transfer_encoding):
            raise CannotUnderstand("its head says that it is something else than application/dicom as it is")
        meta, begun = _file_meta(part.pieces)
    except IntakeError as error:
        log.warning("part.refused", reason=str(error), calling_ae_title=store.calling_ae_title)
        return Outcome(error.dimse_status)
    reason = _unsupported(meta)
    if reason is not None:
        log.warning("instance.refused", status=f"{reason:04X}", sop_instance_uid=meta.sop_instance_uid, sop_class_uid=meta.sop_class_uid)
        return Outcome(reason, meta.sop_class_uid, meta.sop_instance_uid)
    return _store_instance(meta, (*begun, part.pieces), store)


def _file_meta(pieces: Iterator[memoryview]) -> tuple[FileMeta, tuple[memoryview, memoryview]]:
    """Answers what a file says of itself, and as much of its data set as has come with that."""
    held = bytearray()
    for piece in pieces:
        known = len(held)
        for length in (USUAL_META_BYTES, LONGEST_META_BYTES):
            held += piece[len(held) - known : max(0, length - known)]
            meta = read_file_meta(held)
            if meta is not None:
                begin = meta.data_set_from
                return meta, (memoryview(held)[begin:known], piece[max(0, begin - known) :])
    raise CannotUnderstand("it ends before its data set begins")


@cache
def _supported_classes() -> frozenset[str]:
    return frozenset(str(context.abstract_syntax) for context in supported_contexts(reports=False)) - {VERIFICATION}


def _unsupported(meta: FileMeta) -> FailureReason | None:
    """Answers why an instance is of no kind that the node takes, over the web as over DIMSE; None where it is."""
    if meta.sop_class_uid not in _supported_classes():
        return FailureReason.SOP_CLASS_NOT_SUPPORTED
    return None if meta.transfer_syntax_uid in TRANSFER_SYNTAXES else FailureReason.TRANSFER_SYNTAX_NOT_SUPPORTED


def _store_instance(meta: FileMeta, data: tuple[memoryview, memoryview, Iterator[memoryview]], store: Store) -> Outcome | Future[Outcome]:
    request = StoreRequest(
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae_title=store.calling_ae_title,
        association=store.association,
    )
    identity = FileIdentity(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, store.calling_ae_title)
    incoming = store.spool.open_incoming(identity)
    try:
        *begun, pieces = data
        incoming.write(*begun)
        for piece in pieces:
            incoming.write(piece)
    except BaseException:
        incoming.discard()
        raise
    if store.aside is None:
        return _make_safe(request, incoming, store)
    try:
        return store.aside.submit(_make_safe, request, incoming, store)
    except RuntimeError:  # no thread to be had, or the node stops
        incoming.discard()
        raise


def _make_safe(request: StoreRequest, incoming: IncomingFile, store: Store) -> Outcome:
    status, rest = on_c_store(request, incoming, _only_of_study(store) if store.study_instance_uid else store.accept)
    rest()
    return Outcome(status, request.sop_class_uid, request.sop_instance_uid)


def _only_of_study(store: Store) -> Accept:
    """Answers what takes an instance where it belongs to the study that the path names."""

    def accept(incoming: IncomingFile, request: StoreRequest) -> Rest | None:
        try:
            incoming.check()
            if read_uids(incoming, request).study != store.study_instance_uid:
                raise DataSetMismatch("the data set is of another study than the path of the request")
        except IntakeError:
            incoming.discard()
            raise
        return store.accept(incoming, request)

    return accept
