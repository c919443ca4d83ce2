"""The worker's end of its helper process: one request at a time, and no wait without an end."""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pickle import UnpicklingError
from typing import Final

from node.ahead.requests import Answer, Refused, Request

PATIENCE_S: Final = 30.0
"""How long the worker waits for one answer, in moments when it has nothing else to do."""

BETWEEN_BYTES_S: Final = 10
"""How long an answer that has begun may stand still."""

DIED: Final = Refused("the helper died")
HANGS: Final = Refused("the helper gave no answer")


class Helper:
    """A process that reads files; started when it is first asked, and again when it was lost."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "node.ahead.child")) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._waited_s: float | None = None
        self.losses = 0
        """How often it died or had to be killed."""

    @property
    def is_asked(self) -> bool:
        """Whether an answer is to come."""
        return self._waited_s is not None

    def ask(self, request: Request) -> None:
        """Hands a request over; the answer to the one before must have been taken."""
        self._waited_s = 0.0
        if self._link is None:
            self._start()
        assert self._link is not None  # noqa: S101 - just started
        try:
            self._link.send(request)
        except OSError:  # it is gone: `answer` says so
            return

    def answer(self, wait_s: float) -> Answer | None:
        """Answers what the helper answered, None while it has not; a Refused where it died over the request or took too long."""
        assert self._link is not None  # noqa: S101 - it was asked
        assert self._waited_s is not None  # noqa: S101 - it was asked
        began_s = time.monotonic()
        try:
            if self._link.poll(wait_s):
                found: Answer = self._link.recv()
                self._waited_s = None
                return found
        except (EOFError, OSError, UnpicklingError):
            return self._lost(DIED)
        self._waited_s += time.monotonic() - began_s
        return self._lost(HANGS) if self._waited_s > PATIENCE_S else None

    def stop(self) -> None:
        """Ends the process."""
        self._waited_s = None
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _lost(self, how: Refused) -> Refused:
        self.stop()
        self.losses += 1
        return how

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", BETWEEN_BYTES_S, 0))
        with theirs:
            command = [*self._command, str(os.getpid()), str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )  # fmt: skip
            finally:
                self._link = Connection(ours.detach())
