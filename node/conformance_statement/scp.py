"""The node as acceptor of associations: what it takes, whom it admits, how it answers."""

from typing import Final

from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext

from node.codes import StoreStatus
from node.config import ListenerSection
from node.conformance_statement.markdown import Section, bullets, paragraphs, table
from node.conformance_statement.names import class_name, status_words, syntax_name
from node.errors import IntakeError
from node.intake.admission import FRESH_S
from node.intake.association import LONGEST_PDU_BYTES
from node.intake.contexts import supported_contexts
from node.intake.conversation import ARTIM_S, LONGEST_COMMAND_BYTES, LONGEST_REQUEST_BYTES
from node.intake.door import SPARE_CONNECTIONS
from node.intake.handlers import COMMITMENT_EVENTS
from node.intake.uids import HEAD_BYTES
from node.network import STORAGE_COMMITMENT, VERIFICATION, AbortReason, GeneralStatus, Rejection
from node.network.commitment import LONGEST_REPORT_BYTES
from node.network.deflate import LONGEST_INFLATED_BYTES
from node.network.link import SLOWEST_BYTES_PER_S

REJECTIONS: Final = {
    Rejection.CALLED_AE_TITLE: "the Called AE Title is not `node.ae_title`",
    Rejection.CALLING_AE_TITLE: "no peer of the configuration has this Calling AE Title, or it calls from another address than its host",
    Rejection.LOCAL_LIMIT: "`listener.max_associations` are open",
}
ABORTS: Final = {
    AbortReason.NOT_SPECIFIED: "silence, slowness, a broken PDU, parts that do not belong together; the node stops",
    AbortReason.UNEXPECTED_PDU: "a PDU that has no place in an association",
    AbortReason.INVALID_PARAMETER: "the first PDU is no A-ASSOCIATE-RQ that can be answered",
}
GENERAL: Final = {
    GeneralStatus.PROCESSING_FAILURE: "a fault of the node; it is in its log",
    GeneralStatus.UNRECOGNIZED_OPERATION: "any other request than those of the accepted services",
    GeneralStatus.NO_SUCH_SOP_CLASS: "N-EVENT-REPORT of another class than Storage Commitment Push Model",
    GeneralStatus.NO_SUCH_EVENT_TYPE: f"N-EVENT-REPORT with an Event Type ID other than {' or '.join(map(str, sorted(COMMITMENT_EVENTS)))}",
    GeneralStatus.INVALID_ARGUMENT_VALUE: "N-EVENT-REPORT that cannot be read, or with a Transaction UID of no request of ours",
}
"""Answers of PS3.7 Annex C that the node gives as performer, and when."""

_MIB: Final = 1 << 20


def storage_classes() -> list[PresentationContext]:
    """Answers the contexts of storage, of those that are accepted."""
    return [context for context in supported_contexts(reports=True) if context.abstract_syntax not in {VERIFICATION, STORAGE_COMMITMENT}]


def storage_syntaxes() -> list[str]:
    """Answers the transfer syntaxes of storage, the preferred first."""
    return list(dict.fromkeys(str(syntax) for context in storage_classes() for syntax in context.transfer_syntax))


def acceptor() -> Section:
    """Answers what there is to say about the node as acceptor."""
    return Section(
        "Association acceptance",
        _policy(),
        (
            Section("Presentation contexts accepted", _contexts()),
            Section("Transfer syntaxes of storage", _syntaxes()),
            Section("SOP-specific conformance: Verification", "C-ECHO is answered 0x0000."),
            Section("SOP-specific conformance: Storage", _storage()),
            Section("SOP-specific conformance: Storage Commitment Push Model", _reports()),
            Section("Rejections and aborts", _rejections()),
        ),
    )


def _policy() -> str:
    defaults = ListenerSection()
    rows = [
        ("application context", "1.2.840.10008.3.1.1.1, the DICOM application context"),
        ("associations at once", f"`listener.max_associations`, {defaults.max_associations} unless configured; {SPARE_CONNECTIONS} further "
         "connections to each process that receives may be negotiating or be rejected"),
        ("Maximum Length asked for", f"`listener.max_pdu_bytes`, {defaults.max_pdu_bytes} unless configured; longer ones are taken up to "
         f"{LONGEST_PDU_BYTES // _MIB} MiB, or the length asked for where that is more"),
        ("time for TLS handshake and A-ASSOCIATE-RQ (ARTIM)", f"{ARTIM_S:g} s, or `listener.network_timeout_s` where that is less"),
        ("silence after which an association is aborted", f"`listener.network_timeout_s`, {defaults.network_timeout_s:g} s unless configured"),
        ("slowest transfer", f"a PDU, and a data set, may take the time of one silence and 1 s for each {SLOWEST_BYTES_PER_S} bytes"),
        ("longest A-ASSOCIATE-RQ, longest command", f"{LONGEST_REQUEST_BYTES >> 10} KiB, {LONGEST_COMMAND_BYTES >> 10} KiB"),
        ("asynchronous operations", "not negotiated: one operation at a time"),
        ("role selection", f"answered: for {class_name(STORAGE_COMMITMENT)} the requestor may be SCP, and not SCU; for all others it is SCU"),
        ("extended negotiation, user identity", "not answered; the defaults hold"),
    ]  # fmt: skip
    return paragraphs(
        table(("policy", "value"), rows),
        f"Who may open an association: the Called AE Title must be `node.ae_title`. A caller from this machine (loopback) is taken. Any other "
        f"must be a peer with `may_send = true` and call with its AE title from an address of its `host` (looked up at most every "
        f"{FRESH_S:g} s), unless `listener.accept_unlisted_peers` is set. A peer that may not send is taken where it proposes nothing but "
        f"{class_name(STORAGE_COMMITMENT)} and Verification, and its `confirm` is `auto` or `commitment`.",
    )


