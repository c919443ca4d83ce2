"""Where received instances lie: the bytes as they came, named by their content, durable before anybody is told.

    spool/ab/<sha256>.dcm    kept: 0440, never written again
    spool/incoming/          arriving: swept when the listener starts

The name is the sha256 of the data set without preamble and file meta information, so the same data set from two senders is
kept once. UIDs are never parts of a path. The order is: write, fsync, rename, fsync of the folder; then the journal.

The 256 folders are made before anything arrives: a folder made on the way costs two more flushes, which doubled the time of
an instance. The entry that vanishes from `incoming` is not flushed: should a power cut bring it back, the sweep removes it.

Retention and intake meet at the lock of a folder. Whoever keeps a file holds it shared from the look whether the file is there
until its row is committed; whoever removes one holds it alone, and asks the journal first. So a row that says "here" has its file.
"""

import fcntl
import hashlib
import os
import re
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from node.codes import IMPLEMENTATION_CLASS_UID
from node.errors import OutOfResources
from node.files import Durability, fsync_folder
from node.intake.watermark import Watermark, as_out_of_resources
from node.network import IMPLEMENTATION_VERSION_NAME

INCOMING: Final = "incoming"
BUFFER_BYTES: Final = 1 << 18
KEPT_MODE: Final = 0o440
LOOK_EVERY_BYTES: Final = 64 << 20
"""How much of an instance may arrive between two looks at the free space."""

LOCK_WAIT_S: Final = 10.0
FOLDERS: Final = tuple(f"{number:02x}" for number in range(256))

