"""An arriving file holds what came, whichever way it came: written, held back to its end, or put in its place by the network."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from node.errors import OutOfResources
from node.files import Durability, lies_in_memory
from node.intake.incoming import BEGINNING_BYTES, FileIdentity, IncomingFile
from node.intake.seal import SEAL_BYTES, decode_seal
from node.intake.slots import SIZE_CLASSES_BYTES, Place, Slots
from node.intake.spool import Spool, TornFile

IDENTITY = FileIdentity("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1", "TESTER")
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory is meant
IS_MEMORY = lies_in_memory(MEMORY)
SMALLEST = SIZE_CLASSES_BYTES[0]


@contextmanager
def folder_for(kind: str, tmp_path: Path) -> Iterator[Path]:
    """A folder where files are of a kind; empty behind the block."""
    folder = MEMORY / f"radnode-test-{os.getpid()}" if kind == "mapped" else tmp_path
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        if kind == "mapped":
            folder.rmdir()


def place_for(folder: Path, kind: str) -> Place:
    if kind == "new":
        return Place(str(folder / "new.part"))
    durability = Durability.POWER_LOSS if kind == "empty" else Durability.PROCESS_CRASH
    slots = Slots(folder, durability, 0 if kind == "empty" else SMALLEST)
    slots.take(SMALLEST)  # it is this size that comes
    slots.refill()
    place = slots.take(SMALLEST)
    if kind == "mapped":
        assert place.mapped is not None
    return place


def contents(sealed_name: str) -> tuple[bytes, bytes]:
    """Head without seal, and data set, of a sealed file."""
    content = Path(sealed_name).read_bytes()
    seal = decode_seal(content[:SEAL_BYTES])
    assert seal is not None
    return content[SEAL_BYTES : seal.head_bytes], content[seal.head_bytes : seal.end_bytes]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["new", "empty", "with blocks", "mapped"]),
    st.lists(st.tuples(st.sampled_from(["write", "placed"]), st.integers(0, 70_000)), max_size=5),
    st.integers(0, 70_000),
)
@example("mapped", [("placed", SMALLEST)], 9)
@example("mapped", [], BEGINNING_BYTES)
@example("new", [], 5)
@example("new", [("write", 0)], 5)
def test_a_sealed_file_holds_what_came(tmp_path: Path, kind: str, parts: list[tuple[str, int]], last: int) -> None:
    kind = "with blocks" if kind == "mapped" and not IS_MEMORY else kind
    with folder_for(kind, tmp_path) as folder:
        durability = Durability.POWER_LOSS if kind == "empty" else Durability.PROCESS_CRASH
        incoming = IncomingFile(place_for(folder, kind), IDENTITY, durability=durability)
        said = b""
        for number, (how, size) in enumerate(parts):
            piece = bytes([number + 1]) * size
            room = incoming.room() if how == "placed" else None
            if room is None:
                incoming.write(piece)
            else:
                piece = piece[: len(room)]
                room[: len(piece)] = piece
                incoming.note_placed(room[: len(piece)])
            said += piece
        incoming.conclude(b"\xff" * (last // 2), b"\xee" * (last - last // 2))
        said += b"\xff" * (last // 2) + b"\xee" * (last - last // 2)
        assert incoming.beginning == said[:BEGINNING_BYTES]
        sealed = incoming.seal()
        head, data = contents(sealed.name)
        assert data == said
        assert head.startswith(b"DICM\x02\x00\x00\x00UL")
        assert sealed.seal.sha256 in {b"", hashlib.sha256(said).digest()}


def test_what_is_held_back_to_the_end_can_be_read_by_its_path_when_somebody_asks(tmp_path: Path) -> None:
    incoming = IncomingFile(Place(str(tmp_path / "one.part")), IDENTITY)
    incoming.conclude(b"all of it")
    assert incoming.path.read_bytes() == b""
    incoming.flush()
    assert incoming.path.read_bytes().endswith(b"all of it")
    assert contents(incoming.seal().name)[1] == b"all of it"


def test_a_file_that_is_shorter_than_its_seal_says_is_set_aside(tmp_path: Path) -> None:
    """Killed in the middle of the one write that brings a short instance and its seal, and so never answered; or cut by somebody."""
    spool = Spool(tmp_path / "spool", durability=Durability.PROCESS_CRASH)
    spool.prepare()
    incoming = spool.open_incoming(IDENTITY)
    incoming.conclude(b"all of it")
    sealed = incoming.seal()
    os.truncate(sealed.name, len(sealed.path.read_bytes()) - 1)
    assert list(spool.sealed()) == []
    assert not sealed.path.exists()
    assert (tmp_path / "spool" / "unverified" / sealed.path.name).exists()


def test_a_sealed_file_that_somebody_has_cut_is_never_made_longer(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", durability=Durability.PROCESS_CRASH)
    spool.prepare()
    incoming = spool.open_incoming(IDENTITY)
    incoming.conclude(b"all of it")
    sealed = incoming.seal()
    os.truncate(sealed.name, sealed.seal.end_bytes - 1)
    with pytest.raises(TornFile), spool.settling([sealed]):
        pass
    assert sealed.path.stat().st_size == sealed.seal.end_bytes - 1


@pytest.mark.parametrize("kind", ["with blocks", "mapped"])
def test_a_place_with_blocks_that_was_removed_by_hand_is_made_again(tmp_path: Path, kind: str) -> None:
    """Its pages, where they are mapped, are those of no file any more: bytes put there would be gone."""
    if kind == "mapped" and not IS_MEMORY:
        pytest.skip("no file system in memory at /dev/shm")
    with folder_for(kind, tmp_path) as folder:
        place = place_for(folder, kind)
        Path(place.name).unlink()
        incoming = IncomingFile(place, IDENTITY, durability=Durability.PROCESS_CRASH)
        assert incoming.room() is None
        incoming.write(b"bytes, ")
        incoming.conclude(b"and the rest")
        assert contents(incoming.seal().name)[1] == b"bytes, and the rest"


def test_refusals_leave_no_places_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", refuse_below_free_bytes=1 << 60)
    spool.prepare()
    for _ in range(100):
        with pytest.raises(OutOfResources):
            spool.open_incoming(IDENTITY).seal()
    spool.clear()
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []


def test_a_file_that_was_opened_ahead_is_begun_when_it_is_known_what_comes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", durability=Durability.PROCESS_CRASH)
    spool.prepare()
    incoming = spool.open_ahead()
    assert incoming is not None
    incoming.begin(IDENTITY)
    incoming.write(b"some, ")
    incoming.conclude(b"and the rest")
    assert contents(incoming.seal().name)[1] == b"some, and the rest"


def test_a_file_that_was_opened_ahead_is_refused_when_the_disk_has_filled_up_since(tmp_path: Path) -> None:
    incoming = IncomingFile(Place(str(tmp_path / "one.part")), objection=lambda: OutOfResources("full"))
    assert incoming.is_open
    incoming.begin(IDENTITY)
    incoming.conclude(b"all of it")
    with pytest.raises(OutOfResources, match="full"):
        incoming.seal()
    assert not incoming.path.exists()


def test_nothing_is_opened_ahead_where_the_disk_does_not_let_us(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "absent", durability=Durability.PROCESS_CRASH)
    assert spool.open_ahead() is None


def test_a_place_that_was_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    place = place_for(tmp_path, "empty")
    Path(place.name).unlink()
    incoming = IncomingFile(place, IDENTITY)
    incoming.write(b"bytes")
    assert contents(incoming.seal().name)[1] == b"bytes"