def _contexts() -> str:
    rows = []
    everything = storage_syntaxes()
    for context in supported_contexts(reports=True):
        syntaxes = [str(syntax) for syntax in context.transfer_syntax or ()]
        names = f"all {len(everything)} of the next table" if syntaxes == everything else ", ".join(map(syntax_name, syntaxes))
        role = "SCU" if context.scp_role else "SCP"
        uid = str(context.abstract_syntax)
        rows.append((class_name(uid), f"`{uid}`", names, role, "SCP for the requestor" if role == "SCU" else "none"))
    return paragraphs(
        table(("abstract syntax", "UID", "transfer syntaxes", "our role", "role selection"), rows),
        "A context that offers several transfer syntaxes is accepted in the first of these lists that it offers. Any other abstract "
        "syntax is answered with result 3, a context without a transfer syntax of the list with result 4.",
    )


def _syntaxes() -> str:
    rows = [
        (place, syntax_name(syntax), f"`{syntax}`", "yes" if UID(syntax).is_encapsulated else "no")
        for place, syntax in enumerate(storage_syntaxes(), 1)
    ]
    return paragraphs(
        table(("preference", "transfer syntax", "UID", "compressed"), rows),
        "All are stored as they come. Images are analysed where a decoder for their transfer syntax is installed; where none is, the "
        "report says so.",
    )


def _storage() -> str:
    return paragraphs(
        bullets(
            "Every data set is kept byte for byte, private and unknown elements included; nothing is coerced, nothing validated beyond the "
            "UIDs. The node is no archive: there is no query or retrieve, and images are removed by retention (`retention.*`).",
            '0x0000 is sent when the file and its row in the journal are on the disk (`listener.durability = "power-loss"`), not before.',
            "The same bytes again are success without new work. Other bytes under a known SOP Instance UID are success too: they are kept "
            "beside the first, the log says so, and analyses go on using the first.",
            "A data set without SOP Class or SOP Instance UID is taken under those of the request; one without Study or Series Instance UID "
            "is not.",
            f"The UIDs must stand in the first {HEAD_BYTES // _MIB} MiB; a deflated data set may inflate to "
            f"{LONGEST_INFLATED_BYTES // _MIB} MiB.",
            "Which series are analysed is decided by the routes of the configuration and by model cards; of every other series the reason is "
            "kept (`radnode series list --all`).",
        ),
        "Answers to C-STORE:",
        table(("status", "meaning", "when"), store_statuses()),
    )


def store_statuses() -> list[tuple[str, str, str]]:
    """Answers every status that a C-STORE request can get, with its meaning and when it is given."""
    rows = [(f"0x{StoreStatus.SUCCESS:04X}", "Success", "the instance is safe")]
    for kind in IntakeError.__subclasses__():
        status = kind.dimse_status
        rows.append((f"0x{status:04X}", status_words(status.name), str(kind.__doc__)))
    failure = GeneralStatus.PROCESSING_FAILURE
    return [*rows, (f"0x{failure:04X}", status_words(failure.name), GENERAL[failure])]


def _reports() -> str:
    rows = [(f"0x{StoreStatus.SUCCESS:04X}", "Success", "the report is recorded")]
    rows += [(f"0x{status:04X}", status_words(status.name), when) for status, when in GENERAL.items()]
    return paragraphs(
        "The node is SCU. It takes N-EVENT-REPORT (Event Types 1 and 2) on an association that the SCP opens, and on its own while that is "
        f"open. A report may have {LONGEST_REPORT_BYTES // _MIB} MiB. An object that a report names among the committed and among the "
        "failed ones counts as failed. N-ACTION is not taken: the node is no SCP of Storage Commitment.",
        table(("status", "meaning", "when"), rows),
    )


def _rejections() -> str:
    rejected = [(*rejection.value, REJECTIONS[rejection]) for rejection in Rejection]
    aborted = [("service provider" if reason else "service user", int(reason), ABORTS[reason]) for reason in AbortReason]
    return paragraphs(
        table(("result", "source", "reason", "when"), rejected),
        table(("A-ABORT source", "reason", "when"), aborted),
    )
