"""From pynetdicom's events to ours: a handler translates and delegates; it says success only after the data is safe."""

from collections.abc import Callable
from typing import cast

import structlog
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from node.codes import StoreStatus
from node.errors import CannotUnderstand, IntakeError
from node.intake.arriving import ArrivingDataSet, calling_ae_title
from node.intake.reception import StoreRequest
from node.intake.spool import IncomingFile
from node.journal import Recorded

Accept = Callable[[IncomingFile, StoreRequest], Recorded]
"""Makes an instance safe; returns when it is, raises an IntakeError when it is not taken."""

log = structlog.get_logger("radnode")


def on_c_store(event: Event, accept: Accept) -> StoreStatus:
    """Answers a C-STORE request: success when `accept` has returned, and not before (promise P1)."""
    request = request_of(event)
    try:
        recorded = accept(incoming_of(event), request)
    except IntakeError as error:
        return refuse(error, request)
    if recorded is Recorded.CHANGED:
        log.warning("instance.changed", sop_instance_uid=request.sop_instance_uid, calling_ae_title=request.calling_ae_title)
    return StoreStatus.SUCCESS


def on_c_echo(_event: Event) -> StoreStatus:
    """Answers a C-ECHO request: we are here."""
    return StoreStatus.SUCCESS


def request_of(event: Event) -> StoreRequest:
    """Answers what a C-STORE request says."""
    command = cast("C_STORE", event.request)
    return StoreRequest(
        sop_class_uid=str(command.AffectedSOPClassUID or ""),
        sop_instance_uid=str(command.AffectedSOPInstanceUID or ""),
        transfer_syntax_uid=str(event.context.transfer_syntax),
        calling_ae_title=calling_ae_title(event.assoc),
        association=event.assoc.name,
    )


def incoming_of(event: Event) -> IncomingFile:
    """Answers the data set of a C-STORE request, which lies in the spool's incoming folder already."""
    arriving = event.request._dataset_file  # noqa: SLF001 - where pynetdicom keeps the file of a chunked data set
    if not isinstance(arriving, ArrivingDataSet):
        raise CannotUnderstand("the request brings no data set")
    return arriving.incoming


def refuse(error: IntakeError, request: StoreRequest) -> StoreStatus:
    """Logs once why an instance is not taken, and answers the status that says so."""
    log.warning(
        "instance.refused",
        status=f"{error.dimse_status:04X}",
        reason=str(error),
        sop_instance_uid=request.sop_instance_uid,
        sop_class_uid=request.sop_class_uid,
        calling_ae_title=request.calling_ae_title,
    )
    return error.dimse_status
