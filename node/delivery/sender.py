"""Sending folders by hand: what `radnode send` needs."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.delivery.parallel import store_in_parallel
from node.delivery.part10 import Part10File, read_part10
from node.delivery.store_scu import StoreOutcome
from node.delivery.upper_layer import Peer, Timeouts
from node.errors import StoreRefused

OnOutcome = Callable[[StoreOutcome, int, int], None]
"""Called after each file with what became of it, how many are done, and how many there are."""

_DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class SendSummary:
    """What became of the files of a `radnode send`."""

    outcomes: tuple[StoreOutcome, ...]
    skipped: tuple[tuple[Path, str], ...]
    """Files that are no DICOM instances, and why."""
    size_bytes: int
    elapsed_s: float

    @property
    def statuses(self) -> dict[str, int]:
        """How many files ended how: `stored`, `StoreRefused`, ..."""
        return dict(Counter(outcome.status for outcome in self.outcomes))

    @property
    def stored(self) -> int:
        """How many files the peer has now."""
        return self.statuses.get("stored", 0)

    @property
    def failed(self) -> tuple[StoreOutcome, ...]:
        """The files that the peer does not have, as far as we know."""
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)


def send_paths(
    peer: Peer,
    paths: Sequence[Path],
    *,
    on_outcome: OnOutcome | None = None,
    timeouts: Timeouts | None = None,
    associations: int = 1,
) -> SendSummary:
    """Sends every DICOM file below `paths` to a peer, over so many associations at once.

    What fails is told in the summary, nothing is raised for it.
    """
    started = time.perf_counter()
    files: list[Part10File] = []
    skipped: list[tuple[Path, str]] = []
    for path in find_files(paths):
        try:
            file = read_part10(path)
        except StoreRefused as error:
            skipped.append((path, str(error)))
            continue
        if file.sop_class_uid == _DICOMDIR:
            skipped.append((path, "a directory of a medium, no instance"))
        else:
            files.append(file)
    outcomes: list[StoreOutcome] = []
    for outcome in store_in_parallel(peer, files, associations=associations, timeouts=timeouts):
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome, len(outcomes), len(files))
    size_bytes = sum(outcome.path.stat().st_size for outcome in outcomes if outcome.error is None)
    return SendSummary(tuple(outcomes), tuple(skipped), size_bytes, time.perf_counter() - started)


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Answers the files among and below `paths`, each folder in order of name."""
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.is_file())
        else:
            yield path
