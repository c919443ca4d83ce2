"""Seconds, CPU seconds and peak memory of a process tree, read from /proc."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a span of time cost a process tree."""

    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_own_mib: float
    """The same, pages that processes share counted once, and files in memory that they have mapped not at all."""


class Meter:
    """Measures the tree below a process from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_s = self._cpu_now_s()
        self._started = time.perf_counter()

    def read(self) -> Cost:
        """Answers the cost since the meter was made; the peak is that of the processes' whole life."""
        wall_s = time.perf_counter() - self._started
        cpu_s = self._cpu_now_s() - self._cpu_s
        pids = list(tree(self._pid))
        peak_mib = sum(map(_peak_rss_mib, pids))
        return Cost(wall_s, cpu_s, peak_mib, peak_mib - sum(map(_shared_or_mapped_mib, pids)))

    def _cpu_now_s(self) -> float:
        return sum(_cpu_s(pid) for pid in tree(self._pid))


def tree(pid: int) -> Iterator[int]:
    """Answers a process and all that descend from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            for child in task.read_text().split():
                yield from tree(int(child))


def _cpu_s(pid: int) -> float:
    """With the children that have ended: user, system, and both of the reaped children (proc(5), fields 14 to 17)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since: its parent's fields have its seconds
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS_A_SECOND


def _shared_or_mapped_mib(pid: int) -> float:
    """Answers by how much the resident memory of a process is more than its own share of it (proc(5), smaps_rollup)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # a process of storescp --fork that has ended
        return 0.0
    kib = {words[0]: int(words[1]) for line in lines if len(words := line.split()) == 3}
    return (kib["Rss:"] - kib["Pss_Anon:"] - kib["Pss_File:"]) / 1024


def _peak_rss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
