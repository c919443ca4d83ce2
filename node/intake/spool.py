"""Where received instances lie: the bytes as they came, named by their content, durable before anybody is told.

    spool/ab/<sha256>.dcm    kept: 0440, never written again
    spool/incoming/          arriving: swept when the listener starts

The name is the sha256 of the data set without preamble and file meta information, so the same data set from two senders is
kept once. UIDs are never parts of a path. The order is: write, fsync, rename, fsync of the folder; then the journal.

The 256 folders are made before anything arrives: a folder made on the way costs two more flushes, which doubled the time of
an instance. The entry that vanishes from `incoming` is not flushed: should a power cut bring it back, the sweep removes it.
"""

import errno
import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from node.codes import IMPLEMENTATION_CLASS_UID
from node.errors import OutOfResources
from node.files import fsync_folder
from node.network import IMPLEMENTATION_VERSION_NAME

INCOMING: Final = "incoming"
BUFFER_BYTES: Final = 1 << 18
KEPT_MODE: Final = 0o440

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


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

    def __init__(self, path: Path, identity: FileIdentity, fault: OutOfResources | None = None) -> None:
        self.path = path
        self.size_bytes = 0
        head = _file_head(identity)
        self.head_bytes = len(head)
        self._digest = hashlib.sha256()
        self._fault = fault
        self._stream: BinaryIO | None = None
        if fault is None:
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
            os.fsync(self._stream.fileno())
            self._close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Forgets the instance: closed and gone. Harmless when it has been kept."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self._fault = _out_of_resources(error)
        self.discard()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:  # the last buffer met a full disk: what matters is that the descriptor is free
                self._fault = self._fault or _out_of_resources(error)


class Spool:
    """The kept files of a node, and the door through which new ones come."""

    def __init__(self, root: Path, *, refuse_below_free_bytes: int = 0) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._refuse_below_free_bytes = refuse_below_free_bytes

    def prepare(self) -> int:
        """Makes the folders and sweeps what an earlier life left half received; answers how many files that was."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for number in range(256):
            (self._root / f"{number:02x}").mkdir(exist_ok=True)
        fsync_folder(self._root)
        fsync_folder(self._root.parent)
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def path_of(self, sha256: str) -> Path:
        """Answers where the data set with this digest lies."""
        return _path_in(self._root, sha256)

    def free_bytes(self) -> int:
        """Answers how much the disk can still take."""
        disk = os.statvfs(self._root)
        return disk.f_bavail * disk.f_frsize

    def open_incoming(self, identity: FileIdentity) -> IncomingFile:
        """Begins a file for an arriving instance; what is wrong with the disk is raised by `keep`, not here."""
        return IncomingFile(self._incoming / f"{uuid.uuid4().hex}.part", identity, self._want_of_space())

    def _want_of_space(self) -> OutOfResources | None:
        try:
            free = self.free_bytes()
        except OSError as error:
            return _out_of_resources(error)
        if free >= self._refuse_below_free_bytes:
            return None
        return OutOfResources(f"{free >> 20} MiB free, the listener refuses below {self._refuse_below_free_bytes >> 20} MiB")

    def keep(self, incoming: IncomingFile) -> KeptFile:
        """Makes an arrived instance durable under the name of its content; the same content is kept once.

        Raises
        ------
        OutOfResources
            When the disk is full or below the limit; nothing is left of the instance.
        """
        try:
            sha256 = incoming.seal()
            path = self.path_of(sha256)
            if not path.exists():
                incoming.path.rename(path)
            # Also for a file that was there: whoever renamed it may have died before this flush.
            fsync_folder(path.parent)
        except OSError as error:
            raise _out_of_resources(error) from error
        finally:
            incoming.discard()
        return KeptFile(sha256, path, incoming.size_bytes)


def _open_kept(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, KEPT_MODE)


def _out_of_resources(error: OSError) -> OutOfResources:
    what = "the disk is full" if error.errno in _FULL else "the spool cannot be written"
    return OutOfResources(f"{what}: {errno.errorcode.get(error.errno or 0, error.errno)}")


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
