"""`make soak MINUTES=n`: a real node and Debian's Orthanc under load, whose processes are killed at random moments; the promises counted.

Senders keep sending small studies: whole, again, broken off and continued, broken off for good, of a modality that no route takes.
A killer sends SIGKILL to a random process of the node, to the node itself (which is started again, as systemd would), and to the
archive. Then the killing stops, the node settles, and every acknowledged instance is looked for, byte for byte; every series for
its end; the archive for every result, once. Exit status 1 when anything is missing, double or silent.
"""

import argparse
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.soak_report import Acknowledged, Kill, Report, Sample, judge
from node.delivery.store_scu import Part10File, StoreScu, contexts_for, read_part10
from node.delivery.upper_layer import Peer, Timeouts
from node.errors import DeliveryError
from tests.bundles import make_bundle
from tests.factories import SyntheticSeries, make_ct_series, make_mr_series
from tests.integration.intake_kit import data_set_of, digest
from tests.peers import HOST, OrthancPeer, free_port, orthanc, wait_until

KILL_EVERY_S: Final = 4.0
SENDERS: Final = 3
PAUSE_S: Final = 1.5
"""Between the studies of a sender, on average."""

RESTART_S: Final = 0.5
"""What systemd would wait before it starts a dead node again."""

SETTLE_S: Final = 120.0
"""How long nothing may move before the node counts as stuck."""

WEIGHTS: Final = {"listener": 30, "dispatcher": 15, "worker": 20, "courier": 20, "supervisor": 8, "archive": 7}
"""How often each is killed; every other process of the node that there is gets OTHERS."""

OTHERS: Final = 8
KINDS: Final = {"whole": 60, "again": 10, "continued": 12, "broken off": 8, "unwanted": 10}

CONFIG: Final = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"

[listener]
host = "127.0.0.1"
port = {port}
refuse_below_free_gib = 0.0

[study_complete]
quiet_s = 1.0
max_wait_s = 60.0

[worker]
max_attempts = 10

[peers.archive]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {archive_port}
may_send = true
retry = {{ first_s = 0.5, max_s = 5.0, give_up_h = 1.0 }}

[[routes]]
name = "soak"
when = {{ Modality = ["CT"] }}
model = "thresholds"
deliver_to = ["archive"]
"""


class BrokenOff(Exception):
    """A sender ends its association in the middle, on purpose."""


class Node:
    """`radnode serve` with its processes in view."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def state_dir(self) -> Path:
        """Where it keeps everything."""
        return self.folder / "state"

    def start(self) -> None:
        """Starts it; it may take a while until it listens."""
        command = [sys.executable, "-m", "node", "serve", "--config", str(self.folder / "node.toml")]
        with (self.folder / "node.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill -9; its children follow by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; answers the exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(60)

    def children(self) -> Iterator[tuple[str, int]]:
        """Answers role and pid of its processes, by their parent's pid."""
        if self._process is None:
            return
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                pid = int(entry.name)
                if _parent_of(pid) == self._process.pid:
                    arguments = (entry / "cmdline").read_bytes().split(b"\0")
                    yield arguments[arguments.index(b"node.child") + 4].decode(), pid

    def kill_child(self, role: str) -> bool:
        """Kill -9 of the process of a role; False when there is none at the moment."""
        for found, pid in self.children():
            if found == role:
                with suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)  # of this very process, even if the number were given away now
                    try:
                        if self._process is not None and _parent_of(pid) == self._process.pid:
                            signal.pidfd_send_signal(handle, signal.SIGKILL)
                            return True
                    finally:
                        os.close(handle)
        return False

    def sample(self) -> dict[str, Sample]:
        """Answers memory and open files of its processes."""
        found = {}
        for role, pid in self.children():
            with suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[role] = Sample(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), len(list(Path(f"/proc/{pid}/fd").iterdir())))
        return found

    def waiting(self) -> int:
        """Answers how many studies, jobs and deliveries have not ended."""
        with closing(sqlite3.connect(self.state_dir / "journal.sqlite", timeout=30)) as connection:
            queries = (
                "SELECT count(*) FROM study WHERE state = 'RECEIVING'",
                "SELECT count(*) FROM job WHERE state IN ('SCHEDULED', 'IN PROGRESS')",
                "SELECT count(*) FROM delivery WHERE state = 'PENDING'",
            )
            return sum(int(connection.execute(query).fetchone()[0]) for query in queries)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@dataclass
