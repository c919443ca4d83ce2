"""C-STORE and C-ECHO as service class user: the bytes on the disk go to the peer as they are, each file gets an answer."""

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom.dsutils import encode, split_dataset

from node.codes import StoreStatus
from node.delivery.query import FIND_CONTEXT, has_instance
from node.delivery.upper_layer import MAX_CONTEXTS, Context, Peer, Readable, RequestedAssociation, Timeouts
from node.delivery.variants import (
    DEFLATED,
    EVERY_COMPRESSION,
    Compression,
    compressed_contexts,
    deflated,
    older_contexts,
    older_report,
    run_length_label_map,
)
from node.domain.delivery import archived_as
from node.domain.identifiers import is_usable_uid
from node.domain.states import Priority
from node.errors import DeliveryError, PeerUnreachable, StoreOutOfResources, StoreRefused
from node.journal import DeliveryRecord
from node.network import (
    DATA_SET_FOLLOWS,
    NATIVE_TRANSFER_SYNTAXES,
    NO_DATA_SET,
    VERIFICATION,
    CommandElement,
    CommandField,
    GeneralStatus,
)
from node.network.command import Command, number_in, text_in
from node.network.rle import RLE_LOSSLESS

_EXPLICIT, _IMPLICIT, _DEFLATED, _ = NATIVE_TRANSFER_SYNTAXES
PRIORITY_CODES: Final = {Priority.MEDIUM: 0, Priority.HIGH: 1, Priority.LOW: 2}
"""Priority (0000,0700) of a request (PS3.7 Table E.1-1)."""

_COMPRESSIONS: Final[Mapping[str, Callable[[BinaryIO], Readable]]] = {DEFLATED: deflated, RLE_LOSSLESS: run_length_label_map}
_LAST_MESSAGE_ID: Final = 0xFFFF
ECHO_TIMEOUTS: Final = Timeouts(connect_s=5.0, answer_s=5.0)


OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)
DATA_SET_MISMATCH: Final = range(0xA900, 0xAA00)
WARNINGS: Final = range(0xB000, 0xC000)
CANNOT_UNDERSTAND: Final = range(0xC000, 0xD000)
GENERAL_FAILURES: Final = range(0x0100, 0x0300)
"""Ranges of the answers to a C-STORE request (PS3.4 Table B.2-1, PS3.7 Annex C)."""


@dataclass(frozen=True, slots=True)
class Part10File:
    """A DICOM file to send."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    """Where the data set begins, behind the file meta information."""

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What to propose for the file, the best first: as it is; native data also in what every peer must take (PS3.5 10.1)."""
        own = Context(self.sop_class_uid, self.transfer_syntax_uid)
        if self.transfer_syntax_uid not in {_EXPLICIT, _IMPLICIT, _DEFLATED}:
            return (own,)
        return tuple(dict.fromkeys((own, Context(self.sop_class_uid, _EXPLICIT), Context(self.sop_class_uid, _IMPLICIT))))


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """What became of one file: stored when there is no `error`; `note` is the peer's warning."""

    path: Path
    sop_instance_uid: str
    error: DeliveryError | None = None
    note: str = ""

    @property
    def status(self) -> str:
        """In one word, for summaries: `stored`, or the kind of the error."""
        return "stored" if self.error is None else self.error.code


