"""Locks that the kernel frees when their holder dies, however it dies: how a dead worker is told from a slow one."""

import fcntl
import os
from pathlib import Path
from typing import Self

from node.errors import NodeError


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
