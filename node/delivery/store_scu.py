"""C-STORE and C-ECHO as service class user: the bytes on the disk go to the peer as they are, each file gets an answer."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from node.delivery.p_data import FileFailed
from node.delivery.part10 import Part10File, batches, contexts_for, contexts_for_results, read_part10
from node.delivery.query import FIND_CONTEXT, has_instance
from node.delivery.store_status import judge_status
from node.delivery.upper_layer import Context, Peer, Readable, RequestedAssociation, Timeouts
from node.delivery.variants import (
    DEFLATED,
    EVERY_COMPRESSION,
    compressed_contexts,
    deflated,
    older_contexts,
    older_report,
    run_length_label_map,
)
from node.delivery.verification import ECHO_TIMEOUTS, echo, echo_peer
from node.domain.delivery import archived_as
from node.domain.states import Priority
from node.errors import DeliveryError, PeerUnreachable, StoreRefused
from node.network import DATA_SET_FOLLOWS, RLE_LOSSLESS, CommandElement, CommandField
from node.network.command import Command

if TYPE_CHECKING:
    from node.journal import DeliveryRecord

__all__ = [
    "ECHO_TIMEOUTS",
    "Part10File",
    "StoreOutcome",
    "StoreScu",
    "batches",
    "contexts_for",
    "contexts_for_results",
    "echo",
    "echo_peer",
    "judge_status",
    "read_part10",
    "store_files",
]

PRIORITY_CODES: Final = {Priority.MEDIUM: 0, Priority.HIGH: 1, Priority.LOW: 2}
"""Priority (0000,0700) of a request (PS3.7 Table E.1-1)."""

_COMPRESSIONS: Final[Mapping[str, Callable[[BinaryIO], Readable]]] = {DEFLATED: deflated, RLE_LOSSLESS: run_length_label_map}
_LAST_MESSAGE_ID: Final = 0xFFFF


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


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What a peer answered to one request: stored when there is no `error`; `note` is its warning."""

    message_id: int
    note: str = ""
    error: DeliveryError | None = None


