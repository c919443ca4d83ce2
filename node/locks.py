"""Locks that the kernel frees when their holder dies, however it dies: how a dead worker is told from a slow one.

And processes that it ends when their parent dies, however that dies.

In the file of its lock a worker notes its pulse: how one that hangs is told from one that works.
"""

import ctypes
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from node.domain.lease import Pulse
from node.errors import NodeError

BEAT_S: Final = 2.0
_PULSE_WIDTH: Final = 64
_PR_SET_PDEATHSIG: Final = 1


class LockHeld(NodeError):
    """Somebody else holds the lock."""


class HeldLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Takes the lock; raises LockHeld at once when it is taken."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise LockHeld(f"{path} is held by another process") from error

    def note(self, text: str) -> None:
        """Writes a short text into the file of the lock, over the one before; readers see either of the two whole."""
        os.pwrite(self._descriptor, f"{text}\n".ljust(_PULSE_WIDTH).encode(), 0)

    def release(self) -> None:
        """Frees the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_free(path: Path) -> bool:
    """Answers whether nobody alive holds the lock file (also when it is gone)."""
    if not path.exists():
        return True
    try:
        HeldLock(path).release()
    except LockHeld:
        return False
    return True


class Heart:
    """Beats into the file of a lock while its worker lives, in a thread of its own."""

    def __init__(self, lock: HeldLock) -> None:
        self._lock = lock
        self._busy_since_s: float | None = None
        self._one_beat = threading.Lock()
        self._stop = threading.Event()
        self._beat()
        threading.Thread(target=self._run, name="heart", daemon=True).start()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Marks what runs inside as one piece of work, which may take only so long."""
        self._turn(time.monotonic())
        try:
            yield
        finally:
            self._turn(None)

    def stop(self) -> None:
        """Ends the beating, before the lock is released."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beat()

    def _turn(self, busy_since_s: float | None) -> None:
        self._busy_since_s = busy_since_s
        self._beat()

    def _beat(self) -> None:
        with self._one_beat:
            self._lock.note(f"{time.monotonic():.3f} {self._busy_since_s or 0.0:.3f}")


def read_pulse(path: Path) -> Pulse | None:
    """Answers the last pulse in the file of a lock; None where there is none to read."""
    try:
        beat_s, busy_since_s = (float(word) for word in path.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # gone, or not yet written
        return None
    return Pulse(beat_s, busy_since_s or None)


def die_with_parent(parent_pid: int) -> None:
    """Makes the kernel kill this process when its parent dies: no listener or GPU holder outlives its node (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)  # the parent died before we asked
