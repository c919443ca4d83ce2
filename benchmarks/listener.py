"""`make bench-listener`: how fast instances are received, beside storescp, Orthanc and pynetdicom's own application.

Receivers take turns (A B C A B C …), each started afresh in an empty folder and warmed up; the sender is `benchmarks.blast`, or
storescu as it comes. Whatever arrived is compared byte for byte with what was sent. Figures are medians; a ratio is the median of
the ratios within a round. CPU seconds are those of the receiver's whole tree until everything is filed.
"""

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.corpora import Corpus, make_corpus
from benchmarks.limits import flush_floor, socket_limit
from benchmarks.listener_tables import FLOOR, LIMIT, Rounds, Target, markdown
from benchmarks.measuring import Meter
from benchmarks.receivers import Receiver, receivers
from benchmarks.receivers import Target as Door
from tests.peers import tool

RESULTS: Final = Path(__file__).resolve().parent / "results" / "listener.json"
SENDER_TIMEOUT_S: Final = 900
QUIET_SHARE: Final = 0.3
OURS: Final = ("radnode pc", "radnode pc preallocated")
OURS_ON_DISK: Final = ("radnode pl", "radnode pl preallocated")
SLOW_BYTES_PER_S: Final = 10_000


@dataclass(frozen=True, slots=True)
class Trial:
    """A row of the table: what is sent, how, to whom."""

    corpus: str
    receivers: tuple[str, ...]
    associations: int = 1
    sender: str = "blast"
    """Or storescu (its defaults, Nagle on), or echo, or slow (blast, one more sender being slow in every other round)."""
    targets: tuple[Target, ...] = ()
    slow: tuple[str, ...] = ()
    """Receivers that take so long that a round or two of them have to do."""


def _against(best: float, orthanc: float, pynetdicom: float) -> tuple[Target, ...]:
    """Answers the targets in memory; without preallocated files as fast as the best is enough."""
    plain, preallocated = OURS
    return (
        Target(plain, "storescp", min(best, 1.0)),
        Target(preallocated, "storescp", best),
        *(Target(ours, other, times) for ours in OURS for other, times in (("orthanc", orthanc), ("pynetdicom", pynetdicom))),
    )


def _each(names: Sequence[str], others: Sequence[str], times: float) -> tuple[Target, ...]:
    return tuple(Target(name, other, times) for name in names for other in others)


