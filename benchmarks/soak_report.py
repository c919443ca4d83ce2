"""What a soak found: every acknowledged instance looked for by its bytes, every series by its end, the archive by its results."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from node.intake.spool import spooled_path
from tests.integration.intake_kit import data_set_of, digest
from tests.peers import OrthancPeer

SHOWN = 5
MODALITIES = {"seg": "SEG", "sr": "SR"}


class Sample(NamedTuple):
    """What a process holds."""

    rss_mib: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An instance that was answered 0x0000."""

    sop_instance_uid: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Who was killed when."""

    victim: str
    moment_s: float


@dataclass
class Report:
    """The table, and whether the zeros in it are zero."""

    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    unsettled: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    deliveries: dict[str, int] = field(default_factory=dict)
    series: dict[str, int] = field(default_factory=dict)
    journal_mib: float = 0.0
    minutes: float = 0.0
    seed: str = ""
    studies: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    longest_pause_s: float = 0.0
    first: dict[str, Sample] = field(default_factory=dict)
    last: dict[str, Sample] = field(default_factory=dict)
    highest: dict[str, Sample] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicates or self.undelivered or self.silent or self.surprises or self.unsettled)

    def count_kills(self, kills: Sequence[Kill], moments: Sequence[float]) -> None:
        """Counts the kills, and how long it took to the next acknowledged instance: from each, and from the last of several in a row."""
        self.kills = dict(Counter(kill.victim for kill in kills).most_common())
        for kill, following in zip_longest(kills, kills[1:]):
            after_s = min((moment for moment in moments if moment > kill.moment_s), default=None)
            if after_s is None:
                continue
            self.longest_pause_s = max(self.longest_pause_s, after_s - kill.moment_s)
            if following is None or following.moment_s > after_s:
                self.slowest = max(self.slowest, (after_s - kill.moment_s, kill.victim))

    def __str__(self) -> str:
        """The table."""
        lines = [
            ("minutes", f"{self.minutes:.1f}, seed {self.seed}"),
            ("studies sent", f"{sum(self.studies.values())}: {_counts(self.studies)}"),
            ("instances acknowledged", str(self.acknowledged)),
            ("kills", f"{sum(self.kills.values())}: {_counts(self.kills)}"),
            ("acknowledged and lost", str(len(self.lost))),
            ("duplicate results", str(len(self.duplicates))),
            ("results not delivered", str(len(self.undelivered))),
            ("silent series", str(len(self.silent))),
            ("not settled", str(self.unsettled)),
            ("surprises", str(len(self.surprises))),
            ("series", _counts(self.series)),
            ("jobs", f"{_counts(self.jobs)}; attempts {_counts({str(k): v for k, v in sorted(self.attempts.items())})}"),
            ("deliveries", _counts(self.deliveries)),
            (
                "slowest recovery",
                f"{self.slowest[0]:.1f} s from killing the {self.slowest[1]} to the next acknowledged instance;"
                f" {self.longest_pause_s:.1f} s with further kills between",
            ),
            ("journal", f"{self.journal_mib:.2f} MiB"),
        ]
        for role in ("listener", "courier"):
            seen = [samples[role] for samples in (self.first, self.last, self.highest) if role in samples]
            words = ", ".join(f"{s.rss_mib:.0f} MiB {s.descriptors} fds" for s in seen)
            lines.append((f"{role}: first, last, most", words))
        table = "\n".join(f"{name:28}{value}" for name, value in lines)
        found = [*self.lost, *self.duplicates, *self.undelivered, *self.silent, *self.surprises]
        return table + "".join(f"\n  {line}" for line in found[: 4 * SHOWN])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def judge(state_dir: Path, archive: OrthancPeer, acknowledged: Sequence[Acknowledged]) -> Report:
    """Looks for everything that was promised."""
    report = Report(acknowledged=len(acknowledged))
    path = state_dir / "journal.sqlite"
    with closing(sqlite3.connect(path, timeout=30)) as journal:
        if (sound := journal.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            report.surprises.append(f"the journal is damaged: {sound}")
        _look_for_instances(state_dir, journal, acknowledged, report)
        _look_for_ends(journal, report)
        _look_for_results(journal, archive, report)
        report.jobs = _count(journal, "SELECT state || ' ' || outcome, count(*) FROM job GROUP BY 1")
        report.attempts = dict(journal.execute("SELECT attempt, count(*) FROM job GROUP BY 1").fetchall())
        report.deliveries = _count(journal, "SELECT trim(state || ' ' || confirmation), count(*) FROM delivery GROUP BY 1")
        report.series = _count(journal, "SELECT state, count(*) FROM series GROUP BY 1")
    report.journal_mib = sum(file.stat().st_size for file in state_dir.glob("journal.sqlite*")) / (1 << 20)
    arrived = [file for file in state_dir.glob("spool/incoming/*") if file.stat().st_size]  # places made ahead are empty
    left = [*arrived, *state_dir.glob("results/**/*.part")]
    report.surprises += [f"left over: {file.relative_to(state_dir)}" for file in left]
    return report


def _count(journal: sqlite3.Connection, query: str) -> dict[str, int]:
    return dict(journal.execute(query).fetchall())


def _look_for_instances(state_dir: Path, journal: sqlite3.Connection, acknowledged: Sequence[Acknowledged], report: Report) -> None:
    recorded = dict(journal.execute("SELECT sop_instance_uid, sha256 FROM instance WHERE revision = 0").fetchall())
    for instance in acknowledged:
        path = spooled_path(state_dir, instance.sha256)
        if recorded.get(instance.sop_instance_uid) != instance.sha256:
            report.lost.append(f"lost: {instance.sop_instance_uid} has no record")
        elif not path.exists() or digest(data_set_of(path)) != instance.sha256:
            report.lost.append(f"lost: {instance.sop_instance_uid} has no file with its bytes")


def _look_for_ends(journal: sqlite3.Connection, report: Report) -> None:
    """A series has ended when it was declined for a reason, or its last job has ended and had every one of its instances."""
    for uid, state, reason in journal.execute("SELECT series_instance_uid, state, reason FROM series").fetchall():
        if state == "DECLINED" and reason:
            continue
        job = journal.execute(
            "SELECT job_id, state, outcome FROM job WHERE series_instance_uid = ? ORDER BY job_id DESC LIMIT 1", (uid,)
        ).fetchone()
        if state != "SELECTED" or job is None or job[1] not in {"COMPLETED", "CANCELED"} or not job[2]:
            report.silent.append(f"silent: series {uid} is {state} {reason!r}, its job {job}")
            continue
        unused = journal.execute(
            "SELECT count(*) FROM instance WHERE series_instance_uid = ? AND revision = 0 AND sop_instance_uid NOT IN"
            " (SELECT sop_instance_uid FROM job_input WHERE job_id = ?)",
            (uid, job[0]),
        ).fetchone()[0]
        if unused:
            report.silent.append(f"silent: {unused} instances of series {uid} are in no result, job {job}")


def _look_for_results(journal: sqlite3.Connection, archive: OrthancPeer, report: Report) -> None:
    """The archive has what the journal says was made, each once: a report for every job that was not superseded, a SEG for every find."""
    jobs = journal.execute("SELECT job_id, outcome, reason FROM job").fetchall()
    evidence = journal.execute("SELECT sop_instance_uid, role, job_id FROM evidence").fetchall()
    made = Counter((job_id, role) for _, role, job_id in evidence)
    for job_id, outcome, reason in jobs:
        wanted = {"seg": int(outcome == "found"), "sr": int(not reason.startswith("superseded"))}
        for role, number in wanted.items():
            if made[job_id, role] > number:
                report.duplicates.append(f"duplicate: job {job_id}, {outcome}, has {made[job_id, role]} {role}")
            elif made[job_id, role] < number:
                report.silent.append(f"silent: job {job_id}, {outcome}, has no {role} ({reason})")
    for role, modality in MODALITIES.items():
        found = Counter(archive.get(f"/instances/{name}/simplified-tags")["SOPInstanceUID"] for name in archive.instances(modality))
        wanted_uids = {uid for uid, of_role, _ in evidence if of_role == role}
        report.undelivered += [f"not delivered: {role} {uid}" for uid in wanted_uids - found.keys()]
        report.duplicates += [f"duplicate: {modality} {uid} in the archive is in no record" for uid in found.keys() - wanted_uids]
        report.duplicates += [
            f"duplicate: {modality} {uid} is {number} times in the archive" for uid, number in found.items() if number > 1
        ]
