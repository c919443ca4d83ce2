"""The same SCP on stock pynetdicom: the reference that our own is compared with, behind `listener.engine = "pynetdicom"`.

Negotiation, upper layer, messages and their order are pynetdicom's; admission, the answers and the keeping are those of our own.
It is an order of magnitude slower, holds a data set in memory, and has no bound on the length or the slowness of a PDU:
a listener to look for the cause of a quarrel with a peer by, not to leave running.
"""

import contextlib
import threading
import uuid
from collections.abc import Callable
from typing import Any, Final

import structlog
from pynetdicom import AE, evt

from node.codes import IMPLEMENTATION_CLASS_UID
from node.intake.admission import Caller, RememberingResolver, judge_caller, judge_load
from node.intake.association import ScpOptions, resolve
from node.intake.contexts import supported_contexts
from node.intake.conversation import ARTIM_S
from node.intake.door import ACCEPT_WAIT_S, STOP_GRACE_S, CannotListen
from node.intake.handlers import Accept, OnReport, on_c_echo, on_c_store, on_n_event_report
from node.intake.incoming import FileIdentity
from node.intake.spool import Spool
from node.intake.uids import StoreRequest
from node.network import IMPLEMENTATION_VERSION_NAME, STORAGE_COMMITMENT, VERIFICATION, CommandElement
from node.network.command import Command
from node.network.tls import listener_context

UNLIMITED: Final = 1 << 20
"""What pynetdicom is told of a limit that our own rules judge."""

log = structlog.get_logger("radnode")


class _Guest:
    """An association, as pynetdicom's thread runs it."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.instances = 0


class ReferenceScp:
    """A storage and verification SCP, to be used as `association.StorageScp` is."""

    def __init__(
        self,
        options: ScpOptions,
        spool: Spool,
        accept: Accept,
        on_end: Callable[[str], None] | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        self._options = options
        self._spool = spool
        self._accept = accept
        self._on_end = on_end
        self._on_report = on_report
        self._resolve = RememberingResolver(resolve)
        self._guests: dict[threading.Thread, _Guest] = {}
        self._one_admission = threading.Lock()
        self._entity = self._application_entity()

    def _application_entity(self) -> AE:
        entity = AE(self._options.rules.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = self._options.max_pdu_bytes
        entity.maximum_associations = UNLIMITED
        entity.network_timeout = entity.dimse_timeout = self._options.network_timeout_s
        entity.acse_timeout = min(ARTIM_S, self._options.network_timeout_s)
        return entity

    def start(self) -> int:
        """Opens the port; answers its number.

        Raises
        ------
        CannotListen
            When the address cannot be had.
        """
        host, port = self._options.host, self._options.port
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, lambda _event: on_c_echo()),
            (evt.EVT_N_EVENT_REPORT, self._report),
        ]
        tls = listener_context(self._options.tls) if self._options.tls is not None else None
        contexts = list(supported_contexts(reports=self._on_report is not None))  # given here: the entity forgets their roles
        try:
            server: Any = self._entity.start_server((host, port), block=False, evt_handlers=handlers, ssl_context=tls, contexts=contexts)
        except OSError as error:
            raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        return int(server.server_address[1])

    def stop(self) -> None:
        """Closes the port and aborts what is open."""
        ending = threading.Thread(target=self._entity.shutdown, name="reference listener, its end", daemon=True)
        ending.start()
        ending.join(STOP_GRACE_S)
        for guest in list(self._guests):
            guest.join(ACCEPT_WAIT_S)

    def _requested(self, event: Any) -> None:
        """Rejects whom our rules do not admit; pynetdicom goes on with the others."""
        association = event.assoc
        asked = association.requestor.primitive
        wanted = {str(context.abstract_syntax) for context in asked.presentation_context_definition_list}
        caller = Caller(
            str(asked.calling_ae_title).strip(),
            str(asked.called_ae_title).strip(),
            association.requestor.address,
            STORAGE_COMMITMENT in wanted and wanted <= {STORAGE_COMMITMENT, VERIFICATION},
        )
        refusal = judge_caller(caller, self._options.rules, self._resolve)
        with self._one_admission:
            refusal = refusal or judge_load(len(self._guests), self._options.rules)
            if refusal is None:
                self._guests[association] = _Guest()
        if refusal is None:
            threading.Thread(target=self._see_off, args=(association,), name="end of an association", daemon=True).start()
            return
        log.warning("association.rejected", reason=refusal.reason, calling_ae_title=caller.calling_ae_title, address=caller.address)
        association.acse.send_reject(*refusal.rejection.value)
        association.kill()  # waits until the rejection is out; pynetdicom would close over it

    def _see_off(self, association: threading.Thread) -> None:
        association.join()
        guest = self._guests.pop(association)
        if guest.instances and self._on_end is not None:
            self._on_end(guest.name)

    def _store(self, event: Any) -> int:
        guest = self._guests[event.assoc]
        request = StoreRequest(
            sop_class_uid=str(event.request.AffectedSOPClassUID),
            sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=str(event.assoc.requestor.primitive.calling_ae_title).strip(),
            association=guest.name,
        )
        identity = FileIdentity(request.sop_class_uid, request.sop_instance_uid, request.transfer_syntax_uid, request.calling_ae_title)
        incoming = self._spool.open_incoming(identity)
        incoming.write(event.encoded_dataset(include_meta=False))
        guest.instances += 1
        status, rest = on_c_store(request, incoming, self._accept)
        rest()
        return int(status)

    def _report(self, event: Any) -> tuple[int, Any]:
        command: Command = {
            CommandElement.AFFECTED_SOP_CLASS_UID: str(event.request.AffectedSOPClassUID),
            CommandElement.EVENT_TYPE_ID: int(event.request.EventTypeID),
        }
        body = event.request.EventInformation
        data_set = body.getvalue() if body is not None else b""
        with contextlib.closing(body) if body is not None else contextlib.nullcontext():
            return int(on_n_event_report(command, data_set, str(event.context.transfer_syntax), self._on_report)), None