IN_MEMORY: Final = (*OURS, "storescp", "orthanc", "pynetdicom")
IN_PAGE_CACHE: Final = ("radnode pc disk", "radnode pc preallocated disk", "storescp disk")
ON_DISK: Final = (*OURS_ON_DISK, "orthanc disk")
TRIALS: Final[Mapping[str, Trial]] = {
    "ct500": Trial("ct500", IN_MEMORY, targets=_against(1.4, 6, 12)),
    "ct500 x4": Trial("ct500", IN_MEMORY, 4, targets=_against(0.95, 6, 12)),
    "ct500 pc disk": Trial(
        "ct500",
        IN_PAGE_CACHE,
        targets=(Target(IN_PAGE_CACHE[0], IN_PAGE_CACHE[2], 1.0), Target(IN_PAGE_CACHE[1], IN_PAGE_CACHE[2], 1.4)),
    ),
    "ct500 disk": Trial("ct500", ON_DISK, targets=_each(OURS_ON_DISK, ["orthanc disk"], 2.5)),
    "ct500 disk x4": Trial("ct500", ON_DISK, 4, targets=_each(OURS_ON_DISK, ["orthanc disk"], 2.5)),
    "small5000": Trial("small5000", IN_MEMORY, targets=_against(1.0, 10, 20), slow=("pynetdicom",)),
    "storescu": Trial(
        "ct100",
        (*OURS, "storescp defaults", "orthanc defaults"),
        sender="storescu",
        targets=_each(OURS, ["storescp defaults", "orthanc defaults"], 20.0),
    ),
    "echo": Trial(
        "warm-up",
        ("radnode pc", "storescp", "pynetdicom"),
        4,  # so that storescp forks
        sender="echo",
        targets=(Target("radnode pc", "pynetdicom", 20.0), Target("radnode pc", "storescp", 2.0)),
    ),
    "ct2000": Trial("ct2000", (*OURS, "storescp")),
    "multi-frame": Trial("multi-frame", (*OURS, "storescp")),
    "slow sender": Trial("ct900", OURS, 15, sender="slow", targets=tuple(Target(f"{name}+slow", name, 0.95) for name in OURS)),
}
LIMITS: Final = (FLOOR, LIMIT)
SLOW_ROUNDS: Final = 2
TARGETS: Final = {name: trial.targets for name, trial in TRIALS.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is measured."""

    rounds: int = 5
    trials: tuple[str, ...] = (*LIMITS, *TRIALS)
    receivers: tuple[str, ...] = ()
    """All that a trial names, where none is given."""
    longest_pdu_bytes: int = 131072
    scale: float = 1.0
    """Of the corpora; below 1 to try the program: the figures mean nothing then."""
    memory: Path = Path("/dev/shm")  # noqa: S108 - a tmpfs is meant
    """Where corpora lie, and the receivers that promise nothing about power."""
    quiet_s: float = 5.0
    """How long at most to wait, before each measurement, for the rest of the machine to be idle."""


def measure(disk: Path, settings: Settings, results: Path | None = RESULTS) -> None:
    """Runs the trials; keeps every figure as JSON beside what other runs have kept, and prints all as tables in Markdown."""
    memory = settings.memory / disk.name
    known = receivers()
    with _scratch(memory), _scratch(disk):
        warm_up = make_corpus("warm-up", memory / "warm-up")
        for name in settings.trials:
            if name in LIMITS:
                found = _limits(name, disk if name == FLOOR else memory, settings)
            else:
                trial = TRIALS[name]
                chosen = [known[one] for one in trial.receivers if one in known and (not settings.receivers or one in settings.receivers)]
                corpus = make_corpus(trial.corpus, memory / "corpus", scale=settings.scale)
                found = _run(trial, chosen, _Ground(memory, disk, corpus, warm_up, settings))
                shutil.rmtree(corpus.folder)
            told = _told(name, found, settings)
            if results is None:
                print(markdown(told, TARGETS))
            else:
                _keep(results, told)
                print(f"{name}: in {results.with_suffix('.md')}", file=sys.stderr)
    if results is not None:
        print(results.with_suffix(".md").read_text())


@dataclass(frozen=True, slots=True)
class _Ground:
    memory: Path
    disk: Path
    corpus: Corpus
    warm_up: Corpus
    settings: Settings


def _run(trial: Trial, chosen: Sequence[Receiver], ground: _Ground) -> dict[str, list[dict[str, float]]]:
    """Answers the rounds of every receiver."""
    variants = ["", "+slow"] if trial.sender == "slow" else [""]
    rounds: dict[str, list[dict[str, float]]] = {receiver.name + variant: [] for receiver in chosen for variant in variants}
    for number in range(ground.settings.rounds):
        for receiver, variant in itertools.product(chosen, variants):
            if receiver.name not in trial.slow or number < SLOW_ROUNDS:
                print(f"round {number + 1} of {ground.settings.rounds}: {receiver.name}{variant}", file=sys.stderr)
                folder = (ground.disk if receiver.on_disk else ground.memory) / "receiver"
                with _scratch(folder), receiver.open(folder / "own", associations=trial.associations) as target:
                    rounds[receiver.name + variant].append(_one(trial, target, ground, slow=bool(variant)))
    return rounds


def _one(trial: Trial, target: Door, ground: _Ground, *, slow: bool) -> dict[str, float]:
    """Answers one round: what the sender says, what the receiver cost, whether every byte arrived."""
    _send(trial, target, ground.warm_up, ground.settings)  # over as many associations as will come
    expected = {} if trial.sender == "echo" else ground.corpus.digests
    before = len(ground.warm_up.digests) if expected else 0
    target.settle(before)
    os.sync()  # what is still to be written by others than this receiver would be flushed with its own
    _wait_for_quiet(ground.settings.quiet_s)
    busy_before, meter = _busy_s(), Meter(target.pid)
    said = _send(trial, target, ground.corpus, ground.settings, slow=slow)
    sender_s = said.pop("sender_cpu_s")
    started = time.perf_counter()
    target.settle(before + len(expected))
    cost, settled_s = meter.read(), time.perf_counter() - started
    others_s = _busy_s() - busy_before - sender_s - cost.cpu_s
    kept = target.kept() if expected else {}
    identical = sum(digest in kept.get(uid, ()) for uid, digest in expected.items())
    return said | {
        "cpu_s": cost.cpu_s,
        "peak_mib": cost.peak_own_mib,
        "peak_rss_mib": cost.peak_rss_mib,
        "identical": identical,
        "expected": len(expected),
        "settled_s": settled_s,
        "others": max(0.0, others_s / (cost.wall_s * (os.cpu_count() or 1))),
    }


def _send(trial: Trial, target: Door, corpus: Corpus, settings: Settings, *, slow: bool = False) -> dict[str, float]:
    """Answers what the sender says, with its CPU seconds."""
    before = os.times()
    if trial.sender == "storescu":
        said = _storescu(target, corpus)
    else:
        more = {"echo": ["--echo", "50"], "slow": ["--slow", str(SLOW_BYTES_PER_S)] if slow else []}.get(trial.sender, [])
        command = [
            sys.executable, "-m", "benchmarks.blast", str(target.port), str(corpus.folder), "--called", target.called,
            "--associations", str(trial.associations), "--longest-pdu", str(settings.longest_pdu_bytes), *more,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SENDER_TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
        said = json.loads(done.stdout)
    after = os.times()
    said["sender_cpu_s"] = after.children_user + after.children_system - before.children_user - before.children_system
    return said


def _storescu(target: Door, corpus: Corpus) -> dict[str, float]:
    """Sends with storescu as it comes: Nagle's algorithm on, PDUs of 16 kB; its start counts."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    command = [tool("storescu"), "-R", "-xe", "-aec", target.called, "127.0.0.1", str(target.port), "+sd", str(corpus.folder)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SENDER_TIMEOUT_S, env=environment)
    wall_s = time.perf_counter() - started
    assert done.returncode == 0, done.stderr[-2000:]
    return {"wall_s": wall_s, "instances": len(corpus.digests), "megabytes": corpus.megabytes, "failed": 0}


def _limits(name: str, folder: Path, settings: Settings) -> dict[str, list[dict[str, float]]]:
    """Answers what the machine can do at best."""
    instances, size_bytes, small_bytes = max(8, round(500 * settings.scale)), 525_000, 10_000
    rounds: dict[str, list[dict[str, float]]] = {f"at {at_once}": [] for at_once in (1, 4)}
    for _ in range(settings.rounds):
        for at_once in (1, 4):
            _wait_for_quiet(settings.quiet_s)
            with _scratch(folder / "limit"):
                if name == FLOOR:
                    found = flush_floor(folder / "limit" / "files", size_bytes=size_bytes, instances=instances, at_once=at_once)
                else:
                    sizes = [size_bytes] * instances
                    into_files = socket_limit(folder / "limit" / "files", sizes=sizes, at_once=at_once)
                    nowhere = socket_limit(None, sizes=sizes, at_once=at_once)
                    small = socket_limit(folder / "limit" / "small", sizes=[small_bytes] * (10 * instances), at_once=at_once)
                    found = {f"files_{key}": value for key, value in into_files.items()}
                    found |= {f"nowhere_{key}": value for key, value in nowhere.items()}
                    found["small_per_s"] = small["megabytes_per_s"] * 1e6 / small_bytes
            rounds[f"at {at_once}"].append(found)
    return rounds


def _told(name: str, found: Rounds, settings: Settings) -> dict[str, Any]:
    """Answers what a trial found, as it is kept."""
    trial = {
        "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "pdu_bytes": settings.longest_pdu_bytes,
        "scale": settings.scale,
        "rounds": found,
    }
    return {"machine": _machine(), "trials": {name: trial}}


def _keep(results: Path, told: Mapping[str, Any]) -> None:
    """Keeps a trial beside the others, as JSON and, all of them, as tables."""
    kept = json.loads(results.read_text()) if results.exists() else {"trials": {}}
    kept["machine"] = told["machine"]
    kept["trials"] |= told["trials"]
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(kept, indent=1) + "\n")
    results.with_suffix(".md").write_text(markdown(kept, TARGETS))


def _machine() -> dict[str, Any]:
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """A folder that is empty before and gone after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_quiet(limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        before, started = _busy_s(), time.monotonic()
        time.sleep(0.3)
        if (_busy_s() - before) / ((time.monotonic() - started) * (os.cpu_count() or 1)) < QUIET_SHARE:
            return


def _busy_s() -> float:
    """Answers the CPU seconds that this machine has worked."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
