"""From requests to statuses: a handler translates and delegates; it says success only after the data is safe."""

from collections.abc import Callable

import structlog

from node.codes import StoreStatus
from node.errors import CannotUnderstand, IntakeError
from node.intake.reception import StoreRequest
from node.intake.spool import IncomingFile
from node.journal import Recorded
from node.network import GeneralStatus

Accept = Callable[[IncomingFile, StoreRequest], Recorded]
"""Makes an instance safe; returns when it is, raises an IntakeError when it is not taken."""

log = structlog.get_logger("radnode")


def on_c_store(request: StoreRequest, incoming: IncomingFile | None, accept: Accept) -> StoreStatus | GeneralStatus:
    """Answers a C-STORE request: success when `accept` has returned, and not before (promise P1)."""
    try:
        recorded = accept(_arrived(incoming), request)
    except IntakeError as error:
        log.warning("instance.refused", status=f"{error.dimse_status:04X}", reason=str(error), **_facts(request))
        return error.dimse_status
    except Exception:  # the boundary towards the peer: our bug must not break its association, nor pass for success
        log.exception("instance.failed", **_facts(request))
        return GeneralStatus.PROCESSING_FAILURE
    if recorded is Recorded.CHANGED:
        log.warning("instance.changed", **_facts(request))
    return StoreStatus.SUCCESS


def on_c_echo() -> StoreStatus:
    """Answers a C-ECHO request: we are here."""
    return StoreStatus.SUCCESS


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
