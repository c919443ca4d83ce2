"""The node as requestor of associations: what it proposes, what it makes of the answers."""

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final

from node.codes import StoreStatus
from node.config import RetrySection
from node.conformance_statement.markdown import Section, bullets, paragraphs, table
from node.conformance_statement.names import class_name, status_words, syntax_name
from node.conformance_statement.objects import exhibits
from node.delivery.commitment import COMMITMENT_CONTEXT, REQUEST_STORAGE_COMMITMENT
from node.delivery.courier import BATCH
from node.delivery.query import FIND_CONTEXT, LONGEST_QUERY_S, MOST_MATCHES
from node.delivery.store_scu import ECHO_TIMEOUTS, PRIORITY_CODES, Part10File, contexts_for_results, judge_status
from node.delivery.upper_layer import (
    DEFAULT_OPERATIONS,
    LONGEST_PDU_BYTES,
    MAX_CONTEXTS,
    OUR_MAX_PDU_BYTES,
    RELEASE_TIMEOUT_S,
    Context,
    Timeouts,
)
from node.delivery.variants import DEFLATED, EVERY_COMPRESSION, OLDER_CLASSES
from node.domain.commitment import AfterFailure, ConfirmationPolicy, FailureReason, judge_failure
from node.domain.delivery import JITTER
from node.errors import DeliveryError, PeerUnreachable
from node.network import RLE_LOSSLESS, STORAGE_COMMITMENT_INSTANCE, VERIFICATION, CommandElement

STORED: Final = "stored"
_AFTER: Final = {
    AfterFailure.SEND_AGAIN: "the object is sent again",
    AfterFailure.ASK_AGAIN: "the archive is asked again later",
    AfterFailure.ASK_A_PERSON: "the delivery is REFUSED with the reason: a person is needed",
}


def result_contexts() -> tuple[Context, ...]:
    """Answers every context that can be proposed for results."""
    files = [Part10File(Path(), exhibit.sop_class_uid, "", exhibit.transfer_syntax_uid, 0) for exhibit in exhibits()]
    return contexts_for_results(files, EVERY_COMPRESSION)


def requestor() -> Section:
    """Answers what there is to say about the node as requestor."""
    return Section(
        "Association initiation",
        _policy(),
        (
            Section("Presentation contexts proposed", _contexts()),
            Section("SOP-specific conformance: Storage of results", _storage()),
            Section("SOP-specific conformance: Storage Commitment Push Model", _commitment()),
            Section("SOP-specific conformance: Study Root Query/Retrieve – FIND", _find()),
            Section("SOP-specific conformance: Verification and Storage by hand", _by_hand()),
        ),
    )


def _policy() -> str:
    timeouts = Timeouts()
    rows = [
        (
            "associations at once",
            "for each destination `peers.NAME.associations` to send and one to confirm; `radnode send` as many as asked for, `radnode echo` one",
        ),
        ("Calling AE Title", "`node.ae_title`"),
        ("Maximum Length asked for", f"{OUR_MAX_PDU_BYTES}; longer PDUs are taken up to {LONGEST_PDU_BYTES >> 20} MiB"),
        ("presentation contexts", f"at most {MAX_CONTEXTS}, one transfer syntax each; only those that the objects at hand need"),
        ("time to connect", f"{timeouts.connect_s:g} s"),
        ("time for an answer", f"{timeouts.answer_s:g} s"),
        ("time for a release", f"{RELEASE_TIMEOUT_S:g} s"),
        (
            "asynchronous operations",
            f"to store: `peers.NAME.async_operations` invoked (default {DEFAULT_OPERATIONS}), 1 performed; as many are open at once as the peer "
            "grants, one where it does not answer. To confirm, and with 1: not proposed",
        ),
        ("role selection", "not proposed"),
        ("extended negotiation, user identity", "not proposed"),
    ]
    return paragraphs(
        table(("policy", "value"), rows),
        f"An association is opened when a result is due at a destination, or is to be confirmed; up to {BATCH} results go over one, those of "
        "higher priority first.",
    )


def _contexts() -> str:
    optional = {DEFLATED: "with `peers.NAME.deflate`", RLE_LOSSLESS: "with `peers.NAME.rle`"}
    older = {uid for classes in OLDER_CLASSES.values() for uid in classes}
    rows = [
        _context_row(
            context, optional.get(context.transfer_syntax_uid) or ("older class" if context.sop_class_uid in older else "own class")
        )
        for context in result_contexts()
    ]
    rows.append(_context_row(COMMITMENT_CONTEXT, "to confirm"))
    rows.append(_context_row(FIND_CONTEXT, "to confirm; to ask after an attempt without an answer"))
    rows.append(_context_row(Context(VERIFICATION, COMMITMENT_CONTEXT.transfer_syntax_uid), "to confirm, beside the others; by hand"))
    return table(("abstract syntax", "UID", "transfer syntax", "our role", "when"), rows)


def _context_row(context: Context, when: str) -> tuple[str, str, str, str, str]:
    uid = context.sop_class_uid
    return class_name(uid), f"`{uid}`", syntax_name(context.transfer_syntax_uid), "SCU", when


