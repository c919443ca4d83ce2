"""Confirmation: asks a destination whether it keeps what it stored, by storage commitment (PS3.4 Annex J) or by query."""

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from node.codes import StoreStatus
from node.delivery.destination import Destination, facts_of
from node.delivery.query import FIND_CONTEXT, has_instance
from node.delivery.upper_layer import Context, Message, RequestedAssociation
from node.domain.commitment import AfterFailure, Confirm, Means, ask_again_at, choose_means, is_missed, judge_failure
from node.errors import DeliveryError, PeerUnreachable
from node.journal import CommitmentJournal, OutboxJournal
from node.journal.commitments import NOT_CONFIRMED_YET, AwaitedConfirmation
from node.network import (
    DATA_SET_FOLLOWS,
    NO_DATA_SET,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    VERIFICATION,
    CommandElement,
    CommandField,
    GeneralStatus,
)
from node.network.command import Command, number_in
from node.network.commitment import MalformedReport, decode_commitment_report, encode_commitment_request

COMMITMENT_CONTEXT: Final = Context(STORAGE_COMMITMENT, "1.2.840.10008.1.2")
"""In Implicit VR Little Endian, which every peer must take (PS3.5 10.1)."""

REQUEST_STORAGE_COMMITMENT: Final = 1
"""Action Type ID (PS3.4 Table J.3.2-1)."""

FOUND_BY_QUERY: Final = "found by query"
NEITHER: Final = "the archive offers neither storage commitment nor query"

_WARNINGS: Final = range(0xB000, 0xC000)
_REQUEST_ID: Final = 1
"""Of the N-ACTION; queries on the same association count on from it."""

log = structlog.get_logger("radnode")


