"""What was answered for and is still to be filed: in order, until one thread takes it, in batches, when nobody is in haste."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from node.errors import OutOfResources
from node.intake.incoming import SealedFile
from node.intake.uids import InstanceUids, StoreRequest

log = structlog.get_logger("radnode")

LULL_S: Final = 0.02
"""Without a new instance for so long, nobody is in haste."""

LATEST_S: Final = 1.0
"""No instance waits longer for its row while others keep coming."""

BATCH: Final = 64
MOST_WAITING: Final = 20_000
"""More than these wait for nobody: senders of small objects are held up until rows have caught up."""

AGAIN_S: Final = 0.5


class Arrival(NamedTuple):
    """A sealed instance and what is to stand in its row."""

    file: SealedFile
    uids: InstanceUids
    request: StoreRequest


What = Arrival | str
"""An instance, or the name of an association that has ended, behind what came over it."""


def is_due(*, waiting: bool, urgent: bool, idle_s: float, oldest_s: float) -> bool:
    """Answers whether to take a batch now: there is something, and it is urgent, or nothing comes, or the oldest has waited long enough.

    `urgent`: an association has ended behind it, or the listener is about to stop.
    """
    return waiting and (urgent or idle_s >= LULL_S or oldest_s >= LATEST_S)


class Backlog:
    """A queue of what was answered for. `put`, `wait_for_room` and `drain` serve all threads; `run` is the body of one."""

    def __init__(self, refill: Callable[[], bool]) -> None:
        """`refill` makes some places for what will come, and answers whether more are wanted: done when nothing else is."""
        self._refill = refill
        self._waiting: deque[tuple[float, What]] = deque()
        self._changed = threading.Condition()
        self._last_s = time.monotonic()
        self._ends = 0
        self._under_way = 0
        self._asleep = False
        """Whether the thread may be waiting without an end."""
        self._stopping = False
        self._places_wanted = True

    def put(self, what: What) -> None:
        """Takes an instance, or the end of an association."""
        now_s = time.monotonic()
        is_end = isinstance(what, str)
        if is_end:
            with self._changed:
                self._ends += 1
        self._waiting.append((now_s, what))
        self._last_s = now_s
        if is_end or self._asleep:  # else the thread is up, and looks by itself: no lock for every instance
            with self._changed:
                self._changed.notify_all()

    def wait_for_room(self, is_stuck: Callable[[], bool]) -> None:
        """Waits where very many are waiting, unless they are stuck."""
        if len(self._waiting) > MOST_WAITING:
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) <= MOST_WAITING or is_stuck(), LATEST_S)

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything is taken that was put before; answers False where that takes longer."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting or self._under_way:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, LULL_S))
        return True

    def stop(self) -> None:
        """Lets `run` end when everything is taken."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def make_places(self) -> None:
        """Makes all places that are wanted, before anything comes."""
        while self._places_wanted:
            self._make_some()

    def run(self, take: Callable[[list[What]], bool]) -> int:
        """Gives batches to `take`, each again and again until it answers True; answers how many were left over at the end."""
        while (batch := self._next_batch()) is not None:
            while not take(batch):
                with self._changed:
                    if self._stopping:
                        return len(batch) + len(self._waiting)
                    self._changed.wait(AGAIN_S)
            with self._changed:
                self._under_way = 0
                self._places_wanted = True
                self._changed.notify_all()
        return 0

    def _next_batch(self) -> list[What] | None:
        """Waits until something is due; answers None when `stop` was called and nothing is left."""
        with self._changed:
            while not self._is_due():
                if self._stopping and not self._waiting:
                    return None
                if self._places_wanted and not self._waiting:
                    self._changed.release()  # those who come meanwhile wait for nothing
                    try:
                        self._make_some()
                    finally:
                        self._changed.acquire()
                    continue
                self._asleep = True  # first: whoever puts something from here on wakes us
                if self._waiting:
                    self._asleep = False
                    self._changed.wait(LULL_S)
                else:
                    self._changed.wait()
                    self._asleep = False
            batch = [self._waiting.popleft()[1] for _ in range(min(BATCH, len(self._waiting)))]
            self._ends -= sum(isinstance(one, str) for one in batch)
            self._under_way = len(batch)
            return batch

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        oldest_s = now_s - self._waiting[0][0] if self._waiting else 0.0
        urgent = self._ends > 0 or self._stopping
        return is_due(waiting=bool(self._waiting), urgent=urgent, idle_s=now_s - self._last_s, oldest_s=oldest_s)

    def _make_some(self) -> None:
        """Makes some places; a disk that does not let us is met, and told, by what arrives."""
        self._places_wanted = False
        try:
            self._places_wanted = self._refill()
        except (OSError, MemoryError, ValueError) as error:  # ValueError: what cannot be mapped
            log.info("places.not_made", reason=str(error) or type(error).__name__)


class Filing(ABC):
    """Sees to it that sealed instances get their rows: in this process, or by handing them to the one that does. Serves all threads."""

    def __init__(self, refill: Callable[[], bool]) -> None:
        """`refill` as for a Backlog."""
        self._backlog = Backlog(refill)

    @abstractmethod
    def start(self) -> int:
        """Takes in what an earlier life has answered for, and answers how many instances that was; from here on it works."""

    @abstractmethod
    def check(self) -> None:
        """Raises OutOfResources while what was sealed before cannot be filed."""

    @abstractmethod
    def stop(self) -> None:
        """Passes on what is outstanding, and ends."""

    def submit(self, arrival: Arrival) -> None:
        """Takes a sealed instance; waits where very many are unfiled."""
        self._backlog.put(arrival)
        self._backlog.wait_for_room(self._is_stuck)

    def submit_end(self, association: str) -> None:
        """Takes note that an association has ended, behind the instances that came over it."""
        self._backlog.put(association)

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything is passed on that was submitted before; answers False where that takes longer."""
        return self._backlog.drain(timeout_s)

    def _is_stuck(self) -> bool:
        try:
            self.check()
        except OutOfResources:
            return True
        return False