def read_part10(path: Path) -> Part10File:
    """Answers what a file says about itself.

    Raises
    ------
    StoreRefused
        When it is no DICOM file, or does not say what it is: it can never be sent.
    """
    try:
        meta, offset = split_dataset(path)
        wanted = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        sop_class_uid, sop_instance_uid, transfer_syntax_uid = (str(meta.get(keyword) or "") for keyword in wanted)
    except OSError as error:
        raise StoreRefused(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:  # pydicom raises whatever its parsers meet in a file that is no DICOM
        raise StoreRefused(f"not a DICOM file ({type(error).__name__})") from error
    if not (is_usable_uid(sop_class_uid) and is_usable_uid(sop_instance_uid) and is_usable_uid(transfer_syntax_uid)):
        raise StoreRefused("the file meta information lacks a usable UID of SOP class, SOP instance or transfer syntax")
    return Part10File(path, sop_class_uid, sop_instance_uid, transfer_syntax_uid, offset)


def contexts_for(files: Iterable[Part10File]) -> tuple[Context, ...]:
    """Answers the contexts to propose for files: those that they need, each once."""
    return tuple(dict.fromkeys(context for file in files for context in file.contexts))


def contexts_for_results(files: Iterable[Part10File], offered: Compression | None = None) -> tuple[Context, ...]:
    """Answers the contexts to propose for results of ours: also older classes of reports, and segmentations compressed."""
    found: dict[Context, None] = {}
    for file in files:
        found.update(dict.fromkeys(compressed_contexts(file.sop_class_uid, file.transfer_syntax_uid, offered or Compression())))
        found.update(dict.fromkeys((*file.contexts, *older_contexts(file.sop_class_uid))))
    return tuple(found)


def batches(files: Iterable[Part10File], largest: int = MAX_CONTEXTS) -> Iterable[tuple[Part10File, ...]]:
    """Answers the files in order, cut where an association could not propose the contexts of one more."""
    batch: list[Part10File] = []
    needed: set[Context] = set()
    for file in files:
        if batch and len(needed.union(file.contexts)) > largest:
            yield tuple(batch)
            batch, needed = [], set()
        batch.append(file)
        needed.update(file.contexts)
    if batch:
        yield tuple(batch)


class StoreScu:
    """An association over which files are stored, one after the other. One object serves one thread."""

    def __init__(self, peer: Peer, contexts: Sequence[Context], timeouts: Timeouts | None = None) -> None:
        """Opens the association; raises the DeliveryError that says why there is none."""
        self._timeouts = timeouts or Timeouts()
        self._association = RequestedAssociation(peer, contexts, self._timeouts)
        self._peer = peer
        self._message_id = 0

    @property
    def is_open(self) -> bool:
        """Whether another file can be stored."""
        return self._association.is_open

    def store(self, file: Part10File, priority: Priority = Priority.MEDIUM) -> str:
        """Stores a file; answers the peer's warning, '' where there is none.

        Raises
        ------
        StoreRefused
            The peer does not want it: another attempt would end the same.
        StoreOutOfResources
            The peer cannot take it now.
        PeerUnreachable
            The peer did not answer: it may have stored the file or not. The association is over.
        """
        with ExitStack() as stack:
            context, stream = self._choose(file, stack)
            message_id = self._next_message_id()
            context_id = self._association.accepted[context]
            names = archived_as(file.sop_class_uid, file.sop_instance_uid, context.sop_class_uid)
            self._association.send_command(context_id, _store_request(names, message_id, priority))
            self._association.send_data_set(context_id, stream)
        answer = self._association.receive_response(CommandField.C_STORE_RSP, message_id)
        return judge_status(answer)

    def has(self, delivery: DeliveryRecord) -> bool:
        """Asks whether the peer has the object of a delivery; False also when it takes no query or does not say: sending twice is harmless.

        Raises
        ------
        PeerUnreachable
            The peer did not answer. The association is over.
        """
        if FIND_CONTEXT not in self._association.accepted:
            return False
        try:
            return has_instance(self._association, delivery, self._next_message_id(), answer_s=self._timeouts.answer_s).found
        except PeerUnreachable:
            self._association.abort()
            raise

    def sent_as(self, file: Part10File) -> str:
        """Answers the SOP class in which the peer takes a report that it does not take in its own, '' where that is not so."""
        if any(context in self._association.accepted for context in file.contexts):
            return ""
        older = (context for context in older_contexts(file.sop_class_uid) if context in self._association.accepted)
        return next((context.sop_class_uid for context in older), "")

    def _next_message_id(self) -> int:
        self._message_id = self._message_id % _LAST_MESSAGE_ID + 1
        return self._message_id

    def _choose(self, file: Part10File, stack: ExitStack) -> tuple[Context, Readable]:
        own = (*compressed_contexts(file.sop_class_uid, file.transfer_syntax_uid, EVERY_COMPRESSION), *file.contexts)
        offered = (*own, *older_contexts(file.sop_class_uid))
        context = next((context for context in offered if context in self._association.accepted), None)
        if context is None:
            syntax, sop_class = UID(file.transfer_syntax_uid).name, UID(file.sop_class_uid).name
            raise StoreRefused(f"{self._peer} accepts no presentation context for {sop_class} in {syntax}")
        if context.sop_class_uid != file.sop_class_uid:
            return context, io.BytesIO(older_report(file.path, context.sop_class_uid, context.transfer_syntax_uid))
        is_own = context.transfer_syntax_uid == file.transfer_syntax_uid
        compress = None if is_own else _COMPRESSIONS.get(context.transfer_syntax_uid)
        if not is_own and compress is None:
            return context, _reencoded(file, context.transfer_syntax_uid)
        try:
            stream = stack.enter_context(file.path.open("rb"))
            stream.seek(file.offset)
        except OSError as error:
            raise StoreRefused(f"the file cannot be read: {error.strerror or type(error).__name__}") from error
        return context, compress(stream) if compress else stream

    def close(self) -> None:
        """Releases the association."""
        self._association.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if kind is None:
            self._association.release()
        else:
            self._association.abort()


def judge_status(answer: Command) -> str:
    """Answers the warning in a C-STORE response, '' for plain success; raises what a failure means (PS3.4 Table B.2-1)."""
    status = number_in(answer, CommandElement.STATUS)
    if status is None:
        raise PeerUnreachable("the peer answered without a status")
    comment = text_in(answer, CommandElement.ERROR_COMMENT)
    said = f"{status:04X}" + (f": {comment}" if comment else "")
    if status == StoreStatus.SUCCESS:
        return ""
    if status == GeneralStatus.DUPLICATE_SOP_INSTANCE:
        return f"{said}: the peer had it already"
    if status in WARNINGS:
        return said
    if status in OUT_OF_RESOURCES or status == GeneralStatus.PROCESSING_FAILURE:
        raise StoreOutOfResources(f"the peer answered {said}")
    if any(status in refusal for refusal in (DATA_SET_MISMATCH, CANNOT_UNDERSTAND, GENERAL_FAILURES)):
        raise StoreRefused(f"the peer answered {said}")
    raise PeerUnreachable(f"the peer answered {said}, which is no status of C-STORE")


def store_files(peer: Peer, files: Iterable[Part10File], timeouts: Timeouts | None = None) -> Iterable[StoreOutcome]:
    """Sends files to a peer, and answers what became of each as it happens; never raises a DeliveryError.

    When the association breaks, the file on its way has failed and the next ones go over a new one; when none can be had, all the
    rest have failed.
    """
    for batch in batches(files):
        waiting = list(batch)
        while waiting:
            try:
                scu = StoreScu(peer, contexts_for(waiting), timeouts)
            except DeliveryError as error:
                yield from (StoreOutcome(file.path, file.sop_instance_uid, error) for file in waiting)
                break
            with scu:
                while waiting and scu.is_open:
                    yield _outcome(scu, waiting.pop(0))


def _outcome(scu: StoreScu, file: Part10File) -> StoreOutcome:
    try:
        return StoreOutcome(file.path, file.sop_instance_uid, note=scu.store(file))
    except DeliveryError as error:
        return StoreOutcome(file.path, file.sop_instance_uid, error)


def echo(host: str, port: int, called: str, calling: str) -> float:
    """Asks a peer without TLS whether it is there, as `echo_peer` does."""
    return echo_peer(Peer(host, port, called, calling))


def echo_peer(peer: Peer) -> float:
    """Asks a peer whether it is there; answers the seconds from the connection to the answer.

    Raises
    ------
    DeliveryError
        The leaf says why it is not there for us.
    """
    started = time.perf_counter()
    context = Context(VERIFICATION, _IMPLICIT)
    with RequestedAssociation(peer, [context], ECHO_TIMEOUTS) as association:
        if context not in association.accepted:
            raise StoreRefused(f"{peer} does not offer verification (C-ECHO)")
        request: Command = {
            CommandElement.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            CommandElement.COMMAND_FIELD: CommandField.C_ECHO_RQ,
            CommandElement.MESSAGE_ID: 1,
            CommandElement.DATA_SET_TYPE: NO_DATA_SET,
        }
        association.send_command(association.accepted[context], request)
        answer = association.receive_response(CommandField.C_ECHO_RSP, 1)
        elapsed_s = time.perf_counter() - started
    if answer.get(CommandElement.STATUS) != StoreStatus.SUCCESS:
        raise StoreRefused(f"{peer} answered C-ECHO with status {answer.get(CommandElement.STATUS)}")
    return elapsed_s


def _store_request(names: tuple[str, str], message_id: int, priority: Priority) -> Command:
    sop_class_uid, sop_instance_uid = names
    return {
        CommandElement.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        CommandElement.COMMAND_FIELD: CommandField.C_STORE_RQ,
        CommandElement.MESSAGE_ID: message_id,
        CommandElement.PRIORITY: PRIORITY_CODES[priority],
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
        CommandElement.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
    }


def _reencoded(file: Part10File, transfer_syntax_uid: str) -> BinaryIO:
    """Answers the data set in another native transfer syntax, for a peer that does not take it as it is."""
    syntax = UID(transfer_syntax_uid)
    try:
        encoded = encode(dcmread(file.path), syntax.is_implicit_VR, syntax.is_little_endian)
    except Exception as error:  # pydicom raises whatever its parsers meet in a malformed file
        raise StoreRefused(f"the file cannot be re-encoded in {syntax.name} ({type(error).__name__})") from error
    if encoded is None:
        raise StoreRefused(f"the file cannot be re-encoded in {syntax.name}")
    return io.BytesIO(encoded)
