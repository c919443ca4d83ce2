"""Answers to a C-STORE request, and what each means (PS3.4 Table B.2-1, PS3.7 Annex C)."""

from typing import Final

from node.codes import StoreStatus
from node.errors import PeerUnreachable, StoreOutOfResources, StoreRefused
from node.network import CommandElement, GeneralStatus
from node.network.command import Command, number_in, text_in

OUT_OF_RESOURCES: Final = range(0xA700, 0xA800)
DATA_SET_MISMATCH: Final = range(0xA900, 0xAA00)
WARNINGS: Final = range(0xB000, 0xC000)
CANNOT_UNDERSTAND: Final = range(0xC000, 0xD000)
GENERAL_FAILURES: Final = range(0x0100, 0x0300)


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
