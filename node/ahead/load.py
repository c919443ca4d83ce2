"""What else goes on in the machine, as /proc tells it."""

import math
from pathlib import Path
from typing import Final

from node.domain.ahead import Load

_PROC: Final = Path("/proc")
_CGROUP: Final = Path("/sys/fs/cgroup")


class MachineLoad:
    """Looks at the machine; each look tells of the time since the one before."""

    def __init__(self, proc: Path = _PROC, cgroup: Path = _CGROUP) -> None:
        self._proc = proc
        self._cgroup = cgroup
        self._last = self._ticks()

    def look(self) -> Load:
        """Answers the load now. What runs with lower priority, as the helper does, is in nobody's way and does not count."""
        others, everything = self._ticks()
        passed = everything - self._last[1]
        busy = (others - self._last[0]) / passed if passed > 0 else 1.0
        self._last = others, everything
        return Load(min(1.0, max(0.0, busy)), self._available_bytes())

    def _ticks(self) -> tuple[int, int]:
        """Answers clock ticks of all cores since the start: those in use, and all (proc(5): user nice system idle iowait irq softirq steal)."""
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, (self._proc / "stat").read_text().split(None, 9)[1:9])
        others = user + system + irq + softirq + steal
        return others, others + nice + idle + iowait

    def _available_bytes(self) -> float:
        lines = (line.split() for line in (self._proc / "meminfo").read_text().splitlines())
        available = next((int(words[1]) << 10 for words in lines if words[0] == "MemAvailable:"), 0)
        return min(available, self._left_in_container())

    def _left_in_container(self) -> float:
        """Answers what the limit of the container leaves, infinity where it has none; cached files give way and do not count as used."""
        try:
            most, used = (int((self._cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
            stat = dict(line.split() for line in (self._cgroup / "memory.stat").read_text().splitlines())
            return most - used + int(stat.get("inactive_file", 0))
        except (OSError, ValueError):  # no container, or "max"
            return math.inf
