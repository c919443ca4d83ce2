"""Where received instances lie: the bytes as they came, named by their content, durable before anybody is told.

    spool/incoming/          arriving, or sealed: whole, answered with success, and not yet named (seal.py)
    spool/ab/<sha256>.dcm    kept: 0440, never written again
    spool/unverified/        sealed without a digest in a run of the machine that ended: maybe torn, set aside

The name is the sha256 of the data set without preamble and file meta information, so the same data set from two senders is
kept once. UIDs are never parts of a path. The order is: write, seal, fsync, answer; then link, fsync of the folder, the journal;
and then the old name goes. Whatever dies in between, a sealed file is found at the next start, and goes the rest of the way.

Retention and intake meet at the lock of a folder. Whoever keeps a file holds it shared from the look whether the file is there
until its row is committed; whoever removes one holds it alone, and asks the journal first. So a row that says "here" has its file.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from node.errors import NodeError, OutOfResources
from node.files import Durability, flush_file, fsync_folder
from node.intake.incoming import FileIdentity, IncomingFile, SealedFile
from node.intake.seal import SEAL_BYTES, Seal, decode_seal, this_boot
from node.intake.slots import Slots
from node.intake.watermark import Watermark, as_out_of_resources

INCOMING: Final = "incoming"
UNVERIFIED: Final = "unverified"
KEPT_MODE: Final = 0o440
PIECE_BYTES: Final = 1 << 20

LOCK_WAIT_S: Final = 10.0
FOLDERS: Final = tuple(f"{number:02x}" for number in range(256))

log = structlog.get_logger("radnode")

_KEPT_NAME: Final = re.compile(r"([0-9a-f]{64})\.dcm")


@dataclass(frozen=True, slots=True)
class KeptFile:
    """An instance that lies durable in the spool."""

    sha256: str
    path: Path
    head_bytes: int
    size_bytes: int
    """Of the data set, without preamble and file meta information."""


def spooled_path(state_dir: Path, sha256: str) -> Path:
    """Answers where the spool of a node keeps the data set with this digest."""
    return _path_in(state_dir / "spool", sha256)


def _path_in(root: Path, sha256: str) -> Path:
    return root / sha256[:2] / f"{sha256}.dcm"


class TornFile(NodeError):
    """A sealed file that has lost bytes: somebody else has written to the folder of arriving files."""


class Spool:
    """The kept files of a node, and the door through which new ones come."""

    def __init__(
        self,
        root: Path,
        *,
        refuse_below_free_bytes: int = 0,
        durability: Durability = Durability.POWER_LOSS,
        preallocated_bytes: int = 0,
    ) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._durability = durability
        self._slots = Slots(self._incoming, durability, preallocated_bytes)
        self.watermark = Watermark(root, refuse_below_free_bytes)

    def prepare(self) -> None:
        """Makes the folders, before anything arrives."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            (self._root / name).mkdir(exist_ok=True)
        fsync_folder(self._root)
        fsync_folder(self._root.parent)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keeps other listeners out of the folder of arriving files while the block runs, and while a process lives that was forked in it.

        Whoever sweeps that folder must be alone: a file that is taken from under a process that still receives would be answered
        with success, and be gone. Raises OutOfResources when it cannot be had for long.
        """
        descriptor = _lock(self._incoming, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def refill(self) -> bool:
        """Makes some places ahead for what will arrive; answers whether more are wanted. Called by one thread, when nobody waits for it."""
        return not self.watermark.is_refusing and self._slots.refill()

    def clear(self) -> None:
        """Removes the places made ahead; nothing will arrive any more."""
        self._slots.clear()

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

    def open_incoming(self, identity: FileIdentity, expected_bytes: int | None = None) -> IncomingFile:
        """Begins a file for an arriving instance; what is wrong with the disk is raised when it is sealed, not here.

        `expected_bytes`: how long the data set will be, if anybody knows.
        """
        fault = self.watermark.objection()
        place = self._slots.untaken() if fault is not None else self._slots.take(expected_bytes)
        return IncomingFile(place, identity, objection=self.watermark.objection, durability=self._durability, fault=fault)

    def open_ahead(self, expected_bytes: int | None = None) -> IncomingFile | None:
        """Opens a file for an instance that is likely to come; answers None where that cannot be now."""
        incoming = IncomingFile(self._slots.take(expected_bytes), objection=self.watermark.objection, durability=self._durability)
        return incoming if incoming.is_open else None

    def sealed(self) -> Iterator[SealedFile]:
        """Yields what an earlier life has answered for, and sweeps what it left half received; nothing may arrive meanwhile.

        Bytes that were sealed without a digest before the machine went down may be torn, and nobody can tell: they are set aside; so is
        a file that is shorter than its seal says.
        """
        boot_id = this_boot()
        for path in sorted(self._incoming.iterdir()):
            with path.open("rb") as stream:
                seal = decode_seal(stream.read(SEAL_BYTES))
                is_whole = seal is not None and os.fstat(stream.fileno()).st_size >= seal.end_bytes
            if seal is None:
                path.unlink(missing_ok=True)
            elif is_whole and seal.outlives(boot_id) and (not seal.sha256 or seal.sha256.hex() == _digest_of(path, seal)):
                if not seal.sha256 and self._durability is Durability.POWER_LOSS:
                    flush_file(path)  # sealed when less was promised
                yield SealedFile(str(path), seal)
            else:
                self.set_aside(path)

    def set_aside(self, path: Path) -> None:
        """Puts a sealed file where nobody takes it for whole, and says so."""
        aside = self._root / UNVERIFIED
        aside.mkdir(exist_ok=True)
        path.rename(aside / path.name)
        log.error(
            "instance.unverified",
            file=str(aside / path.name),
            meaning="its answer was under way when the machine went down, and its bytes may not all be there: have the study sent again",
        )

    def keep(self, incoming: IncomingFile) -> KeptFile:
        """Makes an arrived instance durable, where nothing is ever removed; see `keeping`."""
        with self.keeping(incoming) as kept:
            return kept

    @contextmanager
    def keeping(self, incoming: IncomingFile) -> Iterator[KeptFile]:
        """Makes an arrived instance durable under the name of its content, at once; see `settling`.

        Raises
        ------
        OutOfResources
            When the disk is full or below the limit; nothing is left of the instance.
        """
        sealed = incoming.seal()
        incoming.close()
        with self.settling([sealed]) as kept:
            yield kept[0]

    @contextmanager
    def settling(self, files: Sequence[SealedFile]) -> Iterator[list[KeptFile]]:
        """Gives sealed files the names of their content; the same content is kept once.

        They are safe from retention while the block runs, which records them. Should it raise, they are sealed as before.

        Raises
        ------
        OutOfResources
            When the disk does not let us, or a folder is held by others for long.
        """
        folders: dict[Path, int] = {}
        try:
            try:
                for file in files:
                    self._cut(file)
                kept = [self._settle(file, folders) for file in files]
                if self._durability is Durability.POWER_LOSS:
                    for folder in folders.values():
                        os.fsync(folder)
            except OSError as error:
                raise as_out_of_resources(error) from error
            yield kept
            for file in files:
                with suppress(OSError):  # a second name of what is kept: settled once more after the next start
                    file.path.unlink(missing_ok=True)
        finally:
            for folder in folders.values():
                os.close(folder)

    def _cut(self, file: SealedFile) -> None:
        """Cuts off what a place was longer than the instance, durably before the file has its name. Never makes a file longer."""
        size_bytes = file.path.stat().st_size
        if size_bytes < file.seal.end_bytes:
            raise TornFile(f"{file.path.name} is shorter than it was when it was sealed")
        if size_bytes != file.seal.end_bytes:
            os.truncate(file.path, file.seal.end_bytes)
            if self._durability is Durability.POWER_LOSS:
                flush_file(file.path)

    def _settle(self, file: SealedFile, folders: dict[Path, int]) -> KeptFile:
        """Links a file to its name, under the shared lock of the folder; its old name stays until it is recorded."""
        sha256 = file.seal.sha256.hex() or _digest_of(file.path, file.seal)
        path = self.path_of(sha256)
        if path.parent not in folders:
            folders[path.parent] = _lock(path.parent, fcntl.LOCK_SH)
        file.path.chmod(KEPT_MODE)
        with suppress(FileExistsError):  # the same content again, or the second attempt to record it
            path.hardlink_to(file.path)
        return KeptFile(sha256, path, file.seal.head_bytes, file.seal.size_bytes)

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


def _digest_of(path: Path, seal: Seal) -> str:
    """Answers the sha256 of the data set in a file."""
    digest = hashlib.sha256()
    left = seal.size_bytes
    with path.open("rb", buffering=0) as stream:
        stream.seek(seal.head_bytes)
        while left and (piece := stream.read(min(left, PIECE_BYTES))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


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
