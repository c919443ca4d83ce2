"""Several processes take connections on one port, so that senders in parallel use all cores; the journal stays with the one that forked them.

They wait on the same listening socket: the kernel wakes the one that has waited longest (SO_REUSEPORT would spread a few connections by
the hash of their addresses, and badly). Each receives and seals by itself, and hands over what is sealed. One that dies takes the whole
listener with it: the supervisor starts that anew, and whatever was answered for is found by its seal, as after every crash.
"""

import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import structlog

from node.errors import NodeError, OutOfResources
from node.intake.backlog import Filing
from node.intake.census import Census, Desk
from node.locks import die_with_parent

MOST_BY_DEFAULT: Final = 4
STOP_GRACE_S: Final = 4.0
"""For all of them together: the supervisor waits eight seconds for the whole listener."""

log = structlog.get_logger("radnode")


class AcceptorDied(NodeError):
    """A process that took connections is gone."""


@dataclass(frozen=True, slots=True)
class Post:
    """What a process that takes connections is given."""

    server: socket.socket
    desk: Desk
    pipe: Connection
    """To the process that files: batches of what was sealed go out; whatever comes in says that it is to stop."""


Work = Callable[[Post, threading.Event], None]
"""Takes connections until the event is set."""


def how_many(configured: int) -> int:
    """Answers how many processes take connections; 0: one for each core, four at the most."""
    return configured or max(1, min(MOST_BY_DEFAULT, os.cpu_count() or 1))


class Acceptors:
    """The processes that take connections."""

    def __init__(self, count: int) -> None:
        self.census = Census(count)
        self._pids: list[int] = []
        self._pipes: list[Connection] = []
        self._readers: list[threading.Thread] = []
        self.count = count
        self._stopping = False
        self._lost = threading.Event()

    def fork(self, server: socket.socket, work: Work) -> None:
        """Makes the processes; each does its `work` on the socket until it is told to stop. This one must have no threads but its first."""
        parent = os.getpid()
        gc.freeze()  # what is there now is shared: nobody need look at it again
        for number in range(self.count):
            ours, theirs = multiprocessing.Pipe()
            pid = os.fork()
            if pid == 0:
                for pipe in (*self._pipes, ours):
                    pipe.close()
                _live(Post(server, Desk(self.census, number), theirs), work, parent)
            theirs.close()
            self._pids.append(pid)
            self._pipes.append(ours)

    def start(self, filing: Filing) -> None:
        """Files what they hand over, from here on."""
        for pid, pipe in zip(self._pids, self._pipes, strict=True):
            reader = threading.Thread(target=self._take_over, args=(pid, pipe, filing), name=f"acceptor {pid}", daemon=True)
            self._readers.append(reader)
            reader.start()

    def tell_trouble(self, trouble: OutOfResources | None) -> None:
        """Lets them know whether what they hand over can be filed."""
        self.census.trouble = trouble is not None

    def require_all(self) -> None:
        """Raises AcceptorDied when one of them is gone."""
        if self._lost.is_set() and not self._stopping:
            raise AcceptorDied("a process that takes connections has died: the listener starts anew")

    def _take_over(self, pid: int, pipe: Connection, filing: Filing) -> None:
        try:
            while True:
                for what in pipe.recv():
                    if isinstance(what, str):
                        filing.submit_end(what)
                    else:
                        filing.submit(what)
        except (EOFError, OSError):
            if not self._stopping:
                log.error("acceptor.died", pid=pid, meaning="nothing that was answered is lost: the listener starts anew")
        finally:
            self._lost.set()  # whatever it was: nobody takes over any more what this one seals

    def tell_to_stop(self) -> None:
        """Lets them begin to end."""
        if not self._stopping:
            self._stopping = True
            for pipe in self._pipes:
                with suppress(OSError):  # it is gone already
                    pipe.send(None)

    def stop(self) -> None:
        """Lets them end what is open and hand over what they have; kills what does not end."""
        self.tell_to_stop()
        deadline = time.monotonic() + STOP_GRACE_S
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        for pid in self._pids:
            try:
                os.kill(pid, signal.SIGKILL)  # one that is at its end by now, or hangs
            except ProcessLookupError:
                continue
            os.waitpid(pid, 0)


def _live(post: Post, work: Work, parent: int) -> None:
    """Is a process that takes connections: does its work, and never returns."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the one that forked it says when to stop, so that nothing is handed over in vain
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(parent)
        stop = threading.Event()
        threading.Thread(target=_await_end, args=(post.pipe, stop), name="until told", daemon=True).start()
        work(post, stop)
        status = 0
    except BaseException:  # the end of a process: nobody else would hear of it
        log.exception("acceptor.failed")
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)  # not through what the other process has set up for its own end


def _await_end(pipe: Connection, stop: threading.Event) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)  # nobody files what this process would answer for
    stop.set()
