"""The web server of the Store transaction: a thread a connection, a request at a time."""

import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog

from node.codes import StoreStatus
from node.config import Config
from node.errors import ConfigError
from node.files import Durability, write_durably
from node.intake.admission import KnownSender, RememberingResolver, Resolve
from node.intake.contexts import supported_contexts
from node.intake.door import Door, House, open_port
from node.intake.handlers import Accept
from node.intake.spool import Spool
from node.intake.stow.answer import Outcome, choose_media_type, encode, http_status, store_instances_response
from node.intake.stow.http import BadRequest, ConnectionBroken, HttpConnection, Reply, Request
from node.intake.stow.multipart import MalformedMultipart, MultipartReader
from node.intake.stow.rules import Refused, StoreRules, judge_payload, judge_sender, judge_target, read_tokens
from node.intake.stow.store import Store, TooManyParts, store_parts
from node.network.tls import TlsFiles, accept_tls, listener_context

BUFFER_BYTES: Final = 1 << 19
"""Of a request: all that is ever held of its body."""
FLUSHES_AT_ONCE: Final = 16
"""Of all requests together."""
RETRY_AFTER_S: Final = 30
LULL_S: Final = 1.0
"""A request that follows so soon on the same connection belongs to the same transfer: a study comes in many of them."""
PROBED: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
"""What a GET gets, such as of somebody who looks whether we are there."""

log = structlog.get_logger("radnode")


@dataclass(frozen=True, slots=True)
class StowOptions:
    """What the web server is told."""

    rules: StoreRules
    host: str
    port: int
    network_timeout_s: float = 60.0
    max_connections: int = 16
    flushes: bool = True
    """Whether making an instance safe waits for the disk."""
    tls: TlsFiles | None = None
    """Where the port speaks TLS, and TLS alone: what it needs for that."""


