"""A port on which connections are taken, each served in a thread of its own: how StorageScp and StowServer get their guests."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog

from node.errors import NodeError
from node.network import hang_up, limit_waits

ACCEPT_WAIT_S: Final = 0.1
BACKLOG: Final = 64
SPARE_CONNECTIONS: Final = 32
"""Beyond the limit of those that do something: peers that are about to be rejected, or have yet to say what they want."""
LEAVING_CONNECTIONS: Final = 32
"""Beyond these: connections that have had to give way to newer ones, and whose threads are about to end."""

YIELD_S: Final = 0.002
"""How long a process that has more to do than another leaves the next connection to that one."""
STOP_GRACE_S: Final = 2.0

log = structlog.get_logger("radnode")


class CannotListen(NodeError):
    """The address is taken, or not ours."""


class Guest(Protocol):
    """A connection that was taken."""

    leaving: bool
    """Set by the door: it was hung up on, to make place for a newer one."""

    @property
    def socket(self) -> socket.socket:
        """The connection itself."""

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has said nothing of use, on the monotonic clock; None while it does."""


G = TypeVar("G", bound=Guest)


def open_port(host: str, port: int, section: str = "") -> socket.socket:
    """Answers a socket that listens; `section` of the configuration is named where that cannot be.

    Raises CannotListen.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f" (section [{section}])" if section else ""
        raise CannotListen(f"cannot listen on {host}:{port}{where}: {error.strerror or error}") from error
    limit_waits(server, ACCEPT_WAIT_S)  # the kernel's limit: of several processes that wait, a connection wakes the one that waits longest
    return server


@dataclass(frozen=True, slots=True)
class House(Generic[G]):
    """What is behind a door."""

    name: str
    """Of its threads, and in the log: `listener`."""
    most_busy: int
    welcome: Callable[[socket.socket, str], G]
    """Makes a guest of a connection from an address; OSError or ValueError says that it is gone already."""
    serve: Callable[[G], None]
    """Serves a guest until it goes, in a thread of its own."""
    yields: Callable[[], bool] = lambda: False
    """Answers whether another process should have the next connection."""


class Door(Generic[G]):
    """Takes connections on a socket that listens, and lets those go that say nothing where too many come."""

    def __init__(self, house: House[G]) -> None:
        self._house = house
        self._guests: dict[G, threading.Thread] = {}
        self._stopping = threading.Event()
        self._server: socket.socket | None = None
        self._taking: threading.Thread | None = None

    def open(self, server: socket.socket) -> int:
        """Takes connections from here on; answers the number of the port."""
        self._server = server
        self._taking = threading.Thread(target=self._take_connections, args=(server,), name=self._house.name, daemon=True)
        self._taking.start()
        return int(server.getsockname()[1])

    @property
    def guests(self) -> list[G]:
        """Those who are there now."""
        return list(self._guests)

    @property
    def is_closing(self) -> bool:
        """Whether nobody is to begin anything any more."""
        return self._stopping.is_set()

    def _take_connections(self, server: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                if self._house.yields():
                    time.sleep(YIELD_S)
                self._take_connection(*server.accept())
            except (TimeoutError, BlockingIOError):
                continue
            except (OSError, RuntimeError) as error:  # no descriptor or no thread to be had, or the peer is gone already
                if not self._stopping.is_set():
                    log.warning("door.no_connection", door=self._house.name, reason=str(error))
                    time.sleep(ACCEPT_WAIT_S)

    def _take_connection(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        if self._stopping.is_set() or not self._make_place():
            connection.close()
            return
        try:
            guest = self._house.welcome(connection, str(address[0]))
        except (OSError, ValueError):
            connection.close()
            return
        thread = threading.Thread(target=self._serve, args=(guest,), name=f"{self._house.name} {address[0]}:{address[1]}", daemon=True)
        self._guests[guest] = thread
        try:
            thread.start()
        except RuntimeError:
            del self._guests[guest]
            guest.socket.close()
            raise

    def _serve(self, guest: G) -> None:
        try:
            self._house.serve(guest)
        finally:
            self._guests.pop(guest, None)

    def _make_place(self) -> bool:
        """Answers whether another connection can be taken.

        Where all places are taken, the connection gives way that has said nothing of use for the longest time: a flood of them
        shuts nobody out who comes and speaks at once.
        """
        taken = len(self._guests)
        limit = self._house.most_busy + SPARE_CONNECTIONS
        if taken < limit:
            return True
        idle = [(since_s, one) for one in self.guests if not one.leaving and (since_s := one.idle_since_s) is not None]
        if taken >= limit + LEAVING_CONNECTIONS or not idle:
            return False
        _, eldest = min(idle, key=lambda one: one[0])
        eldest.leaving = True
        hang_up(eldest.socket)
        return True

    def close(self, before: Callable[[G], None] = lambda _guest: None) -> None:
        """Takes nobody any more and ends what is open: whatever has arrived whole gets its answer. `before` tells each guest."""
        self._stopping.set()
        if self._server is not None and self._taking is not None:
            self._server.close()
            self._taking.join(2 * ACCEPT_WAIT_S)  # it may be waiting still: the port is shut when it has returned
        threads = dict(self._guests)
        for guest in threads:
            before(guest)
            hang_up(guest.socket, socket.SHUT_RD)
        deadline = time.monotonic() + STOP_GRACE_S
        for guest, thread in threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            hang_up(guest.socket)
        for thread in threads.values():
            thread.join(max(0.0, deadline + STOP_GRACE_S / 2 - time.monotonic()))
