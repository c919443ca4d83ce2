"""The listener: takes connections, lets a conversation run on each, notices the end of every one of them."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from node.errors import NodeError
from node.intake.admission import AdmissionRules, Caller, Refusal, RememberingResolver, judge_caller, judge_load, plain_address
from node.intake.contexts import supported_contexts
from node.intake.conversation import Conversation, Services
from node.intake.handlers import Accept, OnReport
from node.intake.spool import Spool
from node.network import hang_up
from node.network.link import Link, LinkBroken
from node.network.tls import TlsFiles, accept_tls, listener_context

ACCEPT_POLL_S: Final = 0.1
BACKLOG: Final = 64
SPARE_CONNECTIONS: Final = 32
"""Beyond the limit of associations: peers that are about to be rejected, or have yet to say what they want."""
LEAVING_CONNECTIONS: Final = 32
"""Beyond these: connections that have had to give way to newer ones, and whose threads are about to end."""

LONGEST_PDU_BYTES: Final = 1 << 22
"""A PDU may be longer than we asked for; what is longer than this is no DICOM."""

LINGER_S: Final = 2.0
STOP_GRACE_S: Final = 2.0

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
    tls: TlsFiles | None = None
    """Where the port speaks TLS, and TLS alone: what it needs for that."""


class StorageScp:
    """A storage and verification SCP on a port of this machine; what arrives goes to `accept`.

    `on_end` is called with the name of every association over which something arrived, in its thread, when it has ended.
    Reports on storage commitments go to `on_report`; without it nobody can send any.
    """

    def __init__(
        self,
        options: ScpOptions,
        spool: Spool,
        accept: Accept,
        on_end: Callable[[str], None] | None = None,
        on_report: OnReport | None = None,
    ) -> None:
        self._options = options
        self._on_end = on_end
        self._tls = listener_context(options.tls) if options.tls is not None else None
        self._resolve = RememberingResolver(resolve)
        self._services = Services(spool, accept, self._admit, options.network_timeout_s, options.max_pdu_bytes, on_report)
        self._open: dict[Conversation, threading.Thread] = {}
        self._one_admission = threading.Lock()
        self._stopping = threading.Event()

    def start(self) -> int:
        """Opens the port; answers its number.

        Raises
        ------
        CannotListen
            When the address cannot be had.
        """
        supported_contexts(reports=self._services.on_report is not None)  # takes a moment, which the first sender need not wait for
        host, port = self._options.host, self._options.port
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._server.settimeout(ACCEPT_POLL_S)
        hosts = [sender.host for sender in self._options.rules.senders]
        threading.Thread(target=self._resolve.learn, args=(hosts,), name="resolver", daemon=True).start()
        threading.Thread(target=self._take_connections, name="listener", daemon=True).start()
        return int(self._server.getsockname()[1])

    def _take_connections(self) -> None:
        while not self._stopping.is_set():
            try:
                self._take_connection(*self._server.accept())
            except TimeoutError:
                continue
            except (OSError, RuntimeError) as error:  # no descriptor or no thread to be had, or the peer is gone already
                if not self._stopping.is_set():
                    log.warning("listener.no_connection", reason=str(error))
                    time.sleep(ACCEPT_POLL_S)

    def _take_connection(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        if not self._make_place():
            connection.close()
            return
        longest = max(LONGEST_PDU_BYTES, self._options.max_pdu_bytes)
        try:
            secured = connection if self._tls is None else accept_tls(connection, self._tls)
            link = Link(secured, timeout_s=self._options.network_timeout_s, longest_pdu_bytes=longest)
        except (OSError, ValueError):  # ValueError: TLS, and the peer is gone already
            connection.close()
            return
        conversation = Conversation(link, str(address[0]), self._services)
        thread = threading.Thread(target=self._converse, args=(conversation,), name=f"association {conversation.name}", daemon=True)
        self._open[conversation] = thread
        try:
            thread.start()
        except RuntimeError:
            del self._open[conversation]
            link.close()
            raise

    def _make_place(self) -> bool:
        """Answers whether another connection can be taken.

        Where all places are taken, the connection gives way that has said nothing of use for the longest time: a flood of them
        shuts nobody out who comes and speaks at once.
        """
        taken = len(self._open)
        limit = self._options.rules.max_associations + SPARE_CONNECTIONS
        if taken < limit:
            return True
        if taken >= limit + LEAVING_CONNECTIONS:
            return False
        idle = [one for one in list(self._open) if not one.is_open and not one.leaving]
        if not idle:
            return False
        eldest = min(idle, key=lambda one: one.begun_s)
        eldest.leaving = True
        hang_up(eldest.link.socket)
        return True

    def _converse(self, conversation: Conversation) -> None:
        try:
            end = self._run(conversation)
            if conversation.admitted:
                log.info(
                    "association.ended",
                    calling_ae_title=conversation.calling_ae_title,
                    end=end,
                    instances=conversation.instances,
                    megabytes=round(conversation.size_bytes / 1e6, 3),
                    elapsed_s=round(time.monotonic() - conversation.begun_s, 3),
                )
        finally:
            _close_after_peer(conversation.link)
            self._open.pop(conversation, None)

    def _run(self, conversation: Conversation) -> str:
        """Lets a conversation run; answers how it ended."""
        try:
            conversation.run()
        except LinkBroken as error:
            if self._tls is not None and not conversation.admitted:
                log.warning("connection.broken", address=conversation.address, reason=f"the peer {error}")
            return f"the peer {error}"
        finally:
            conversation.ended = True
            if conversation.instances and self._on_end is not None:  # also after a fault of ours: its studies must not wait for it
                self._on_end(conversation.name)
        return "released" if conversation.released else "aborted"

    def _admit(self, caller: Caller, conversation: Conversation) -> Refusal | None:
        refusal = judge_caller(caller, self._options.rules, self._resolve)
        if refusal is not None:
            return refusal
        with self._one_admission:
            refusal = judge_load(sum(one.is_open for one in list(self._open)), self._options.rules)
            conversation.admitted = refusal is None
        return refusal

    def stop(self) -> None:
        """Closes the port and ends what is open: an instance that has arrived whole gets its answer, the rest is dropped."""
        self._stopping.set()
        self._server.close()
        threads = dict(self._open)
        for conversation in threads:
            conversation.stopping = True
            hang_up(conversation.link.socket, socket.SHUT_RD)
        deadline = time.monotonic() + STOP_GRACE_S
        for conversation, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            hang_up(conversation.link.socket)
        for thread in threads.values():
            thread.join(max(0.0, deadline + STOP_GRACE_S / 2 - time.monotonic()))


def _close_after_peer(link: Link) -> None:
    """Closes when the peer has: a connection that is closed over bytes on their way takes our last word with it."""
    if link.is_open:
        with contextlib.suppress(OSError):
            link.limit_waits(LINGER_S)
            socket.socket.recv(link.socket, 1)  # below TLS: nobody reads it any more
    link.close()


def resolve(host: str) -> frozenset[str]:
    """Answers the IP addresses of a host, none where the name is unknown."""
    try:
        return frozenset(plain_address(str(found[4][0])) for found in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return frozenset()