class Confirmer:
    """Asks one destination about what it stored. One object serves one thread."""

    def __init__(
        self, journal: CommitmentJournal, outbox: OutboxJournal, destination: Destination, *, clock: Callable[[], float] | None = None
    ) -> None:
        self._journal = journal
        self._outbox = outbox
        self._destination = destination
        self._clock = clock or time.time
        self._absent_once: set[int] = set()
        """Deliveries that one query did not find. Forgotten at a restart: they are asked about once more then."""

    def confirm_due(self, now_s: float, stop: threading.Event | None = None) -> int:
        """Asks about what is due, over one association; answers how many deliveries it was about, 0 when nothing is to be asked now."""
        name, settle_s = self._destination.name, self._destination.confirmation.settle_s
        due = self._journal.awaited(name, now_s=now_s, until_s=now_s + settle_s)
        if self._destination.confirm is Confirm.NONE:
            self._journal.waive([one.delivery.delivery_id for one in due], reason="")
            return len(due)
        awaited = {one.delivery.delivery_id: one for one in self._without_missed(due, now_s)}
        if not awaited or self._sending_waits_for_it(now_s):
            return 0
        count = len(awaited)
        try:
            with RequestedAssociation(self._destination.peer, self._contexts(), self._destination.timeouts) as association:
                if self._outbox.outage(name) is not None:
                    self._outbox.end_outage(name)
                self._ask(association, awaited, stop)
        except DeliveryError as error:
            self._later(awaited.values(), str(error))
            log.warning("confirmation.postponed", destination=name, deliveries=count, reason=str(error))
        return count

    def _without_missed(self, due: Sequence[AwaitedConfirmation], now_s: float) -> list[AwaitedConfirmation]:
        kept = []
        for one in due:
            delivery, policy = one.delivery, self._destination.confirmation
            if is_missed(asked=delivery.confirm_attempts, stored_at_s=delivery.stored_at or 0.0, now_s=now_s, policy=policy):
                last = delivery.reason.removeprefix(NOT_CONFIRMED_YET) or "no report"
                reason = f"stored, but not confirmed though asked {delivery.confirm_attempts} times; last: {last}"
                self._journal.miss([delivery.delivery_id], reason=reason)
                log.error("confirmation.missed", **facts_of(delivery), reason=delivery.reason)
            else:
                kept.append(one)
        return kept

    def _sending_waits_for_it(self, now_s: float) -> bool:
        """Whether the destination is down: the next to try it is the sender, if there is anything to send."""
        outage = self._outbox.outage(self._destination.name)
        return outage is not None and (now_s < outage.next_attempt_s or self._destination.name in self._outbox.destinations_due(now_s))

    def _contexts(self) -> tuple[Context, ...]:
        match self._destination.confirm:
            case Confirm.COMMITMENT:
                return (COMMITMENT_CONTEXT,)
            case Confirm.QUERY:
                return (FIND_CONTEXT,)
        # Verification is taken by every peer: one that takes none of the others may reject the association, and could not say so.
        return (COMMITMENT_CONTEXT, FIND_CONTEXT, Context(VERIFICATION, COMMITMENT_CONTEXT.transfer_syntax_uid))

    def _ask(self, association: RequestedAssociation, awaited: dict[int, AwaitedConfirmation], stop: threading.Event | None) -> None:
        """Asks about each by the means that the archive takes; what has had its turn is taken out of `awaited`."""
        takes_commitment = COMMITMENT_CONTEXT in association.accepted
        plan = self._plan(association, awaited.values(), commitment=takes_commitment)
        refusal = ""
        if plan[Means.COMMITMENT]:
            asked = plan.pop(Means.COMMITMENT)
            status = self._request(association, asked, awaited)
            if status is not None:
                refusal = f"the archive refused the request for commitment with {status:04X}"
                temporary = judge_failure(status) is AfterFailure.ASK_AGAIN
                for means, group in self._plan(association, asked, commitment=False).items():
                    plan[Means.LATER if means is Means.WAIVE and temporary else means] += group
        self._query(association, plan[Means.QUERY], awaited, stop)
        if plan[Means.WAIVE]:
            self._waive(plan[Means.WAIVE], awaited, f"{NEITHER} ({refusal})" if refusal else NEITHER)
        later = plan[Means.LATER]
        if later and refusal:
            self._explain(later, refusal)
        elif later:
            self._later(later, f"the archive does not offer what [peers.{self._destination.name}] confirm names")
        _take_out(awaited, later)

    def _plan(
        self, association: RequestedAssociation, items: Iterable[AwaitedConfirmation], *, commitment: bool
    ) -> defaultdict[Means, list[AwaitedConfirmation]]:
        query, plan = FIND_CONTEXT in association.accepted, defaultdict[Means, list[AwaitedConfirmation]](list)
        for one in items:
            destination = self._destination
            means = choose_means(
                destination.confirm, unreported=one.unreported, commitment=commitment, query=query, policy=destination.confirmation
            )
            plan[means].append(one)
        return plan

    def _request(
        self, association: RequestedAssociation, asked: Sequence[AwaitedConfirmation], awaited: dict[int, AwaitedConfirmation]
    ) -> int | None:
        """Asks for commitment in one transaction, which is durable before; answers the status of a refusal, None when it was accepted."""
        now_s = self._clock()
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        self._journal.open_request(transaction_uid, self._destination.name, self._times(asked), now_s=now_s)
        _take_out(awaited, asked)
        references = [one.delivery.archived_as for one in asked]
        data_set = encode_commitment_request(transaction_uid, references)
        try:
            association.send_message(association.accepted[COMMITMENT_CONTEXT], _commitment_request(), data_set)
            status = self._response(association)
        except DeliveryError as error:
            self._explain(asked, f"the request for commitment has no answer: {error}")
            raise
        facts = {"destination": self._destination.name, "transaction_uid": transaction_uid, "deliveries": len(asked)}
        if status != StoreStatus.SUCCESS and status not in _WARNINGS:
            self._journal.close_request(transaction_uid, now_s=self._clock())
            log.warning("commitment.refused", **facts, status=f"{status:04X}")
            return status
        log.info("commitment.requested", **facts)
        self._await_report(association, transaction_uid)
        return None

    def _response(self, association: RequestedAssociation) -> int:
        deadline = time.monotonic() + self._destination.timeouts.answer_s
        while True:
            message = association.receive_message(max(0.0, deadline - time.monotonic()))
            if message is None:
                raise PeerUnreachable("the archive does not answer the request for commitment")
            field = number_in(message.command, CommandElement.COMMAND_FIELD)
            if field == CommandField.N_EVENT_REPORT_RQ:
                self._take_report(association, message)  # an archive may be quicker with the report than with the response
                continue
            status = number_in(message.command, CommandElement.STATUS)
            responded = number_in(message.command, CommandElement.MESSAGE_ID_RESPONDED_TO)
            if field != CommandField.N_ACTION_RSP or responded != _REQUEST_ID or status is None:
                raise PeerUnreachable("the archive sent what is no answer to the request for commitment")
            return status

    def _await_report(self, association: RequestedAssociation, transaction_uid: str) -> None:
        """Waits a little for the report on the same association; later it comes to our listener."""
        deadline = time.monotonic() + self._destination.confirmation.report_wait_s
        while not self._journal.is_reported(transaction_uid):
            message = association.receive_message(max(0.0, deadline - time.monotonic()))
            if message is None:
                return
            if number_in(message.command, CommandElement.COMMAND_FIELD) != CommandField.N_EVENT_REPORT_RQ:
                raise PeerUnreachable("the archive sent what nobody asked for")
            self._take_report(association, message)

    def _take_report(self, association: RequestedAssociation, message: Message) -> None:
        """Records a report and answers it: success when it is durable."""
        status: int = GeneralStatus.INVALID_ARGUMENT_VALUE
        try:
            report = decode_commitment_report(message.data_set, COMMITMENT_CONTEXT.transfer_syntax_uid)
        except MalformedReport as error:
            log.warning("commitment.malformed", destination=self._destination.name, reason=str(error))
        else:
            known = self._journal.record_report(report, now_s=self._clock())
            status = StoreStatus.SUCCESS if known else status
            facts = {"transaction_uid": report.transaction_uid, "committed": len(report.committed), "failed": len(report.failed)}
            log.info("commitment.reported", destination=self._destination.name, known=known, **facts)
        association.send_message(message.context_id, _report_response(message.command, status))

    def _query(
        self,
        association: RequestedAssociation,
        asked: Sequence[AwaitedConfirmation],
        awaited: dict[int, AwaitedConfirmation],
        stop: threading.Event | None,
    ) -> None:
        for number, one in enumerate(asked):
            if stop is not None and stop.is_set():
                return  # the rest is still due
            answer = has_instance(association, one.delivery, _REQUEST_ID + 1 + number, answer_s=self._destination.timeouts.answer_s)
            if answer.refusal:
                if self._destination.confirm is Confirm.AUTO and not answer.temporary and COMMITMENT_CONTEXT not in association.accepted:
                    self._waive(asked[number:], awaited, f"{NEITHER} ({answer.refusal})")
                else:
                    self._later(asked[number:], answer.refusal)
                    _take_out(awaited, asked[number:])
                return
            if answer.found:
                self._journal.give(one.delivery.delivery_id, reason=FOUND_BY_QUERY, now_s=self._clock())
                self._absent_once.discard(one.delivery.delivery_id)
            else:
                self._note_absence(one)
            _take_out(awaited, [one])

    def _note_absence(self, one: AwaitedConfirmation) -> None:
        """Sends again what two queries did not find, the second after a pause: an archive may file with delay."""
        delivery = one.delivery
        if delivery.delivery_id not in self._absent_once:
            self._absent_once.add(delivery.delivery_id)
            self._later([one], "a query did not find it")
            return
        self._absent_once.discard(delivery.delivery_id)
        reason = "stored, but two queries did not find it"
        self._journal.send_again(delivery.delivery_id, reason=reason, now_s=self._clock())
        log.warning("delivery.lost", **facts_of(delivery), reason=reason)

    def _waive(self, items: Sequence[AwaitedConfirmation], awaited: dict[int, AwaitedConfirmation], reason: str) -> None:
        self._journal.waive([one.delivery.delivery_id for one in items], reason=reason)
        log.info("confirmation.waived", destination=self._destination.name, deliveries=len(items), reason=reason)
        _take_out(awaited, items)

    def _later(self, items: Iterable[AwaitedConfirmation], reason: str) -> None:
        self._journal.ask_later(self._times(items), reason=reason)

    def _explain(self, items: Iterable[AwaitedConfirmation], reason: str) -> None:
        self._journal.explain([one.delivery.delivery_id for one in items], reason=reason)

    def _times(self, items: Iterable[AwaitedConfirmation]) -> dict[int, float]:
        """Answers when to ask again about each."""
        now_s, policy = self._clock(), self._destination.confirmation
        return {one.delivery.delivery_id: ask_again_at(one.delivery.confirm_attempts + 1, now_s=now_s, policy=policy) for one in items}


def _take_out(awaited: dict[int, AwaitedConfirmation], items: Iterable[AwaitedConfirmation]) -> None:
    for one in items:
        awaited.pop(one.delivery.delivery_id, None)


def _commitment_request() -> Command:
    return {
        CommandElement.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
        CommandElement.COMMAND_FIELD: CommandField.N_ACTION_RQ,
        CommandElement.MESSAGE_ID: _REQUEST_ID,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
        CommandElement.REQUESTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.ACTION_TYPE_ID: REQUEST_STORAGE_COMMITMENT,
    }


def _report_response(report: Command, status: int) -> Command:
    return {
        CommandElement.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
        CommandElement.COMMAND_FIELD: CommandField.N_EVENT_REPORT_RSP,
        CommandElement.MESSAGE_ID_RESPONDED_TO: number_in(report, CommandElement.MESSAGE_ID) or 0,
        CommandElement.DATA_SET_TYPE: NO_DATA_SET,
        CommandElement.STATUS: status,
        CommandElement.AFFECTED_SOP_INSTANCE_UID: STORAGE_COMMITMENT_INSTANCE,
        CommandElement.EVENT_TYPE_ID: number_in(report, CommandElement.EVENT_TYPE_ID) or 1,
    }
