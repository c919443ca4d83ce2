"""The beginning of an association: what is asked, what is accepted. pynetdicom parses, negotiates and encodes (PS3.8 9.3.2, 9.3.3)."""

from dataclasses import dataclass

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
        request.decode(pdu(PduType.ASSOCIATE_RQ, body))
        primitive = request.to_primitive()
        return AssociationRequest(str(primitive.calling_ae_title).strip(), str(primitive.called_ae_title).strip(), primitive)
    except MALFORMED_PDU as error:
        raise MalformedRequest(type(error).__name__) from error


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
