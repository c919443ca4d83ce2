"""The lower watermark of the disk: below it nothing is taken, so that the journal and the results always find room.

What is refused once is refused until there is a twentieth more than the limit: a disk at the limit must not flicker. The log says
it when it begins, every minute while instances are refused, and when it is over: not once for every instance.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from node.errors import OutOfResources

LOOK_EVERY_S: Final = 0.1
FAR_ABOVE_BYTES: Final = 1 << 30
"""Where there is so much more than the limit, the next look can wait LOOK_EVERY_S: no network fills it in that time."""

REMIND_EVERY_S: Final = 60.0
ROOM_TO_RESUME: Final = 0.05
"""Of the limit, above the limit."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

log = structlog.get_logger("radnode")


class BelowWatermark(OutOfResources):
    """The disk has less room than the configuration wants; the log has been told once, for all instances."""


class Watermark:
    """Watches the free space of a disk. One object serves all threads."""

    def __init__(self, folder: Path, limit_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._resume_bytes = limit_bytes + int(limit_bytes * ROOM_TO_RESUME)
        self._clock = clock
        self._one_word = threading.Lock()
        self._refusing = False
        self._refused = 0
        self._said_at_s = -REMIND_EVERY_S
        self._enough_until_s = -1.0

    def free_bytes(self) -> int:
        """Answers how much the disk can still take."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def objection(self) -> OutOfResources | None:
        """Answers why nothing can be taken now, None where there is room; called for each instance, and again as it grows."""
        now_s = self._clock()
        if now_s < self._enough_until_s:
            return None
        try:
            free = self.free_bytes()
        except OSError as error:
            return as_out_of_resources(error)
        if not self._refusing and free >= self._limit_bytes + FAR_ABOVE_BYTES:
            self._enough_until_s = now_s + LOOK_EVERY_S
            return None
        with self._one_word:
            self._judge(free)
            if not self._refusing:
                return None
            self._refused += 1
            self._remind(free)
        return BelowWatermark(f"{free >> 20} MiB free, the listener refuses below {self._limit_bytes >> 20} MiB")

    @property
    def is_refusing(self) -> bool:
        """Whether nothing is taken now, as far as anybody has looked."""
        return self._refusing

    def look(self) -> None:
        """Notices that there is room again, also when nobody sends."""
        if self._refusing:
            free = self.free_bytes()
            with self._one_word:
                self._judge(free)

    def _judge(self, free: int) -> None:
        if not self._refusing and free < self._limit_bytes:
            self._refusing = True
        elif self._refusing and free >= self._resume_bytes:
            self._refusing = False
            log.info("disk.has_room", free_mib=free >> 20, refused=self._refused, meaning="instances are taken again")
            self._refused = 0
            self._said_at_s = -REMIND_EVERY_S

    def _remind(self, free: int) -> None:
        now_s = self._clock()
        if now_s - self._said_at_s >= REMIND_EVERY_S:
            self._said_at_s = now_s
            log.error(
                "disk.below_watermark",
                free_mib=free >> 20,
                refuse_below_mib=self._limit_bytes >> 20,
                refused=self._refused,
                meaning=f"disk below refuse_below_free_gib: C-STORE is answered 0xA700 until {self._resume_bytes >> 20} MiB are free",
            )


def as_out_of_resources(error: OSError) -> OutOfResources:
    """Answers a failure of the disk as the refusal that the sender gets."""
    what = "the disk is full" if error.errno in _FULL else "the spool cannot be written"
    return OutOfResources(f"{what}: {errno.errorcode.get(error.errno or 0, error.errno)}")
