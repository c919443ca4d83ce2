"""What the processes of the listener know of each other: how many associations each has open, and whether instances can be filed."""

import mmap
import multiprocessing
import struct
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from node.intake.admission import AdmissionRules, Refusal, judge_load

_COUNT: Final = struct.Struct("@i")
_TROUBLE: Final = 0
"""Where the byte stands that says whether instances can be filed; the counts follow."""


class Census:
    """A few numbers that processes share which were forked from the one that made it. Serves all threads."""

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._numbers = mmap.mmap(-1, _COUNT.size * (processes + 1))
        # One process needs no semaphore of the system's, and so no /dev/shm.
        self._lock: AbstractContextManager[object] = multiprocessing.get_context("fork").Lock() if processes > 1 else threading.Lock()

    def enter(self, process: int, rules: AdmissionRules) -> Refusal | None:
        """Counts an association of a process in; answers why it must not be, None where it may."""
        with self._lock:
            refusal = judge_load(sum(map(self.open_in, range(self._processes))), rules)
            if refusal is None:
                self._change(process, 1)
        return refusal

    def leave(self, process: int) -> None:
        """Counts an association out."""
        with self._lock:
            self._change(process, -1)

    def open_in(self, process: int) -> int:
        """Answers how many associations a process has open."""
        return int(_COUNT.unpack_from(self._numbers, self._place_of(process))[0])

    def is_ahead(self, process: int) -> bool:
        """Answers whether a process has more associations open than another."""
        return self.open_in(process) > min(map(self.open_in, range(self._processes)))

    @property
    def trouble(self) -> bool:
        """Whether what was answered for cannot be filed at present."""
        return self._numbers[_TROUBLE] != 0

    @trouble.setter
    def trouble(self, value: bool) -> None:
        self._numbers[_TROUBLE] = int(value)

    def _change(self, process: int, by: int) -> None:
        _COUNT.pack_into(self._numbers, self._place_of(process), self.open_in(process) + by)

    @staticmethod
    def _place_of(process: int) -> int:
        return _COUNT.size * (process + 1)


@dataclass(frozen=True, slots=True)
class Desk:
    """The place of one process in the census."""

    census: Census
    process: int = 0

    def enter(self, rules: AdmissionRules) -> Refusal | None:
        """Counts an association in; answers why it must not be, None where it may."""
        return self.census.enter(self.process, rules)

    def leave(self) -> None:
        """Counts an association out."""
        self.census.leave(self.process)

    def is_ahead(self) -> bool:
        """Answers whether this process has more associations open than another."""
        return self.census.is_ahead(self.process)
