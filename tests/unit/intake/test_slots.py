"""Places made ahead: as many as there is room for, of the size that comes, none twice, none left behind."""

import errno
import threading
from pathlib import Path

import pytest

from node.files import Durability
from node.intake.slots import MADE_AT_ONCE, REFILL_BELOW, SIZE_CLASSES_BYTES, Slots, size_class_of

CT = SIZE_CLASSES_BYTES[1]


@pytest.mark.parametrize(
    ("size_bytes", "size_class"),
    [(0, None), (10_000, None), (140_000, 160 << 10), (526_000, 576 << 10), (2_100_000, 2304 << 10), (1 << 30, 2304 << 10)],
)
def test_an_instance_is_given_the_smallest_place_that_holds_it(size_bytes: int, size_class: int | None) -> None:
    assert size_class_of(size_bytes) == size_class


def filled(slots: Slots) -> Slots:
    while slots.refill():
        pass
    return slots


def test_no_more_is_taken_of_the_disk_than_was_given(tmp_path: Path) -> None:
    slots = filled(Slots(tmp_path, Durability.PROCESS_CRASH, 5 * CT + 1000))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [CT] * 5
    taken = [slots.take(526_000) for _ in range(7)]
    assert len({place.name for place in taken}) == 7, "more than there are come as new names"
    assert (
        [Path(place.name).exists() for place in taken]
        == [place.is_made and place.has_blocks for place in taken]
        == [True] * 5 + [False] * 2
    )


def test_places_of_another_size_give_way_to_those_that_come(tmp_path: Path) -> None:
    slots = filled(Slots(tmp_path, Durability.PROCESS_CRASH, 4 * CT))
    assert not slots.take(140_000).is_made
    filled(slots)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) <= 4 * CT
    assert sizes.count(SIZE_CLASSES_BYTES[0]) >= 10


def test_names_are_made_and_flushed_ahead_where_the_power_may_go(tmp_path: Path) -> None:
    slots = Slots(tmp_path, Durability.POWER_LOSS)
    place = slots.take()
    assert place.is_made
    assert not place.has_blocks
    assert Path(place.name).read_bytes() == b""
    assert len(list(tmp_path.iterdir())) == MADE_AT_ONCE
    for _ in range(MADE_AT_ONCE - REFILL_BELOW):
        slots.take()
    assert not slots.refill(), "empty places are made at once, and no more are wanted"
    assert len(list(tmp_path.iterdir())) == 2 * MADE_AT_ONCE
    slots.clear()
    assert len(list(tmp_path.iterdir())) == MADE_AT_ONCE - REFILL_BELOW + 1, "those that were taken"


def test_a_refill_that_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(tmp_path, Durability.POWER_LOSS, 40 * CT)
    flushed: list[Path] = []

    def fail_at_the_third(path: Path) -> None:
        flushed.append(path)
        if len(flushed) % 3 == 0:
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("node.intake.slots.flush_file", fail_at_the_third)
    for _ in range(5):
        with pytest.raises(OSError, match="broken"):
            slots.refill()
    slots.clear()
    assert list(tmp_path.iterdir()) == []


def test_no_place_is_given_twice(tmp_path: Path) -> None:
    slots = Slots(tmp_path, Durability.POWER_LOSS, 3 * CT)
    filled(slots)
    taken: list[str] = []
    threads = [threading.Thread(target=lambda: taken.extend(slots.take().name for _ in range(100))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 800


def test_a_folder_that_takes_nothing_is_left_for_the_file_itself_to_meet(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "absent", Durability.POWER_LOSS, CT)
    assert not slots.take().is_made
    with pytest.raises(FileNotFoundError):
        slots.refill()
