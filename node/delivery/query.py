"""C-FIND as service class user: does a peer have this object (PS3.4 C.4.1, Study Root, level IMAGE)."""

import time
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

from node.codes import StoreStatus
from node.delivery.upper_layer import Context, Message, RequestedAssociation
from node.errors import PeerUnreachable
from node.network import DATA_SET_FOLLOWS, CommandElement, CommandField, GeneralStatus
from node.network.command import Command, number_in

if TYPE_CHECKING:
    from node.journal import DeliveryRecord

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""

FIND_CONTEXT: Final = Context(STUDY_ROOT_FIND, "1.2.840.10008.1.2")
"""In Implicit VR Little Endian, which every peer must take (PS3.5 10.1)."""

LONGEST_QUERY_S: Final = 60.0
MOST_MATCHES: Final = 1000
"""A query by SOP Instance UID has one match; a peer that passes over the key may answer with a whole series."""

_PENDING: Final = frozenset({0xFF00, 0xFF01})
_OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)
_UNABLE_TO_PROCESS: Final = range(0xC000, 0xD000)
_MEDIUM_PRIORITY: Final = 0


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """What a peer says when it is asked whether it has an object."""

    found: bool
    refusal: str = ""
    """Why the peer does not say, '' where it does."""
    temporary: bool = False
    """Whether it may say another time."""


def has_instance(association: RequestedAssociation, wanted: "DeliveryRecord", message_id: int, *, answer_s: float) -> QueryAnswer:
    """Asks over an association, which has accepted FIND_CONTEXT, whether the peer has an object; it may be silent for `answer_s`.

    Raises
    ------
    PeerUnreachable
        When the peer breaks the association, is silent, or answers without end. That is no answer.
    """
    context_id = association.accepted[FIND_CONTEXT]
    request: Command = {
        CommandElement.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
        CommandElement.COMMAND_FIELD: CommandField.C_FIND_RQ,
        CommandElement.MESSAGE_ID: message_id,
        CommandElement.PRIORITY: _MEDIUM_PRIORITY,
        CommandElement.DATA_SET_TYPE: DATA_SET_FOLLOWS,
    }
    association.send_message(context_id, request, _identifier(wanted))
    deadline = time.monotonic() + LONGEST_QUERY_S
    found = False
    for _ in range(MOST_MATCHES):
        message = association.receive_message(min(answer_s, max(0.0, deadline - time.monotonic())))
        if message is None:
            raise PeerUnreachable("the peer does not answer a query (C-FIND)")
        status = _status(message, message_id)
        if status not in _PENDING:
            return _judge(status, found=found)
        found = found or _names(message.data_set, wanted.archived_as[1])
    raise PeerUnreachable(f"the peer answers a query (C-FIND) for one object with more than {MOST_MATCHES}")


def _identifier(wanted: "DeliveryRecord") -> bytes:
    from pydicom.dataset import Dataset
    from pynetdicom.dsutils import encode

    keys = Dataset()
    keys.SOPInstanceUID = wanted.archived_as[1]
    keys.QueryRetrieveLevel = "IMAGE"
    keys.StudyInstanceUID = wanted.study_instance_uid
    keys.SeriesInstanceUID = wanted.series_instance_uid
    encoded = encode(keys, is_implicit_vr=True, is_little_endian=True)
    if encoded is None:
        raise AssertionError("four UIDs and a word can be encoded")
    return encoded


def _status(message: Message, message_id: int) -> int:
    status = number_in(message.command, CommandElement.STATUS)
    field = number_in(message.command, CommandElement.COMMAND_FIELD)
    responded = number_in(message.command, CommandElement.MESSAGE_ID_RESPONDED_TO)
    if status is None or field != CommandField.C_FIND_RSP or responded != message_id:
        raise PeerUnreachable("the peer sent what is no answer to our query (C-FIND)")
    return status


def _judge(status: int, *, found: bool) -> QueryAnswer:
    if status == StoreStatus.SUCCESS or found:
        return QueryAnswer(found)
    temporary = status in _OUT_OF_RESOURCES or status in _UNABLE_TO_PROCESS or status == GeneralStatus.PROCESSING_FAILURE
    return QueryAnswer(found=False, refusal=f"the peer answered the query (C-FIND) with {status:04X}", temporary=temporary)


def _names(data_set: bytes, sop_instance_uid: str) -> bool:
    """Answers whether a match is the object: a peer that does not know a key passes over it."""
    from pydicom.filereader import read_dataset

    from node.network.malformed import MALFORMED_DATA_SET

    try:
        match = read_dataset(BytesIO(data_set), is_implicit_VR=True, is_little_endian=True)
        return str(match.get("SOPInstanceUID", "")) == sop_instance_uid
    except MALFORMED_DATA_SET:
        return False  # whatever that was, it does not name the object
