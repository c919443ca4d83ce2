"""An instance that is arriving: a Part 10 file that grows, and is sealed when it is whole."""

import hashlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from node.codes import IMPLEMENTATION_CLASS_UID
from node.domain.identifiers import MAX_UID_LENGTH
from node.errors import OutOfResources
from node.files import Durability, fsync_folder
from node.intake.seal import SEAL_BYTES, Seal, this_boot
from node.intake.slots import Place
from node.intake.watermark import as_out_of_resources
from node.network import IMPLEMENTATION_VERSION_NAME

ARRIVING_MODE: Final = 0o600
BEGINNING_BYTES: Final = 8192
"""Of a data set, held in memory: nearly always as far as the UIDs are."""

LOOK_EVERY_BYTES: Final = 64 << 20
"""How much of an instance may arrive between two looks at the free space."""

MOST_PIECES: Final = 1000
"""The system takes 1024 at once (IOV_MAX); a data set may come in fragments of one byte."""

_THIS_BOOT: Final = this_boot()


_PREFIX: Final = bytes(SEAL_BYTES) + b"DICM" + struct.pack("<HH2sH", 0x0002, 0x0000, b"UL", 4)
"""Up to the value of File Meta Information Group Length (PS3.10 7.1)."""


class FileIdentity(NamedTuple):
    """What the file meta information of an arriving instance says (PS3.10 Table 7.1-1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str = ""


class SealedFile(NamedTuple):
    """An instance that is whole and safe, and waits for its name and its row."""

    name: str
    seal: Seal
    mapped: memoryview | None = None
    """Its pages, where they are mapped: given back when nobody waits, by whoever files it."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.name)