class Traffic:
    """What the senders sent, and what was answered with success."""

    folder: Path
    port: int
    stop: threading.Event
    acknowledged: dict[str, Acknowledged] = field(default_factory=dict)
    moments: list[float] = field(default_factory=list)
    studies: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)

    def run(self, number: int, seed: str) -> None:
        """One sender, in its own thread, until `stop`; what it has begun and must continue, it ends."""
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - dice, no secret
        sent: list[SyntheticSeries] = []
        count = 0
        while not self.stop.is_set():
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            count += 1
            try:
                self._send_study(kind, f"{number}-{count}", chance, sent)
            except Exception as error:  # noqa: BLE001 - a fault of the harness must show in the report, not end in a thread
                self.surprises.append(f"sender: {type(error).__name__}: {error}")
            self.stop.wait(chance.expovariate(1 / PAUSE_S))

    def _send_study(self, kind: str, name: str, chance: random.Random, sent: list[SyntheticSeries]) -> None:
        self.studies[kind] += 1
        if kind == "again" and sent:
            self._send(chance.choice(sent))
            return
        make = make_mr_series if kind == "unwanted" else make_ct_series
        series = make(self.folder / name, slices=6, rows=32, columns=32, spacing_mm=(12.0, 4.0, 4.0), study=name, series=name)
        if kind in {"continued", "broken off"}:
            self._send(series, break_after=chance.randint(1, 5))
            if kind == "broken off":
                return
            self.stop.wait(chance.choice([0.0, 0.5, 4.0]))  # at once, or when the node has decided already
        self._send(series)
        if kind == "whole":
            sent.append(series)

    def _send(self, series: SyntheticSeries, break_after: int | None = None) -> None:
        """Sends until everything was acknowledged, as a modality does that keeps a queue; or breaks off after some."""
        waiting = [read_part10(path) for path in series.paths]
        deadline = time.monotonic() + SETTLE_S
        while waiting and time.monotonic() < deadline:
            try:
                self._send_some(waiting, break_after)
            except BrokenOff:
                return
            except DeliveryError:
                time.sleep(0.2)
        if waiting:
            self.surprises.append(f"sender: {len(waiting)} instances were not taken within {SETTLE_S:.0f} s")

    def _send_some(self, waiting: list[Part10File], break_after: int | None) -> None:
        peer = Peer(HOST, self.port, "RADNODE", "ORTHANC")
        count = 0
        with StoreScu(peer, contexts_for(waiting), Timeouts(2.0, 30.0)) as scu:
            while waiting:
                scu.store(waiting[0])
                file = waiting.pop(0)
                self.acknowledged[file.sop_instance_uid] = Acknowledged(file.sop_instance_uid, digest(data_set_of(file.path)))
                self.moments.append(time.monotonic())
                count += 1
                if count == break_after:
                    raise BrokenOff


