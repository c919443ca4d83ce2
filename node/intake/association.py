"""The listener: takes connections, lets a conversation run on each, notices the end of every one of them."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from node.intake.admission import AdmissionRules, Caller, Refusal, RememberingResolver, judge_caller, plain_address
from node.intake.census import Census, Desk
from node.intake.contexts import supported_contexts
from node.intake.conversation import Conversation, Services
from node.intake.door import Door, House, open_port
from node.intake.handlers import Accept, OnReport
from node.intake.spool import Spool
from node.network.link import Link, LinkBroken
from node.network.tls import TlsFiles, accept_tls, listener_context

LONGEST_PDU_BYTES: Final = 1 << 22
"""A PDU may be longer than we asked for; what is longer than this is no DICOM."""

LINGER_S: Final = 2.0

log = structlog.get_logger("radnode")


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
        desk: Desk | None = None,
    ) -> None:
        """`desk`: where this is one of several processes that take connections on one port, its place among them."""
        self._options = options
        self._on_end = on_end
        self._tls = listener_context(options.tls) if options.tls is not None else None
        self._resolve = RememberingResolver(resolve)
        self._desk = desk or Desk(Census())
        self._services = Services(spool, accept, self._admit, self._leave, options.network_timeout_s, options.max_pdu_bytes, on_report)
        self._door = Door(House("listener", options.rules.max_associations, self._welcome, self._converse, self._desk.is_ahead))

    def start(self, server: socket.socket | None = None) -> int:
        """Opens the port, or takes connections on a socket that listens already; answers the number of the port.

        Raises
        ------
        CannotListen
            When the address cannot be had.
        """
        supported_contexts(reports=self._services.on_report is not None)  # takes a moment, which the first sender need not wait for
        server = server or open_port(self._options.host, self._options.port)
        hosts = [sender.host for sender in self._options.rules.senders]
        threading.Thread(target=self._resolve.learn, args=(hosts,), name="resolver", daemon=True).start()
        return self._door.open(server)

    def _welcome(self, connection: socket.socket, address: str) -> Conversation:
        longest = max(LONGEST_PDU_BYTES, self._options.max_pdu_bytes)
        secured = connection if self._tls is None else accept_tls(connection, self._tls)
        link = Link(secured, timeout_s=self._options.network_timeout_s, longest_pdu_bytes=longest)
        return Conversation(link, address, self._services)

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

    def _run(self, conversation: Conversation) -> str:
        """Lets a conversation run; answers how it ended."""
        try:
            conversation.run()
        except LinkBroken as error:
            if self._tls is not None and not conversation.admitted:
                log.warning("connection.broken", address=conversation.address, reason=f"the peer {error}")
            return f"the peer {error}"
        finally:
            conversation.leave()
            if conversation.instances and self._on_end is not None:  # also after a fault of ours: its studies must not wait for it
                self._on_end(conversation.name)
        return "released" if conversation.released else "aborted"

    def _admit(self, caller: Caller) -> Refusal | None:
        return judge_caller(caller, self._options.rules, self._resolve) or self._desk.enter(self._options.rules)

    def _leave(self) -> None:
        self._desk.leave()

    def stop(self) -> None:
        """Closes the port and ends what is open: an instance that has arrived whole gets its answer, the rest is dropped."""
        self._door.close(_let_stop)


def _let_stop(conversation: Conversation) -> None:
    conversation.stopping = True


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
