"""The beginning of an association: what is asked, what is accepted. pynetdicom parses, negotiates and encodes (PS3.8 9.3.2, 9.3.3)."""

import struct
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from node.codes import IMPLEMENTATION_CLASS_UID
from node.intake.contexts import supported_contexts
from node.network import (
    APPLICATION_CONTEXT,
    CONTEXT_ACCEPTED,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_COMMITMENT,
    VERIFICATION,
    PduType,
    Rejection,
)
from node.network.link import pdu
from node.network.malformed import MALFORMED_PDU

_FIXED_FIELDS_BYTES: Final = 68
"""Protocol version, AE titles and reserved fields, before the items (PS3.8 Table 9-11)."""

_ITEM_HEAD: Final = struct.Struct(">BBH")
_USER_INFORMATION: Final = 0x50
_KNOWN_SUB_ITEMS: Final = range(0x51, 0x5A)
"""Maximum length to user identity (PS3.7 Table D.3-1 to D.3-15)."""


class MalformedRequest(Exception):
    """The bytes are no A-ASSOCIATE request."""


@dataclass(frozen=True, slots=True)
class AssociationRequest:
    """An A-ASSOCIATE request."""

    calling_ae_title: str
    called_ae_title: str
    primitive: A_ASSOCIATE

    @property
    def reports_only(self) -> bool:
        """Whether all that it wants is to report on storage commitments."""
        wanted = {str(context.abstract_syntax) for context in self.primitive.presentation_context_definition_list}
        return STORAGE_COMMITMENT in wanted and wanted <= {STORAGE_COMMITMENT, VERIFICATION}


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Our answer to a request that is accepted."""

    encoded: bytes
    transfer_syntaxes: dict[int, str]
    """Of the accepted presentation contexts, by their ID."""


def read_request(kind: int, body: bytes) -> AssociationRequest:
    """Answers what the first PDU of a connection asks; raises MalformedRequest when it asks nothing that we know."""
    if kind != PduType.ASSOCIATE_RQ:
        raise MalformedRequest(f"PDU {kind}")
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(pdu(PduType.ASSOCIATE_RQ, _recognised(body)))
        primitive = request.to_primitive()
        return AssociationRequest(str(primitive.calling_ae_title).strip(), str(primitive.called_ae_title).strip(), primitive)
    except MALFORMED_PDU as error:
        raise MalformedRequest(type(error).__name__) from error


def _recognised(body: bytes) -> bytes:
    """Answers a request without the sub-items of its user information that nobody knows: they are to be ignored (PS3.8 D.2)."""
    kept, place = [body[:_FIXED_FIELDS_BYTES]], _FIXED_FIELDS_BYTES
    while place + _ITEM_HEAD.size <= len(body):
        kind, _, length = _ITEM_HEAD.unpack_from(body, place)
        item = body[place : place + _ITEM_HEAD.size + length]
        if kind == _USER_INFORMATION and len(item) == _ITEM_HEAD.size + length:
            known = _known_sub_items(item[_ITEM_HEAD.size :])
            item = _ITEM_HEAD.pack(kind, 0, len(known)) + known
        kept.append(item)
        place += _ITEM_HEAD.size + length
    return b"".join((*kept, body[place:]))


def _known_sub_items(user_information: bytes) -> bytes:
    kept, place = [], 0
    while place + _ITEM_HEAD.size <= len(user_information):
        kind, _, length = _ITEM_HEAD.unpack_from(user_information, place)
        if kind in _KNOWN_SUB_ITEMS or place + _ITEM_HEAD.size + length > len(user_information):
            kept.append(user_information[place : place + _ITEM_HEAD.size + length])
        place += _ITEM_HEAD.size + length
    return b"".join((*kept, user_information[place:]))


def accept_request(request: AssociationRequest, max_pdu_bytes: int, *, reports: bool = False) -> Acceptance:
    """Answers which contexts are accepted, and the A-ASSOCIATE-AC PDU that says so; `reports` on commitments where they are taken.

    A proposal of roles is answered where the defaults do not hold anyway. What else may be negotiated (extended negotiation, user
    identity, asynchronous operations) is left unanswered: the defaults hold then (PS3.7 D.3.3). Raises MalformedRequest when the
    request asks for what cannot be answered.
    """
    try:
        proposed = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in request.primitive.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid is not None
        }
        contexts = list(supported_contexts(reports=reports))
        results, roles = negotiate_as_acceptor(request.primitive.presentation_context_definition_list, contexts, proposed)
        encoded = _acceptance_pdu(request.primitive, results, roles, max_pdu_bytes)
    except MALFORMED_PDU as error:
        raise MalformedRequest(type(error).__name__) from error
    syntaxes = {
        context.context_id: str(context.transfer_syntax[0])
        for context in results
        if context.result == CONTEXT_ACCEPTED and context.context_id is not None
    }
    return Acceptance(encoded, syntaxes)


def _acceptance_pdu(
    request: A_ASSOCIATE, results: list[PresentationContext], roles: list[SCP_SCU_RoleSelectionNegotiation], max_pdu_bytes: int
) -> bytes:
    answer = A_ASSOCIATE()
    answer.application_context_name = UID(APPLICATION_CONTEXT)
    answer.calling_ae_title = request.calling_ae_title
    answer.called_ae_title = request.called_ae_title
    answer.result, answer.result_source = 0, 1
    answer.presentation_context_definition_results_list = results
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = max_pdu_bytes
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    answer.user_information = [length, implementation, version, *roles]
    return bytes(A_ASSOCIATE_AC(answer).encode())


def rejection_pdu(rejection: Rejection) -> bytes:
    """Answers the A-ASSOCIATE-RJ PDU (PS3.8 9.3.4)."""
    return pdu(PduType.ASSOCIATE_RJ, bytes([0, *rejection.value]))
