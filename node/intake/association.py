"""The listener: pynetdicom negotiates and parses, data sets go straight into files, every end of an association is noticed."""

import contextlib
import socket
import socketserver
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from node.codes import IMPLEMENTATION_CLASS_UID
from node.config import Config
from node.errors import NodeError
from node.files import write_durably
from node.intake.admission import AdmissionRules, Caller, KnownSender, Refusal, judge_caller, judge_load, plain_address
from node.intake.arriving import SpoolingDimse, calling_ae_title
from node.intake.contexts import supported_contexts
from node.intake.handlers import Accept, on_c_echo, on_c_store
from node.intake.reception import Intake
from node.intake.spool import Spool
from node.journal import ReceivedJournal, open_database
from node.network import IMPLEMENTATION_VERSION_NAME, Rejection, prepare_socket

TICK_S: Final = 0.1
ACCEPT_POLL_S: Final = 0.1
ACSE_TIMEOUT_S: Final = 30.0
STOP_GRACE_S: Final = 1.0

log = structlog.get_logger("radnode")


class CannotListen(NodeError):
    """The address of the listener is taken, or not ours."""


@dataclass(frozen=True, slots=True)
class ScpOptions:
    """What a storage SCP is told."""

    rules: AdmissionRules
    host: str
    port: int
    network_timeout_s: float = 60.0
    max_pdu_bytes: int = 262144


