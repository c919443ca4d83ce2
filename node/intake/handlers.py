"""From requests to statuses: a handler translates and delegates; it says success only after the data is safe."""

from collections.abc import Callable
from typing import Final

import structlog

from node.codes import StoreStatus
from node.domain.commitment import CommitmentReport
from node.errors import CannotUnderstand, IntakeError
from node.intake.incoming import IncomingFile
from node.intake.uids import StoreRequest
from node.intake.watermark import BelowWatermark
from node.network import STORAGE_COMMITMENT, CommandElement, GeneralStatus
from node.network.command import Command, number_in, text_in
from node.network.commitment import MalformedReport, decode_commitment_report

Rest = Callable[[], None]
"""What is left to do with an instance that is safe, when its sender has the answer."""

Accept = Callable[[IncomingFile, StoreRequest], Rest | None]
"""Makes an instance safe; returns when it is, raises an IntakeError when it is not taken."""


def nothing() -> None:
    """Is the rest where there is none."""


OnReport = Callable[[CommitmentReport], bool]
"""Records a report on a storage commitment; True when that is durable, False when no request of ours has its transaction UID."""

COMMITMENT_EVENTS: Final = frozenset({1, 2})
"""Event Type IDs: all objects are committed, or some are not (PS3.4 J.3.3.1)."""

log = structlog.get_logger("radnode")


def on_c_store(request: StoreRequest, incoming: IncomingFile | None, accept: Accept) -> tuple[StoreStatus | GeneralStatus, Rest]:
    """Answers a C-STORE request, and what is to be done behind the answer: success when `accept` has returned, not before (promise P1)."""
    try:
        rest = accept(_arrived(incoming), request)
    except BelowWatermark as error:  # said once by the watermark, not for every instance
        return error.dimse_status, nothing
    except IntakeError as error:
        log.warning("instance.refused", status=f"{error.dimse_status:04X}", reason=str(error), **_facts(request))
        return error.dimse_status, nothing
    except Exception:  # the boundary towards the peer: our bug must not break its association, nor pass for success
        log.exception("instance.failed", **_facts(request))
        return GeneralStatus.PROCESSING_FAILURE, nothing
    return StoreStatus.SUCCESS, rest or nothing


def on_c_echo() -> StoreStatus:
    """Answers a C-ECHO request: we are here."""
    return StoreStatus.SUCCESS


def on_n_event_report(
    command: Command, data_set: bytes, transfer_syntax_uid: str, on_report: OnReport | None
) -> StoreStatus | GeneralStatus:
    """Answers a report on a storage commitment: success when it is recorded, and not before."""
    if on_report is None:
        return GeneralStatus.UNRECOGNIZED_OPERATION
    if text_in(command, CommandElement.AFFECTED_SOP_CLASS_UID) != STORAGE_COMMITMENT:
        return GeneralStatus.NO_SUCH_SOP_CLASS
    if number_in(command, CommandElement.EVENT_TYPE_ID) not in COMMITMENT_EVENTS:
        return GeneralStatus.NO_SUCH_EVENT_TYPE
    try:
        report = decode_commitment_report(data_set, transfer_syntax_uid)
        facts = {"transaction_uid": report.transaction_uid, "committed": len(report.committed), "failed": len(report.failed)}
        if on_report(report):
            log.info("commitment.reported", **facts)
            return StoreStatus.SUCCESS
        log.warning("commitment.unknown", **facts)
    except MalformedReport as error:
        log.warning("commitment.malformed", reason=str(error))
    except Exception:  # the boundary towards the peer: our bug must not break its association, nor pass for success
        log.exception("commitment.failed")
        return GeneralStatus.PROCESSING_FAILURE
    return GeneralStatus.INVALID_ARGUMENT_VALUE


def _arrived(incoming: IncomingFile | None) -> IncomingFile:
    if incoming is None:
        raise CannotUnderstand("the request brings no data set")
    return incoming


def _facts(request: StoreRequest) -> dict[str, str]:
    return {
        "sop_instance_uid": request.sop_instance_uid,
        "sop_class_uid": request.sop_class_uid,
        "calling_ae_title": request.calling_ae_title,
    }