class IncomingFile:
    """A Part 10 file that is still arriving.

    `write` never raises: a full disk must not break the association in the middle of a message. The fault is kept, the rest of
    the data set is dropped, and `check` and `seal` raise what happened.

    The digest is taken on the way where the bytes must outlive the machine's run: a torn file is then known by it. Else whoever
    settles the file takes it, when nobody waits for an answer.
    """

    def __init__(
        self,
        place: Place,
        identity: FileIdentity | None = None,
        *,
        objection: Callable[[], OutOfResources | None] = lambda: None,
        durability: Durability = Durability.POWER_LOSS,
        fault: OutOfResources | None = None,
    ) -> None:
        """Opens the file, and begins it where it is known what comes; else `begin` does.

        `fault`: why nothing can be taken now. `objection` is asked again as the file grows.
        """
        self._place = place
        self.size_bytes = 0
        self._objection = objection
        self._durability = durability
        self._look_at_bytes = LOOK_EVERY_BYTES
        self._unwritten_head = b""
        self.head_bytes = 0
        self.beginning = bytearray()
        """The first BEGINNING_BYTES of the data set."""
        self._held: tuple[bytes | memoryview, ...] = ()
        """The whole data set, where it is short and all there: it is written together with its seal."""
        self._digest = hashlib.sha256() if durability is Durability.POWER_LOSS else None
        self._descriptor = -1
        self._is_sealed = False
        self._is_new = not place.is_made
        """Whether its name was not made ahead: it is not on the disk yet."""
        self._fault = fault
        if self._fault is None:
            try:
                self._descriptor = self._open()
            except OSError as error:
                self._fail(error)
        self._give_up_place()
        if identity is not None:
            self._begin(identity)

    def begin(self, identity: FileIdentity) -> None:
        """Says what comes into a file that was opened ahead."""
        self._fault = self._fault or self._objection()
        if self._fault is not None:
            self.discard()
        self._begin(identity)

    def _begin(self, identity: FileIdentity) -> None:
        self._unwritten_head = file_head(identity)
        self.head_bytes = len(self._unwritten_head)

    def _open(self) -> int:
        if self._place.is_made:
            try:
                return os.open(self._place.name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # removed by hand; its pages, where they are mapped, are those of no file any more
                self._place = Place(self._place.name)
                self._is_new = True
        return os.open(self._place.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, ARRIVING_MODE)

    @property
    def path(self) -> Path:
        """Where it lies, what is held back not included: see `flush`."""
        return Path(self._place.name)

    @property
    def is_open(self) -> bool:
        """Whether it has been neither closed nor discarded."""
        return self._descriptor >= 0

    @property
    def is_mapped(self) -> bool:
        """Whether bytes can be put into its place directly, as long as there is room."""
        return self._place.mapped is not None

    def room(self) -> memoryview | None:
        """Answers where the next bytes of the data set belong, None where they have to be written; see `note_placed`."""
        mapped, place = self._place.mapped, self.head_bytes + self.size_bytes
        return mapped[place:] if mapped is not None and self._descriptor >= 0 and place < len(mapped) else None

    def note_placed(self, bytes_in_place: memoryview) -> None:
        """Takes the next bytes of the data set, which lie in the `room` already."""
        self._account((bytes_in_place,))

    def write(self, *pieces: bytes | memoryview) -> None:
        """Takes the next bytes of the data set, in one call to the system."""
        if self._descriptor < 0:
            return
        try:
            self._write_whole(pieces, self.head_bytes + self.size_bytes)
        except OSError as error:
            self._fail(error)
        else:
            self._account(pieces)

    def conclude(self, *pieces: bytes | memoryview) -> None:
        """Takes the last bytes of the data set; they stay as they are until the file is sealed or discarded."""
        if not self._unwritten_head or self._place.has_blocks or len(pieces) > MOST_PIECES - 2:
            self.write(*pieces)
        elif self._descriptor >= 0:
            self._held = pieces
            self._account(pieces)

    def _account(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self.size_bytes < BEGINNING_BYTES:
            for piece in pieces:
                self.beginning += piece[: BEGINNING_BYTES - len(self.beginning)]
        if self._digest is not None:
            for piece in pieces:
                self._digest.update(piece)
        self.size_bytes += sum(map(len, pieces))
        if self.size_bytes >= self._look_at_bytes:
            self._look_at_bytes = self.size_bytes + LOOK_EVERY_BYTES
            self._fault = self._objection()
            if self._fault is not None:
                self.discard()

    def _write_whole(self, pieces: Sequence[bytes | memoryview], place: int) -> None:
        """Writes pieces where they belong in the file, and the head before them where that is still to be done."""
        if self._unwritten_head:
            head, self._unwritten_head = self._unwritten_head, b""
            if place == self.head_bytes:
                pieces, place = (head, *pieces), 0
            else:
                os.pwrite(self._descriptor, head, 0)
        if len(pieces) > MOST_PIECES:
            pieces = (b"".join(pieces),)
        missing = sum(map(len, pieces)) - os.pwritev(self._descriptor, pieces, place)
        if missing:  # a disk that fills up, or a signal
            whole = b"".join(pieces)
            while missing:
                begun = len(whole) - missing
                missing -= os.pwrite(self._descriptor, memoryview(whole)[begun:], place + begun)

    def flush(self) -> None:
        """Sees to it that the file can be read by its path."""
        if self._unwritten_head and self._descriptor >= 0:
            held, self._held = self._held, ()
            try:
                self._write_whole(held, self.head_bytes)
            except OSError as error:
                self._fail(error)

    def check(self) -> None:
        """Raises OutOfResources when a part of the data set could not be written."""
        if self._fault is not None:
            raise self._fault

    def seal(self) -> SealedFile:
        """Returns when all of it is as safe as promised, seal included: one flush of the disk, two where no place was made ahead.

        The file is still to be closed.

        Raises
        ------
        OutOfResources
            When it is not; nothing is left of the instance.
        """
        self.check()
        digest = b"" if self._digest is None else self._digest.digest()
        seal = Seal(self.head_bytes, self.size_bytes, time.time(), digest, _THIS_BOOT)
        try:
            self._write_seal(seal.encode())
            if self._durability is Durability.POWER_LOSS:
                os.fdatasync(self._descriptor)  # its size is part of it, the time of the change is not
                if self._is_new:
                    fsync_folder(self.path.parent)
        except OSError as error:
            self._fail(error)
            self.check()
        self._is_sealed = True
        return SealedFile(self._place.name, seal, self._place.mapped)

    def _write_seal(self, preamble: bytes) -> None:
        """Writes the seal: behind everything else, or in one with it, where a file that is too short for its seal tells that it is torn."""
        if self._unwritten_head and not self._place.has_blocks:
            self._unwritten_head = preamble + self._unwritten_head[SEAL_BYTES:]
            self.flush()
            self.check()
        else:
            self.flush()
            self.check()
            os.pwrite(self._descriptor, preamble, 0)

    def discard(self) -> None:
        """Forgets the instance: closed and gone. One that has been sealed is closed, and stays."""
        if self._descriptor >= 0:
            self.close()
            if self._is_sealed:
                return
            with suppress(OSError):  # a disk that does not even remove: the sweep at the next start does
                self.path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self._fault = as_out_of_resources(error)
        self.discard()

    def _give_up_place(self) -> None:
        """Removes a place that was made ahead and is not used: it belongs to nobody else."""
        if self._descriptor < 0 and self._place.is_made:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; nothing more can be done with it."""
        descriptor, self._descriptor = self._descriptor, -1
        self._held = ()
        if descriptor >= 0:
            os.close(descriptor)


def file_head(identity: FileIdentity) -> bytes:
    """Answers preamble and file meta information; written by hand, since the values come from the network and may be anything."""
    is_odd = len(identity.sop_class_uid) > MAX_UID_LENGTH  # from the network: nothing of that is remembered
    around_instance = _around_instance.__wrapped__ if is_odd else _around_instance
    before, behind = around_instance(identity.sop_class_uid, identity.transfer_syntax_uid, identity.calling_ae_title)
    meta = before + _element(0x0003, b"UI", _text(identity.sop_instance_uid)) + behind
    return _PREFIX + struct.pack("<I", len(meta)) + meta


@lru_cache(maxsize=256)
def _around_instance(sop_class_uid: str, transfer_syntax_uid: str, calling_ae_title: str) -> tuple[bytes, bytes]:
    """Answers what stands before and behind the SOP Instance UID: the same for all instances of a series."""
    before = _element(0x0001, b"OB", b"\x00\x01") + _element(0x0002, b"UI", _text(sop_class_uid))
    behind = [
        _element(0x0010, b"UI", _text(transfer_syntax_uid)),
        _element(0x0012, b"UI", _text(IMPLEMENTATION_CLASS_UID)),
        _element(0x0013, b"SH", _text(IMPLEMENTATION_VERSION_NAME)),
    ]
    if calling_ae_title:
        behind.append(_element(0x0016, b"AE", _text(calling_ae_title)))
    return before, b"".join(behind)


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """Answers an element of group 0002 in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if len(value) % 2:
        value += b"\x00" if vr in {b"UI", b"OB"} else b" "
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, number) + vr + length + value


def _text(value: str) -> bytes:
    return value.encode("ascii", "replace")