@dataclass(slots=True)
class Tracked:
    """A connection that was opened, until its thread is dead and its end is noted."""

    association: Association
    link: socket.socket
    dimse: SpoolingDimse
    opened_s: float = field(default_factory=time.monotonic)
    admitted: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it counts against the limit."""
        return self.admitted and self.association.is_alive() and not (self.association.is_released or self.association.is_aborted)


class _Server(ThreadedAssociationServer):
    """Takes connections from a queue that is long enough for a burst of associations."""

    request_queue_size = 64


class StorageScp:
    """A storage and verification SCP on a port of this machine; what arrives goes to `accept`."""

    def __init__(self, options: ScpOptions, spool: Spool, accept: Accept) -> None:
        self._options = options
        self._spool = spool
        self._accept = accept
        self._tracked: dict[str, Tracked] = {}
        self._one_admission = threading.Lock()

    def start(self) -> int:
        """Opens the port; answers its number.

        Raises
        ------
        CannotListen
            When the address cannot be had.
        """
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers spend time on lines that nobody reads
        options = self._options
        entity = AE(ae_title=options.rules.ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = options.max_pdu_bytes
        entity.maximum_associations = 1 << 16  # ours is judged in `_on_requested`, where it can be told
        entity.network_timeout = entity.dimse_timeout = options.network_timeout_s
        entity.acse_timeout = min(ACSE_TIMEOUT_S, options.network_timeout_s)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._on_connection),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_C_STORE, partial(on_c_store, accept=self._accept)),
            (evt.EVT_C_ECHO, on_c_echo),
        ]
        try:
            self._server = entity.make_server(
                (options.host, options.port), evt_handlers=handlers, contexts=supported_contexts(), server_class=_Server
            )
        except OSError as error:
            raise CannotListen(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, args=(ACCEPT_POLL_S,), name="listener", daemon=True).start()
        return int(self._server.server_address[1])

    def _on_connection(self, event: evt.Event) -> None:
        """Prepares an association before its thread starts."""
        association = event.assoc
        association.name = f"AcceptorThread@{time.time_ns()}-{id(association):x}"  # pynetdicom looks for the first part
        link = _link_of(association)
        prepare_socket(link, self._options.network_timeout_s)
        association.dimse = dimse = SpoolingDimse(association, link, self._spool)
        self._tracked[association.name] = Tracked(association, link, dimse)

    def _on_requested(self, event: evt.Event) -> None:
        caller = Caller(
            calling_ae_title=calling_ae_title(event.assoc),
            called_ae_title=_called_ae_title(event.assoc),
            address=str(event.assoc.requestor.address),
        )
        refusal: Refusal | None = Refusal(Rejection.CALLING_AE_TITLE, "it could not be judged")  # whatever happens below
        try:
            refusal = judge_caller(caller, self._options.rules, resolve) or self._admit(event.assoc)
        finally:
            if refusal is not None:
                log.warning(
                    "association.rejected", reason=refusal.reason, calling_ae_title=caller.calling_ae_title, address=caller.address
                )
                event.assoc.acse.send_reject(*refusal.rejection.value)
                event.assoc.kill()

    def _admit(self, association: Association) -> Refusal | None:
        with self._one_admission:
            refusal = judge_load(sum(tracked.is_open for tracked in list(self._tracked.values())), self._options.rules)
            self._tracked[association.name].admitted = refusal is None
        return refusal

    def bury(self) -> list[str]:
        """Answers the associations that have ended since the last call, however they ended; nothing of them is left."""
        ended = [name for name, tracked in list(self._tracked.items()) if tracked.association.ident and not tracked.association.is_alive()]
        for name in ended:
            tracked = self._tracked.pop(name)
            tracked.dimse.end()
            if tracked.admitted:
                log.info(
                    "association.ended",
                    calling_ae_title=calling_ae_title(tracked.association),
                    released=tracked.association.is_released,
                    instances=tracked.dimse.instances,
                    megabytes=round(tracked.dimse.size_bytes / 1e6, 3),
                    elapsed_s=round(time.monotonic() - tracked.opened_s, 3),
                )
        return ended

    def stop(self) -> list[str]:
        """Closes the port and ends what is open; answers the associations that ended."""
        socketserver.BaseServer.shutdown(self._server)
        self._server.server_close()
        for tracked in list(self._tracked.values()):
            if tracked.association.is_established:
                tracked.association.abort(block=False)
            else:
                _hang_up(tracked.link)
        ended = self._bury_all()
        for tracked in list(self._tracked.values()):  # a peer that was told and stays on the line
            _hang_up(tracked.link)
        return ended + self._bury_all()

    def _bury_all(self) -> list[str]:
        ended = self.bury()
        deadline = time.monotonic() + STOP_GRACE_S
        while self._tracked and time.monotonic() < deadline:
            time.sleep(0.02)
            ended += self.bury()
        return ended


def resolve(host: str) -> frozenset[str]:
    """Answers the IP addresses of a host, none where the name is unknown."""
    try:
        return frozenset(plain_address(str(found[4][0])) for found in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()


def _link_of(association: Association) -> socket.socket:
    transport = association.dul.socket
    if transport is None or transport.socket is None:
        raise ConnectionError("the connection is closed")
    return transport.socket


def _called_ae_title(association: Association) -> str:
    request = association.requestor.primitive
    return str(request.called_ae_title).strip() if request is not None else ""


def _hang_up(link: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be closed already
        link.shutdown(socket.SHUT_RDWR)


def run_listener(config: Config, stop: threading.Event) -> None:
    """Receives instances into the spool and the journal until `stop`; the port it got stands in `run/listener.port`."""
    state_dir = config.node.state_dir
    spool = Spool(state_dir / "spool", refuse_below_free_bytes=int(config.listener.refuse_below_free_gib * (1 << 30)))
    swept = spool.prepare()
    connection = open_database(state_dir)
    journal = ReceivedJournal(connection)
    journal.clear_associations()
    scp = StorageScp(options_from(config), spool, Intake(state_dir, spool).accept)
    port = scp.start()
    write_durably(state_dir / "run" / "listener.port", f"{port}\n".encode())
    log.info("listener.ready", ae_title=config.node.ae_title, host=config.listener.host, port=port, swept=swept)
    ended: list[str] = []
    while not stop.wait(TICK_S):
        ended = _note_ends(journal, ended + scp.bury())
    _note_ends(journal, ended + scp.stop())
    connection.close()
    log.info("listener.stopped")


def _note_ends(journal: ReceivedJournal, ended: list[str]) -> list[str]:
    """Tells the journal which associations have ended; answers those that it could not take now."""
    while ended:
        try:
            journal.close_association(ended[0])
        except sqlite3.OperationalError as error:
            log.warning("journal.busy", reason=str(error))
            return ended
        ended = ended[1:]
    return ended


def options_from(config: Config) -> ScpOptions:
    """Answers what the listener of a node is told."""
    senders = tuple(KnownSender(peer.ae_title.strip(), peer.host) for peer in config.peers.values() if peer.may_send)
    rules = AdmissionRules(
        ae_title=config.node.ae_title.strip(),
        max_associations=config.listener.max_associations,
        accept_unlisted_peers=config.listener.accept_unlisted_peers,
        senders=senders,
    )
    return ScpOptions(
        rules=rules,
        host=config.listener.host,
        port=config.listener.port,
        network_timeout_s=config.listener.network_timeout_s,
        max_pdu_bytes=config.listener.max_pdu_bytes,
    )