class StoreScu:
    """An association over which files are stored. One object serves one thread.

    One after the other (`store`), or, where the peer allows a window of several operations, the next ones before the first is
    answered: `begin` as long as fewer than `operations` are open, and `finish` for each.
    """

    def __init__(self, peer: Peer, contexts: Sequence[Context], timeouts: Timeouts | None = None) -> None:
        """Opens the association; raises the DeliveryError that says why there is none."""
        self._timeouts = timeouts or Timeouts()
        self._association = RequestedAssociation(peer, contexts, self._timeouts, operations=peer.async_operations)
        self._peer = peer
        self._message_id = 0
        self._awaited: set[int] = set()
        self._cut_off = 0
        """Message ID of a request that broke off before all of it was sent."""
        self._broken: PeerUnreachable | None = None

    @property
    def is_open(self) -> bool:
        """Whether another file can be stored."""
        return self._association.is_open

    @property
    def operations(self) -> int:
        """How many stores may be open at once."""
        return self._association.operations

    def store(self, file: Part10File, priority: Priority = Priority.MEDIUM) -> str:
        """Stores a file while no other is open; answers the peer's warning, '' where there is none.

        Raises
        ------
        StoreRefused
            The peer does not want it: another attempt would end the same.
        StoreOutOfResources
            The peer cannot take it now.
        PeerUnreachable
            The peer did not answer: it may have stored the file or not. The association is over.
        """
        self.begin(file, priority)
        answer = self.finish()
        if answer.error is not None:
            raise answer.error
        return answer.note

    def begin(self, file: Part10File, priority: Priority = Priority.MEDIUM) -> int:
        """Sends a file, and does not wait for the answer; answers the Message ID of the request.

        That the association breaks over it is said by `finish`, when what the peer had answered before is told.

        Raises
        ------
        StoreRefused
            The peer takes nothing of the kind, or the file cannot be read. If that was found too late, the association is over.
        """
        context = self._choose(file)
        with ExitStack() as stack:
            stream = _made_for(file, context, stack)
            message_id = self._next_message_id()
            context_id = self._association.accepted[context]
            names = archived_as(file.sop_class_uid, file.sop_instance_uid, context.sop_class_uid)
            request = _store_request(names, message_id, priority)
            self._awaited.add(message_id)
            try:
                if stream is None:
                    self._send_as_it_is(file, context_id, request)
                else:
                    self._send_made(stream, context_id, request)
            except PeerUnreachable as error:
                self._broken, self._cut_off = error, message_id
            except StoreRefused as error:
                self._awaited.discard(message_id)
                if not self.is_open:
                    self._broken = PeerUnreachable(f"the association with {self._peer} was ended over another file: {error}")
                raise
        return message_id

    def finish(self) -> StoreAnswer:
        """Answers the next response to a store that was begun, whichever that is.

        Raises
        ------
        PeerUnreachable
            None of those that are open will be answered any more: the peer may have stored them or not. The association is over.
        """
        try:
            message_id, answer = self._association.receive_any_response(CommandField.C_STORE_RSP, self._awaited)
        except PeerUnreachable as error:
            self._awaited.clear()
            if self._broken is None or self._association.was_aborted:
                raise
            raise self._broken from error
        self._awaited.discard(message_id)
        try:
            note = judge_status(answer)
        except DeliveryError as error:
            return StoreAnswer(message_id, error=error)
        if message_id == self._cut_off:
            return StoreAnswer(message_id, error=self._broken)  # success of half a file is none
        return StoreAnswer(message_id, note)

    def has(self, delivery: "DeliveryRecord") -> bool:
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
        while self._message_id in self._awaited:
            self._message_id = self._message_id % _LAST_MESSAGE_ID + 1
        return self._message_id

    def _choose(self, file: Part10File) -> Context:
        own = (*compressed_contexts(file.sop_class_uid, file.transfer_syntax_uid, EVERY_COMPRESSION), *file.contexts)
        offered = (*own, *older_contexts(file.sop_class_uid))
        context = next((context for context in offered if context in self._association.accepted), None)
        if context is None:
            from pydicom.uid import UID

            syntax, sop_class = UID(file.transfer_syntax_uid).name, UID(file.sop_class_uid).name
            raise StoreRefused(f"{self._peer} accepts no presentation context for {sop_class} in {syntax}")
        return context

    def _send_as_it_is(self, file: Part10File, context_id: int, request: Command) -> None:
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(error) from error
        try:
            self._association.send_file(context_id, request, descriptor, file.offset)
        except FileFailed as error:
            raise StoreRefused(str(error)) from error
        finally:
            os.close(descriptor)

    def _send_made(self, stream: Readable, context_id: int, request: Command) -> None:
        self._association.send_command(context_id, request)
        try:
            self._association.send_data_set(context_id, stream)
        except (OSError, StoreRefused) as error:  # of reading the file: a part is on its way, and the association cannot go on
            self._association.abort()
            raise error if isinstance(error, StoreRefused) else _unreadable(error) from error

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


def store_files(peer: Peer, files: Iterable[Part10File], timeouts: Timeouts | None = None) -> Iterator[StoreOutcome]:
    """Sends files to a peer over one association, and answers what became of each as it happens; never raises a DeliveryError.

    When the association breaks, the file on its way has failed and the next ones go over a new one; when none can be had, all the
    rest have failed.
    """
    for batch in batches(files):
        waiting = WaitingFiles(batch)
        try:
            yield from store_waiting(peer, waiting, timeouts)
        except DeliveryError as error:
            yield from (StoreOutcome(file.path, file.sop_instance_uid, error) for file in waiting.take_all())