_KEPT_NAME: Final = re.compile(r"([0-9a-f]{64})\.dcm")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What the file meta information of an arriving instance says (PS3.10 Table 7.1-1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str = ""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """An instance that lies durable in the spool."""

    sha256: str
    path: Path
    size_bytes: int
    """Of the data set, without preamble and file meta information."""


def spooled_path(state_dir: Path, sha256: str) -> Path:
    """Answers where the spool of a node keeps the data set with this digest."""
    return _path_in(state_dir / "spool", sha256)


def _path_in(root: Path, sha256: str) -> Path:
    return root / sha256[:2] / f"{sha256}.dcm"


class IncomingFile:
    """A Part 10 file that is still arriving.

    `write` never raises: a full disk must not break the association in the middle of a message. The fault is kept, the rest of
    the data set is dropped, and `Spool.keep` raises what happened.
    """

    def __init__(
        self,
        path: Path,
        identity: FileIdentity,
        *,
        objection: Callable[[], OutOfResources | None] = lambda: None,
        durability: Durability = Durability.POWER_LOSS,
    ) -> None:
        self.path = path
        self.size_bytes = 0
        self._objection = objection
        self._durability = durability
        self._look_at_bytes = LOOK_EVERY_BYTES
        head = _file_head(identity)
        self.head_bytes = len(head)
        self._digest = hashlib.sha256()
        self._fault = objection()
        self._stream: BinaryIO | None = None
        if self._fault is None:
            try:
                self._stream = open(path, "xb", buffering=BUFFER_BYTES, opener=_open_kept)  # noqa: SIM115 - it lives as long as the transfer
                self._stream.write(head)
            except OSError as error:
                self._fail(error)

    @property
    def is_open(self) -> bool:
        """Whether it has been neither kept nor discarded."""
        return self._stream is not None

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes of the data set."""
        if self._stream is None:
            return
        try:
            self._stream.write(data)
        except OSError as error:
            self._fail(error)
            return
        self._digest.update(data)
        self.size_bytes += len(data)
        if self.size_bytes >= self._look_at_bytes:
            self._look_at_bytes = self.size_bytes + LOOK_EVERY_BYTES
            self._fault = self._objection()
            if self._fault is not None:
                self.discard()

    def flush(self) -> None:
        """Hands everything to the kernel, so that the file can be read by its path."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def check(self) -> None:
        """Raises OutOfResources when a part of the data set could not be written."""
        if self._fault is not None:
            raise self._fault

    def seal(self) -> str:
        """Flushes the file to the disk and closes it; answers the sha256 of the data set."""
        self.flush()
        self.check()
        if self._stream is not None:
            if self._durability is Durability.POWER_LOSS:
                os.fsync(self._stream.fileno())
            self._close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Forgets the instance: closed and gone. Harmless when it has been kept."""
        self._close()
        with suppress(OSError):  # a disk that does not even remove: the sweep at the next start does
            self.path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self._fault = as_out_of_resources(error)
        self.discard()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:  # the last buffer met a full disk: what matters is that the descriptor is free
                self._fault = self._fault or as_out_of_resources(error)


class Spool:
    """The kept files of a node, and the door through which new ones come."""

    def __init__(self, root: Path, *, refuse_below_free_bytes: int = 0, durability: Durability = Durability.POWER_LOSS) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._durability = durability
        self.watermark = Watermark(root, refuse_below_free_bytes)

    def prepare(self) -> int:
        """Makes the folders and sweeps what an earlier life left half received; answers how many files that was."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            (self._root / name).mkdir(exist_ok=True)
        fsync_folder(self._root)
        fsync_folder(self._root.parent)
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def path_of(self, sha256: str) -> Path:
        """Answers where the data set with this digest lies."""
        return _path_in(self._root, sha256)

    def kept_in(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Answers digest and facts of every file that one of the FOLDERS keeps; what has another name is nothing of ours."""
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if (name := _KEPT_NAME.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                        yield name[1], entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # a state directory that no listener has prepared yet, or a file that went meanwhile
            return

    def open_incoming(self, identity: FileIdentity) -> IncomingFile:
        """Begins a file for an arriving instance; what is wrong with the disk is raised by `keep`, not here."""
        path = self._incoming / f"{uuid.uuid4().hex}.part"
        return IncomingFile(path, identity, objection=self.watermark.objection, durability=self._durability)

    def keep(self, incoming: IncomingFile) -> KeptFile:
        """Makes an arrived instance durable, where nothing is ever removed; see `keeping`."""
        with self.keeping(incoming) as kept:
            return kept

    @contextmanager
    def keeping(self, incoming: IncomingFile) -> Iterator[KeptFile]:
        """Makes an arrived instance durable under the name of its content; the same content is kept once.

        It is safe from retention while the block runs, which records it.

        Raises
        ------
        OutOfResources
            When the disk is full or below the limit; nothing is left of the instance.
        """
        try:
            sha256 = incoming.seal()
            path = self.path_of(sha256)
            folder = _lock(path.parent, fcntl.LOCK_SH)
        except OSError as error:
            incoming.discard()
            raise as_out_of_resources(error) from error
        except OutOfResources:
            incoming.discard()
            raise
        try:
            self._settle(incoming, path, folder)
            yield KeptFile(sha256, path, incoming.size_bytes)
        finally:
            os.close(folder)

    def _settle(self, incoming: IncomingFile, path: Path, folder: int) -> None:
        try:
            if not path.exists():
                incoming.path.rename(path)
            # Also for a file that was there: whoever renamed it may have died before this flush.
            if self._durability is Durability.POWER_LOSS:
                os.fsync(folder)
        except OSError as error:
            raise as_out_of_resources(error) from error
        finally:
            incoming.discard()

    @contextmanager
    def alone_with(self, folder: str) -> Iterator[None]:
        """Keeps everybody else out of one of the FOLDERS while the block runs: nothing is kept there, or being recorded.

        Raises OutOfResources when it cannot be had for long.
        """
        descriptor = _lock(self._root / folder, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)


def _lock(folder: Path, how: int) -> int:
    """Answers a descriptor of the folder that holds its lock until it is closed."""
    deadline = time.monotonic() + LOCK_WAIT_S
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutOfResources(f"the folder {folder.name} of the spool is held by another process") from None
                time.sleep(0.002)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _open_kept(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, KEPT_MODE)


def _file_head(identity: FileIdentity) -> bytes:
    """Answers preamble and file meta information; written by hand, since the values come from the network and may be anything."""
    elements = [
        _element(0x0001, b"OB", b"\x00\x01"),
        _element(0x0002, b"UI", _text(identity.sop_class_uid)),
        _element(0x0003, b"UI", _text(identity.sop_instance_uid)),
        _element(0x0010, b"UI", _text(identity.transfer_syntax_uid)),
        _element(0x0012, b"UI", _text(IMPLEMENTATION_CLASS_UID)),
        _element(0x0013, b"SH", _text(IMPLEMENTATION_VERSION_NAME)),
    ]
    if identity.calling_ae_title:
        elements.append(_element(0x0016, b"AE", _text(identity.calling_ae_title)))
    meta = b"".join(elements)
    return b"\x00" * 128 + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(meta))) + meta


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """Answers an element of group 0002 in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if len(value) % 2:
        value += b"\x00" if vr in {b"UI", b"OB"} else b" "
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, number) + vr + length + value


def _text(value: str) -> bytes:
    return value.encode("ascii", "replace")
