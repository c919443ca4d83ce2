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


class Meter:
    """Measures the tree below a process from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_s = self._cpu_now_s()
        self._started = time.perf_counter()

    def read(self) -> Cost:
        """Answers the cost since the meter was made; the peak is that of the processes' whole life."""
        wall_s = time.perf_counter() - self._started
        return Cost(wall_s, self._cpu_now_s() - self._cpu_s, sum(_peak_rss_mib(pid) for pid in tree(self._pid)))

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


def _peak_rss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