@dataclass
class Killer:
    """Kills at random moments."""

    node: Node
    archive: OrthancPeer
    chance: random.Random
    kills: list[Kill] = field(default_factory=list)
    highest: dict[str, Sample] = field(default_factory=dict)

    def run(self, until_s: float, every_s: float) -> None:
        """Kills until the clock says so."""
        victims = sorted({role for role, _ in self.node.children()} | WEIGHTS.keys())
        weights = [WEIGHTS.get(victim, OTHERS) for victim in victims]
        self.chance.shuffle(first := list(victims))  # each once, then as the dice fall
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, self.chance.uniform(0.2, 2 * every_s - 0.2)))
            self._watch()
            victim = first.pop() if first else self.chance.choices(victims, weights)[0]
            if self._kill(victim):
                print(f"{time.strftime('%H:%M:%S')} killed {victim} ({len(self.kills)})", file=sys.stderr)

    def _kill(self, victim: str) -> bool:
        moment = time.monotonic()
        if victim == "supervisor":
            self.node.kill()
            time.sleep(RESTART_S)
            self.node.start()
        elif victim == "archive":
            self.archive.stop()
            time.sleep(self.chance.uniform(0.5, 3.0))
            self.archive.resume()
        elif not self.node.kill_child(victim):
            return False  # it is between two lives
        self.kills.append(Kill(victim, moment))
        return True

    def _watch(self) -> None:
        for role, sample in self.node.sample().items():
            known = self.highest.get(role, sample)
            self.highest[role] = Sample(max(known.rss_mib, sample.rss_mib), max(known.descriptors, sample.descriptors))


def soak(folder: Path, *, minutes: float, seed: str, kill_every_s: float = KILL_EVERY_S) -> Report:
    """Runs the load and the kills, waits for the end of everything, and answers what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    make_bundle(folder / "models")
    stop = threading.Event()
    with orthanc(folder / "orthanc", OverwriteInstances=False) as archive:
        node = Node(folder, free_port())
        archive.add_modality("radnode", "RADNODE", node.port)  # where its reports of storage commitment go
        (folder / "node.toml").write_text(CONFIG.format(port=node.port, archive_port=archive.dicom_port))
        traffic = Traffic(folder / "sent", node.port, stop)
        killer = Killer(node, archive, random.Random(seed))  # noqa: S311 - dice, no secret
        senders = [threading.Thread(target=traffic.run, args=(number, seed), daemon=True) for number in range(SENDERS)]
        node.start()
        try:
            wait_until((node.state_dir / "run" / "listener.port").exists, "the node", 60)
            time.sleep(5.0)  # every process has its libraries
            first = node.sample()
            started_s = time.monotonic()
            for sender in senders:
                sender.start()
            killer.run(started_s + minutes * 60, kill_every_s)
            stop.set()
            for sender in senders:
                sender.join(SETTLE_S)
            settled = _settled(node.waiting)
            report = judge(node.state_dir, archive, tuple(traffic.acknowledged.values()))
            report.minutes = (time.monotonic() - started_s) / 60
            report.seed = seed
            report.studies = dict(traffic.studies)
            report.count_kills(killer.kills, traffic.moments)
            report.first, report.last, report.highest = first, node.sample(), killer.highest
            report.unsettled = 0 if settled else node.waiting()
            report.surprises += traffic.surprises
            if (status := node.stop()) != 0:
                report.surprises.append(f"the node stopped with status {status}")
        finally:
            node.kill()
    return report


def _settled(waiting: Callable[[], int]) -> bool:
    """Waits until nothing waits any more, three times in a row; False when there is no progress for too long."""
    deadline = time.monotonic() + SETTLE_S
    fewest, calm = waiting(), 0
    while time.monotonic() < deadline:
        time.sleep(1.0)
        left = waiting()
        if left < fewest:
            fewest, deadline = left, time.monotonic() + SETTLE_S
        calm = calm + 1 if left == 0 else 0
        if calm == 3:
            return True
    return False


def main() -> int:
    """Answers 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load and kills (default 10); settling comes on top")
    parser.add_argument("--seed", default=str(time.time_ns()), help="of the dice (default: another each time, printed)")
    parser.add_argument(
        "--kill-every", type=float, default=KILL_EVERY_S, help=f"seconds between kills, on average (default {KILL_EVERY_S})"
    )
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder, removed at the end)")
    arguments = parser.parse_args()
    run = functools.partial(soak, minutes=arguments.minutes, seed=arguments.seed, kill_every_s=arguments.kill_every)
    if arguments.folder:
        report = run(arguments.folder.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="radnode-soak-") as folder:
            report = run(Path(folder))
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