class WaitingFiles:
    """Files that wait to be sent, for several associations to take from."""

    def __init__(self, files: Sequence[Part10File]) -> None:
        """All of them fit the contexts of one association."""
        self.contexts = contexts_for(files)
        self._waiting = deque((file, False) for file in files)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> tuple[Part10File, bool] | None:
        """Answers the next file and whether it must go alone, None when there is none."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def take_all(self) -> list[Part10File]:
        """Answers all that wait."""
        return [taken[0] for taken in iter(self.take, None)]

    def put_back(self, files: Iterable[Part10File]) -> None:
        """Makes files go first, each alone: an association broke over one of them, nobody knows which."""
        self._waiting.extendleft((file, True) for file in reversed(list(files)))


def store_waiting(peer: Peer, waiting: WaitingFiles, timeouts: Timeouts | None = None) -> Iterator[StoreOutcome]:
    """Sends files as long as any wait, over one association after the other; raises the DeliveryError why there is none any more."""
    while waiting:
        with StoreScu(peer, waiting.contexts, timeouts) as scu:
            yield from _store_over(scu, waiting)


def _store_over(scu: StoreScu, waiting: WaitingFiles) -> Iterator[StoreOutcome]:
    """Sends until none waits or the association is over."""
    begun: dict[int, Part10File] = {}
    suspects = 2
    while (taken := waiting.take() if scu.is_open else None) is not None:
        file, alone = taken
        if alone and begun:
            yield from _finish(scu, begun, waiting)
            waiting.put_back([file])
            continue
        try:
            begun[scu.begin(file)] = file
        except StoreRefused as error:
            yield StoreOutcome(file.path, file.sop_instance_uid, error)
            suspects = 2 if scu.is_open else 1  # it is known which file broke the association: none of the others
        else:
            yield from _finish(scu, begun, waiting, most=0 if alone else scu.operations - 1)
    yield from _finish(scu, begun, waiting, suspects=suspects)


def _finish(
    scu: StoreScu, begun: dict[int, Part10File], waiting: WaitingFiles, *, most: int = 0, suspects: int = 2
) -> Iterator[StoreOutcome]:
    """Takes answers until at most so many files are open; of several that are lost together each is tried alone another time."""
    while len(begun) > most:
        try:
            answer = scu.finish()
        except PeerUnreachable as error:
            lost = list(begun.values())
            begun.clear()
            if len(lost) >= suspects:
                waiting.put_back(lost)
            else:
                yield from (StoreOutcome(file.path, file.sop_instance_uid, error) for file in lost)
            return
        file = begun.pop(answer.message_id)
        yield StoreOutcome(file.path, file.sop_instance_uid, answer.error, answer.note)


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


def _made_for(file: Part10File, context: Context, stack: ExitStack) -> Readable | None:
    """Answers what is sent over a context, None where that is the data set as it lies on the disk; `stack` closes it."""
    if context.sop_class_uid != file.sop_class_uid:
        return io.BytesIO(older_report(file.path, context.sop_class_uid, context.transfer_syntax_uid))
    if context.transfer_syntax_uid == file.transfer_syntax_uid:
        return None
    compress = _COMPRESSIONS.get(context.transfer_syntax_uid)
    if compress is None:
        return _reencoded(file, context.transfer_syntax_uid)
    try:
        stream = stack.enter_context(file.path.open("rb"))
        stream.seek(file.offset)
    except OSError as error:
        raise _unreadable(error) from error
    return compress(stream)


def _unreadable(error: OSError) -> StoreRefused:
    return StoreRefused(f"the file cannot be read: {error.strerror or type(error).__name__}")


def _reencoded(file: Part10File, transfer_syntax_uid: str) -> BinaryIO:
    """Answers the data set in another native transfer syntax, for a peer that does not take it as it is."""
    from pydicom import dcmread
    from pydicom.uid import UID
    from pynetdicom.dsutils import encode

    syntax = UID(transfer_syntax_uid)
    try:
        encoded = encode(dcmread(file.path), syntax.is_implicit_VR, syntax.is_little_endian)
    except Exception as error:  # pydicom raises whatever its parsers meet in a malformed file
        raise StoreRefused(f"the file cannot be re-encoded in {syntax.name} ({type(error).__name__})") from error
    if encoded is None:
        raise StoreRefused(f"the file cannot be re-encoded in {syntax.name}")
    return io.BytesIO(encoded)
