"""Places for files to come, made ahead: what an arriving instance needs of the disk is there before it is.

A new file is found after a power cut only when its folder was flushed, and its blocks only when the log of the file system was: a second
and a third flush for every instance. Empty files, made and flushed by the dozen when nobody waits, save the one; files that already have
their blocks (`preallocated_bytes`) save the other, and the search for free blocks with it. In a file system that lies in memory they
are mapped besides: the network then puts the bytes where they stay, and nothing is copied a second time.
"""

import itertools
import mmap
import os
import threading
import uuid
from collections import deque
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from node.files import Durability, flush_file, fsync_folder, lies_in_memory

_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)  # Linux: else the first touch of each page costs more than a copy

MADE_AT_ONCE: Final = 64
REFILL_BELOW: Final = 32
PLACE_MODE: Final = 0o600

SIZE_CLASSES_BYTES: Final = (160 << 10, 576 << 10, 2304 << 10)
"""An MR or PET slice of 256x256, a CT slice of 512x512, a slice of 1024x1024, each with its header; larger files grow beyond their place."""

SMALLEST_PREALLOCATED_BYTES: Final = 32 << 10
"""Below this there is nothing to be saved."""


class Place(NamedTuple):
    """Where a file is about to arrive."""

    name: str
    """Its path, as the system takes it."""
    is_made: bool = False
    """Whether the file lies there already, and a power cut would not take its name."""
    has_blocks: bool = False
    """Whether it is full of zeros, and not empty."""
    mapped: memoryview | None = None
    """Of a file with blocks: these, where they are memory."""


def size_class_of(size_bytes: int) -> int | None:
    """Answers how large a place an instance of this size is given; None: an empty one."""
    if size_bytes < SMALLEST_PREALLOCATED_BYTES:
        return None
    return next((size for size in SIZE_CLASSES_BYTES if size >= size_bytes), SIZE_CLASSES_BYTES[-1])


class Slots:
    """Places in the folder of arriving files. One object serves all threads; `refill` is called by one."""

    def __init__(self, folder: Path, durability: Durability, preallocated_bytes: int = 0) -> None:
        """`preallocated_bytes`: how much of the disk the places with blocks may take."""
        self._folder = folder
        self._folder_name = str(folder)
        self._is_flushed = durability is Durability.POWER_LOSS
        self._preallocated_bytes = preallocated_bytes
        self._empty: deque[Place] = deque()
        self._with_blocks: dict[int, deque[Place]] = {size: deque() for size in SIZE_CLASSES_BYTES}
        self._wanted = SIZE_CLASSES_BYTES[1]
        self._one_maker = threading.Lock()
        self._prefix = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()

    def take(self, expected_bytes: int | None = None) -> Place:
        """Answers where a file that is about to arrive can be put.

        `expected_bytes`: of the instance, if anybody knows; the last one over the same association is a good guess. Where no place can be
        made, the file is still to be made: whoever opens it meets the same trouble, and tells it.
        """
        size = self._wanted if expected_bytes is None else size_class_of(expected_bytes)
        if self._preallocated_bytes and size is not None:
            self._wanted = size
            try:
                return self._with_blocks[size].popleft()
            except IndexError:  # more came than was made ahead
                pass
        return self._take_empty() if self._is_flushed else self.untaken()

    def _take_empty(self) -> Place:
        while True:
            try:
                return self._empty.popleft()
            except IndexError:
                pass
            try:
                with self._one_maker:
                    if not self._empty:
                        self._make_empty()
            except OSError:
                return self.untaken()

    def untaken(self) -> Place:
        """Answers a place where nothing lies, and nothing has been made."""
        return Place(self._new_name())

    def refill(self) -> bool:
        """Makes some places where few are left; answers whether more are wanted. Raises OSError."""
        if self._is_flushed and len(self._empty) < REFILL_BELOW:
            with self._one_maker:
                self._make_empty()
        return self._preallocated_bytes > 0 and self._refill_with_blocks()

    def _refill_with_blocks(self) -> bool:
        """Makes places of the size that came last; those of other sizes give way where the room is needed."""
        wanted = self._wanted
        taken = sum(size * len(places) for size, places in self._with_blocks.items())
        if wanted * (len(self._with_blocks[wanted]) + 1) > self._preallocated_bytes:
            return False
        for size, places in self._with_blocks.items():
            with suppress(IndexError):  # somebody has taken the last one meanwhile
                while size != wanted and taken + wanted > self._preallocated_bytes:
                    _remove(places.popleft())
                    taken -= size
        count = min(MADE_AT_ONCE // 4, (self._preallocated_bytes - taken) // wanted)
        self._with_blocks[wanted].extend(self._make_several(count, wanted))
        return count > 0

    def clear(self) -> None:
        """Removes the places that nobody took."""
        for places in (self._empty, *self._with_blocks.values()):
            with suppress(IndexError):
                while True:
                    _remove(places.popleft())

    def _make_empty(self) -> None:
        self._empty.extend(self._make_several(MADE_AT_ONCE, 0))

    def _make_several(self, count: int, size_bytes: int) -> list[Place]:
        """Answers new places, flushed where that is promised; where one cannot be made, none of them is left."""
        made: list[Place] = []
        try:
            for _ in range(count):
                made.append(self._make(size_bytes))  # noqa: PERF401 - those before one that fails have to be known
            if self._is_flushed:
                for place in made if size_bytes else ():
                    flush_file(Path(place.name))
                fsync_folder(self._folder)
        except BaseException:
            for place in made:
                _remove(place)
            raise
        return made

    def _make(self, size_bytes: int) -> Place:
        name = self._new_name()
        mapped = None
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PLACE_MODE)
        try:
            rest = memoryview(bytes(size_bytes))
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if size_bytes and self._maps:
                mapped = memoryview(mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED | _POPULATE))
        except BaseException:
            _remove(Place(name))
            raise
        finally:
            os.close(descriptor)
        return Place(name, is_made=True, has_blocks=size_bytes > 0, mapped=mapped)

    @cached_property
    def _maps(self) -> bool:
        return lies_in_memory(self._folder)

    def _new_name(self) -> str:
        return f"{self._folder_name}/{self._prefix}-{next(self._numbers)}.part"


def _remove(place: Place) -> None:
    with suppress(OSError):  # gone already, or a disk that does not even remove: the sweep at the next start does
        os.unlink(place.name)  # noqa: PTH108 - its name is a text: a path would be made for every instance