def _storage() -> str:
    retry = RetrySection()
    older = [
        f"{class_name(uid)} goes as {' or '.join(map(class_name, classes))} where the destination takes nothing richer; it is another "
        "object then, with a SOP Instance UID that derives from the first"
        for uid, classes in OLDER_CLASSES.items()
        if uid in {exhibit.sop_class_uid for exhibit in exhibits()}
    ]
    priorities = ", ".join(f"{priority.value} = {code}" for priority, code in sorted(PRIORITY_CODES.items(), key=lambda item: item[1]))
    return paragraphs(
        bullets(
            "Results go as the bytes that were frozen when they were made; in another transfer syntax only where the destination does not "
            "take theirs.",
            *older,
            "A result has one SOP Instance UID for ever: what is sent again is the same object.",
            f"Priority (0000,0700) is that of the route: {priorities}.",
            f"What is tried again waits {retry.first_s:g} s (`retry.first_s`), doubling up to {retry.max_s:g} s (`retry.max_s`), ±{JITTER:.0%}; "
            f"after {retry.give_up_h:g} h (`retry.give_up_h`) it is GIVEN UP and shown.",
            "A destination that no association can be had with, also one that rejects it, costs no result an attempt: it is tried alone, "
            "with the same waits.",
            "After an attempt without an answer the destination is asked by C-FIND, where it takes that, before anything is sent again.",
        ),
        "Answers to C-STORE, and what follows:",
        table(("status", "what follows"), store_answers()),
    )


@cache
def store_answers() -> tuple[tuple[str, str], ...]:
    """Answers what follows each status of a C-STORE response: all 65536 are judged, neighbours with the same end in one row."""
    rows = []
    for end, group in groupby(range(1 << 16), key=_end_of):
        statuses = list(group)
        first, last = statuses[0], statuses[-1]
        if not end.startswith(PeerUnreachable.__name__):
            rows.append((f"0x{first:04X}" + (f" to 0x{last:04X}" if last != first else ""), end))
    return (*rows, ("any other", _end_of((1 << 16) - 1)))


def _end_of(status: int) -> str:
    try:
        note = judge_status({CommandElement.STATUS: status})
    except DeliveryError as error:
        return f"{type(error).__name__}: {'tried again' if error.retryable else 'REFUSED with the reason, not tried again'}"
    return f"{STORED}, with a note" if note else STORED


def _commitment() -> str:
    policy = ConfirmationPolicy()
    return paragraphs(
        bullets(
            f"N-ACTION, Action Type ID {REQUEST_STORAGE_COMMITMENT}, of the well-known instance `{STORAGE_COMMITMENT_INSTANCE}`, for all that was "
            f"stored within {policy.settle_s:g} s together; a new Transaction UID for each request, durable before it is sent.",
            f"The report is awaited for {policy.report_wait_s:g} s on the same association; later it comes to the node's own port, on an "
            "association that the SCP opens with role selection.",
            f"Without a report the request is made again after {policy.first_s:g} s, doubling up to {policy.max_s:g} s. With `confirm = "
            f'"auto"`, after {policy.requests_before_query} requests without a report the archive is asked by C-FIND, where it takes that.',
            f"What was asked about {policy.ask_at_least} times and for `retry.give_up_h` without an answer is MISSED, and shown.",
            '0x0000 and 0xBxxx accept the request. Where it is refused, with `confirm = "auto"` the archive is asked by C-FIND, or, where it '
            'takes no query and the status promises nothing for later, taken at its word (WAIVED); with `confirm = "commitment"` it is asked '
            "again later.",
        ),
        "Failure Reason (0008,1197), and what follows:",
        table(("reason", "meaning", "what follows"), commitment_failures()),
    )


def commitment_failures() -> list[tuple[str, str, str]]:
    """Answers what follows each Failure Reason."""
    rows = [(f"0x{one:04X}", status_words(one.name), _AFTER[judge_failure(one)]) for one in FailureReason]
    return [*rows, ("any other", "", _AFTER[judge_failure(0)])]


def _find() -> str:
    return paragraphs(
        "Used to ask whether a destination has one result, and for nothing else: Query/Retrieve Level IMAGE; Study, Series and SOP Instance "
        "UID as unique keys. No other key is sent, no extended negotiation, no C-CANCEL.",
        bullets(
            "Found is what a pending response (0xFF00, 0xFF01) names by its SOP Instance UID.",
            "0x0000: the answer is whole. 0xA7xx, 0xCxxx and 0x0110: asked again later. Any other: this destination does not say.",
            f"A query may take {LONGEST_QUERY_S:g} s and bring {MOST_MATCHES} matches; more is taken as no answer.",
            "What two queries did not find, though it was stored, is sent again.",
        ),
    )


def _by_hand() -> str:
    return paragraphs(
        "`radnode send` stores files of any SOP class, in their own transfer syntax; those in Implicit, Explicit or Deflated Explicit VR Little "
        f"Endian also in Explicit and Implicit VR Little Endian. Contexts beyond {MAX_CONTEXTS} go over further associations. `radnode echo` and `radnode doctor` send "
        f"C-ECHO; {ECHO_TIMEOUTS.connect_s:g} s to connect, {ECHO_TIMEOUTS.answer_s:g} s to answer.",
        f"0x{StoreStatus.SUCCESS:04X} alone is success of a C-ECHO.",
    )
