"""The node as origin server of DICOMweb: what it takes over the web, from whom, how it answers."""

from http import HTTPStatus
from typing import Final

from node.codes import FailureReason, StoreStatus
from node.config import StowSection
from node.conformance_statement.markdown import Section, bullets, paragraphs, table
from node.conformance_statement.names import status_words
from node.errors import IntakeError
from node.intake.conversation import ARTIM_S
from node.intake.stow.answer import OFFERED
from node.intake.stow.http import LONGEST_HEAD_BYTES
from node.intake.stow.multipart import LONGEST_BOUNDARY, LONGEST_PART_HEAD_BYTES
from node.intake.stow.part10 import LONGEST_META_BYTES
from node.intake.stow.rules import STUDIES
from node.intake.stow.store import MOST_PARTS
from node.network.link import SLOWEST_BYTES_PER_S

STATUSES: Final = {
    HTTPStatus.OK: "every instance is safe",
    HTTPStatus.ACCEPTED: "some are safe, others were refused; or the body broke off behind those that are safe",
    HTTPStatus.BAD_REQUEST: "the body is no multipart body, has no part, or the path names no UID",
    HTTPStatus.UNAUTHORIZED: "`stow.token_file` is set, and the request shows no token of it",
    HTTPStatus.FORBIDDEN: "nobody has to show a token or certificate, and the sender has not the address of a peer that may send",
    HTTPStatus.NOT_FOUND: "any other path",
    HTTPStatus.METHOD_NOT_ALLOWED: "any other method than POST",
    HTTPStatus.NOT_ACCEPTABLE: "none of the media types of the answer is acceptable",
    HTTPStatus.REQUEST_TIMEOUT: "silence, or slowness, in the middle of a request",
    HTTPStatus.CONFLICT: "no instance was stored; the response says why",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"the body is longer than `stow.max_body_mib`, or has more than {MOST_PARTS} parts",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "the body is no multipart of application/dicom, or has a Content-Encoding",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"request line and headers are longer than {LONGEST_HEAD_BYTES >> 10} KiB",
    HTTPStatus.INTERNAL_SERVER_ERROR: "a fault of the node; it is in its log",
    HTTPStatus.SERVICE_UNAVAILABLE: "no instance could be kept for want of room, `stow.max_connections` requests are being taken, or the node "
    "stops; Retry-After says when to come again",
}
REASONS: Final = {
    FailureReason.PROCESSING_FAILURE: "a fault of the node; it is in its log",
    FailureReason.SOP_CLASS_NOT_SUPPORTED: "the SOP class is no storage SOP class of 5.1.1",
    FailureReason.TRANSFER_SYNTAX_NOT_SUPPORTED: "the transfer syntax is none of 5.1.2",
}


def origin_server() -> Section:
    """Answers what there is to say about the node as origin server."""
    return Section(
        "DICOMweb: Studies Web Service as origin server",
        "Off unless `stow.port` is set. Of the transactions of PS3.18 Chapter 10 the node offers Store (STOW-RS, 10.5), and no other.",
        (
            Section("Store: requests", _requests()),
            Section("Store: responses", _responses()),
            Section("Store: limits and admission", _limits()),
        ),
    )


def _requests() -> str:
    path = f"{StowSection().path}{STUDIES}"
    return paragraphs(
        table(
            ("resource", "method", "meaning"),
            [(f"`{path}`", "POST", "instances of any studies"), (f"`{path}/{{study}}`", "POST", "instances of this study; of others none")],
        ),
        bullets(
            f"The base path is `stow.path`, `{StowSection().path}` unless configured.",
            'The body is `multipart/related; type="application/dicom"`: each part is a Part 10 file with preamble and file meta information. '
            "Metadata with bulk data (application/dicom+json, application/dicom+xml) is not taken.",
            "HTTP/1.1, with Content-Length or chunked; Expect: 100-continue, persistent connections and pipelining are supported.",
            "SOP classes and transfer syntaxes are those of storage over DIMSE (5.1.1, 5.1.2), and what is said there of storage holds: data "
            "sets are kept byte for byte, and nothing is coerced. The file meta information is written anew; SOP Class, SOP Instance and "
            "Transfer Syntax UID must stand in it.",
        ),
    )


def _responses() -> str:
    rows = [
        (f"0x{kind.dimse_status:04X}", status_words(kind.dimse_status.name), str(kind.__doc__)) for kind in IntakeError.__subclasses__()
    ]
    rows += [(f"0x{reason:04X}", status_words(reason.name), when) for reason, when in REASONS.items()]
    return paragraphs(
        f"The Store Instances Response Module in {' or '.join(OFFERED)}, the first unless Accept wants the other. There is no Retrieve URL and "
        f"no Warning Reason. A part that does not come to say its UIDs is an item of the Other Failures Sequence (0008,119A), with reason "
        f"0x{StoreStatus.CANNOT_UNDERSTAND:04X}. An instance is in the Referenced SOP Sequence when it is as safe as one that C-STORE was "
        "answered 0x0000 for; a request that breaks off leaves those before the break.",
        table(("HTTP status", "meaning", "when"), [(int(status), status.phrase, when) for status, when in STATUSES.items()]),
        table(("Failure Reason (0008,1197)", "meaning", "when"), rows),
    )


def _limits() -> str:
    defaults = StowSection()
    rows = [
        ("requests at once", f"`stow.max_connections`, {defaults.max_connections} unless configured"),
        ("time for TLS handshake and for the head of a request", f"{ARTIM_S:g} s, or `listener.network_timeout_s` where that is less"),
        ("silence after which a request is given up, or an idle connection closed", "`listener.network_timeout_s`"),
        ("slowest transfer", f"a body may make the node wait for the time of one silence and 1 s for each {SLOWEST_BYTES_PER_S} bytes"),
        ("longest body", "`stow.max_body_mib`, no limit unless configured"),
        ("longest head of a part, longest boundary", f"{LONGEST_PART_HEAD_BYTES >> 10} KiB, {LONGEST_BOUNDARY} characters"),
        ("longest preamble and file meta information", f"{LONGEST_META_BYTES >> 10} KiB"),
        ("parts of a request", MOST_PARTS),
    ]
    return paragraphs(
        table(("limit", "value"), rows),
        "Who may store: with `stow.token_file`, whoever shows a token of it (RFC 6750); with `stow.tls`, whoever shows a certificate of a "
        "trusted authority, unless `stow.client_certificates = false`; with neither, a caller from this machine, and one with an address of "
        "a peer with `may_send = true` (anybody where `listener.accept_unlisted_peers` is set). Instances are recorded under "
        "`stow.calling_ae_title`, or under the AE title that stands before the token.",
    )