@dataclass(eq=False)
class Session:
    """A connection and what it is doing."""

    http: HttpConnection
    address: str
    storing: bool = False
    """Whether it counts against the limit of requests at once."""
    leaving: bool = False
    """Set by another thread: it was hung up on, to make place for a newer one."""
    last_s: float = field(default_factory=time.monotonic)
    """When it came, or its last request was answered."""
    transfer: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names the transfer at hand, unlike every other, and every association, that this node ever had."""
    instances: int = 0
    """Of the transfer at hand."""

    @property
    def socket(self) -> socket.socket:
        """Its connection."""
        return self.http.socket

    @property
    def idle_since_s(self) -> float | None:
        """Since when it asks nothing; None while instances are being stored."""
        return None if self.storing else self.last_s


class StowServer:
    """Answers Store requests on a port of this machine; what arrives goes to `accept`.

    Requests that follow each other at once over one connection are one transfer, as those of an association are: `on_end` is called
    with its name, in the thread of the connection, when it is over.
    """

    def __init__(self, options: StowOptions, spool: Spool, accept: Accept, on_end: Callable[[str], None], resolve: Resolve) -> None:
        self._options = options
        self._spool = spool
        self._accept = accept
        self._on_end = on_end
        self._resolve = resolve
        self._tls = _context(options.tls, certificates=options.rules.trusts_certificates) if options.tls is not None else None
        self._aside = ThreadPoolExecutor(FLUSHES_AT_ONCE, thread_name_prefix="stow flush") if options.flushes else None
        self._one_admission = threading.Lock()
        self._door = Door(House("stow", options.max_connections, self._welcome, self._converse))

    def start(self) -> int:
        """Opens the port; answers its number.

        Raises
        ------
        CannotListen
            When the address cannot be had.
        """
        supported_contexts(reports=False)  # takes a moment, which the first sender need not wait for
        return self._door.open(open_port(self._options.host, self._options.port, "stow"))

    # ── connections ─────────────────────────────────────────────────────────

    def _welcome(self, connection: socket.socket, address: str) -> Session:
        secured = connection if self._tls is None else accept_tls(connection, self._tls)
        rules = self._options.rules
        return Session(HttpConnection(secured, timeout_s=self._options.network_timeout_s, max_body_bytes=rules.max_body_bytes), address)

    def _converse(self, session: Session) -> None:
        try:
            session.http.shake_hands()
            while self._serve(session) and not self._door.is_closing:
                session.last_s = time.monotonic()
                if session.instances and not session.http.has_more(LULL_S):
                    self._end(session)
        except ConnectionBroken as error:
            log.warning("stow.broken", address=session.address, reason=f"the sender {error}")
        finally:
            self._end(session)  # also after a fault of ours: its studies must not wait for it
            session.http.close()

    def _end(self, session: Session) -> None:
        if session.instances:
            self._on_end(session.transfer)
        session.transfer, session.instances = uuid.uuid4().hex, 0

    # ── requests ────────────────────────────────────────────────────────────

    def _serve(self, session: Session) -> bool:
        """Answers the next request of a connection; answers whether there may be another."""
        try:
            request = session.http.next_request()
            if request is None:
                return False
            reply = self._answer(session, request)
        except (Refused, BadRequest) as refusal:
            said = log.info if refusal.status in PROBED else log.warning
            said("stow.refused", status=int(refusal.status), reason=str(refusal), address=session.address)
            reply = _refusal(refusal.status, str(refusal))
        except ConnectionBroken:
            raise
        except Exception:  # the boundary towards the sender: our bug is answered, and does not pass for success
            log.exception("stow.failed", address=session.address)
            reply = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the node; it is in its log")
        return session.http.reply(reply)

    def _answer(self, session: Session, request: Request) -> Reply:
        rules = self._options.rules
        sender = judge_sender(request.header("authorization"), session.address, rules, self._resolve)
        study = judge_target(request.method, request.target, rules)
        payload = judge_payload(request.header("content-type"), request.header("content-encoding"))
        media_type = choose_media_type(request.header("accept"))
        if not media_type:
            raise Refused(HTTPStatus.NOT_ACCEPTABLE, "the answer is application/dicom+json or application/dicom+xml")
        with self._one_admission:
            if sum(one.storing for one in self._door.guests) >= self._options.max_connections:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "as many requests as are taken at once are being taken")
            session.storing = True
        try:
            store = Store(self._spool, self._accept, sender, session.transfer, study, self._aside)
            return self._store(session, payload.boundary, store, media_type)
        finally:
            session.storing = False

    def _store(self, session: Session, boundary: bytes, store: Store, media_type: str) -> Reply:
        outcomes: list[Outcome] = []
        fault: BadRequest | None = None
        begun_s = time.monotonic()
        end = "whole"
        try:
            store_parts(MultipartReader(boundary, self._body_of(session), bytearray(BUFFER_BYTES)), store, outcomes)
        except MalformedMultipart as error:
            end = str(error)
            if outcomes:  # what came before is answered, part by part, and this one too
                outcomes.append(Outcome(StoreStatus.CANNOT_UNDERSTAND))
        except TooManyParts as error:
            fault = BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))
        except BadRequest as error:
            fault = error
        except ConnectionBroken as error:
            end = f"the sender {error}"
            raise
        finally:
            session.instances += len(outcomes)
            stored = sum(one.is_stored for one in outcomes)
            log.info(
                "stow.ended",
                calling_ae_title=store.calling_ae_title,
                end=end if fault is None else str(fault),
                instances=stored,
                refused=len(outcomes) - stored,
                megabytes=round(session.http.body_bytes / 1e6, 3),
                elapsed_s=round(time.monotonic() - begun_s, 3),
            )
        status = fault.status if fault is not None else http_status(outcomes, whole=end == "whole")
        if not outcomes:
            return _refusal(
                status, str(fault) if fault is not None else f"nothing to store: {end if end != 'whole' else 'the body has no part'}"
            )
        return Reply(status, encode(store_instances_response(outcomes), media_type), media_type, _headers_of(status))

    def _body_of(self, session: Session) -> Callable[[memoryview], int]:
        def receive(view: memoryview) -> int:
            if self._door.is_closing:
                raise BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, "the node stops")
            return session.http.receive_into(view)

        return receive

    def stop(self) -> None:
        """Closes the port and ends what is open: what has arrived whole is answered, the rest is dropped."""
        self._door.close()
        if self._aside is not None:
            self._aside.shutdown(wait=False)


def _refusal(status: HTTPStatus, reason: str) -> Reply:
    return Reply(status, f"{reason}\n".encode(), headers=_headers_of(status))


def _headers_of(status: HTTPStatus) -> tuple[tuple[str, str], ...]:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return (("WWW-Authenticate", 'Bearer realm="radnode"'),)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return (("Allow", "POST"),)
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return (("Retry-After", str(RETRY_AFTER_S)),)
        case _:
            return ()


def _context(files: TlsFiles, *, certificates: bool) -> ssl.SSLContext:
    context = listener_context(files)
    if not certificates:
        context.verify_mode = ssl.CERT_NONE  # the bearer's token says who it is
    context.set_alpn_protocols(["http/1.1"])
    return context


def start_stow(config: Config, spool: Spool, accept: Accept, on_end: Callable[[str], None], resolve: Resolve) -> StowServer | None:
    """Starts the web server where the configuration wants one; the port it got stands in `run/stow.port`."""
    if config.stow.port is None:
        return None
    server = StowServer(options_from(config), spool, accept, on_end, RememberingResolver(resolve))
    port = server.start()
    write_durably(config.node.state_dir / "run" / "stow.port", f"{port}\n".encode())
    log.info("stow.ready", host=config.stow.host, port=port, path=config.stow.path)
    return server


def options_from(config: Config) -> StowOptions:
    """Answers what the web server of a node is told."""
    stow = config.stow
    if stow.tls and config.tls is None:
        raise ConfigError("stow.tls is set, and there is no section [tls] → add it")
    rules = StoreRules(
        path=stow.path,
        calling_ae_title=stow.calling_ae_title,
        tokens=read_tokens(stow.token_file, stow.calling_ae_title) if stow.token_file is not None else (),
        trusts_certificates=stow.tls and stow.client_certificates,
        senders=tuple(KnownSender(peer.ae_title, peer.host, may_send=peer.may_send) for peer in config.peers.values()),
        accept_unlisted_peers=config.listener.accept_unlisted_peers,
        max_body_bytes=stow.max_body_mib << 20,
    )
    return StowOptions(
        rules=rules,
        host=stow.host,
        port=stow.port or 0,
        network_timeout_s=config.listener.network_timeout_s,
        max_connections=stow.max_connections,
        flushes=Durability(config.listener.durability) is Durability.POWER_LOSS,
        tls=config.tls if stow.tls else None,
    )
