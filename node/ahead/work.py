"""What a worker without a job does for the studies that still arrive: headers, frames and volumes of what a job will want."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from node.ahead.helper import Helper
from node.ahead.load import MachineLoad
from node.ahead.requests import DecodeFrames, ReadHeader, ReadInstance, Refused, Request
from node.config import Config
from node.dispatcher import usable_cards
from node.domain.ahead import Load, LoadPolicy, may_work_ahead, wanted_ahead
from node.domain.instance import InstanceHeader, group_into_series
from node.domain.modelcard import ModelCard
from node.domain.routing import Route
from node.inference.prepared import Prepared, ReadyFile, volume_bytes
from node.inference.series_reader import Instance, read_series
from node.intake.spool import spooled_path
from node.journal import InstanceRecord, JobJournal, ReceivedJournal, StudyRecord

LOOK_AT_LOAD_S: Final = 1.0
WAIT_FOR_ANSWER_S: Final = 0.05
SETTLED_S: Final = 1.0
"""A series that got nothing for so long may be whole: its volume is made. Each time that was wrong, the next waits twice as long."""

FRAMES_AT_ONCE: Final = 16
MOST_BYTES_AT_ONCE: Final = 1 << 28
"""Frames that must be decoded together and take more are left to the job."""

MOST_LOSSES: Final = 10
"""So many helpers may die or hang; then something is wrong that more of them will not mend."""

IDLE_HELPER_S: Final = 60.0
"""A helper that nobody asked for so long is ended: it takes memory."""

log = structlog.get_logger("radnode")


@dataclass(slots=True)
class _Study:
    """A study that still arrives, as far as it is known here."""

    record: StudyRecord
    instances: Sequence[InstanceRecord] = ()
    headers_known: int = -1
    wanted: dict[str, bool] = field(default_factory=dict)
    """Series that a job would want → whether as a volume."""
    volumes_made: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Digests, and series of which no volume could be made: left to the job."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One request to the helper, and where its answer belongs."""

    study_instance_uid: str
    instance: InstanceRecord
    request: Request


class Ahead:
    """What is ready of the studies that still arrive, and how it gets so. One object serves one thread."""

    def __init__(self, config: Config, journals: tuple[ReceivedJournal, JobJournal], look: Callable[[], Load] | None = None) -> None:
        self.prepared = Prepared(config.worker.decode_ahead_mib << 20)
        self.is_on = config.worker.decode_ahead_mib > 0
        self._state_dir = config.node.state_dir
        self._received, self._jobs = journals
        self._routes: tuple[Route, ...] = tuple(route.as_route() for route in config.routes) if self.is_on else ()
        self._cards: dict[str, ModelCard] = usable_cards(config) if self.is_on else {}
        self._look = look
        self._looked_s = 0.0
        self._may = False
        self._helper = Helper()
        self._asked_s = 0.0
        self._task: _Task | None = None
        self._studies: dict[str, _Study] = {}

    def work(self, wait_s: float, stop: threading.Event) -> None:
        """Makes ready what it can; comes back after `wait_s` at the latest, but for what it has begun, and not much before."""
        until_s = time.monotonic() + wait_s
        self._tidy()
        if self.is_on and self._has_room():
            self._look_for_studies()
            tasks = self._tasks()
            while not stop.is_set() and time.monotonic() < until_s and self._step(tasks):
                pass
        left_s = until_s - time.monotonic()
        if left_s > 0:
            stop.wait(left_s)

    def close(self) -> None:
        """Ends the helper and forgets everything."""
        self._helper.stop()
        self._task = None
        self._studies.clear()
        self.prepared.forget_all()

    # ── whether ─────────────────────────────────────────────────────────────

    def _has_room(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_AT_LOAD_S:
            self._looked_s = now_s
            self._look = self._look or MachineLoad().look
            load, policy = self._look(), LoadPolicy()
            before, self._may = self._may, may_work_ahead(load, working=self._may, policy=policy)
            if load.available_bytes < policy.stop_below_bytes:
                self.prepared.forget_all()
            if before and not self._may:
                log.info("ahead.paused", busy=round(load.busy, 2), available_mib=round(load.available_bytes / 2**20))
            elif self._may and not before:
                log.info("ahead.resumed", busy=round(load.busy, 2))
        return self._may

    # ── what ────────────────────────────────────────────────────────────────

    def _tidy(self) -> None:
        """Lets go what nobody waits for any more: of studies that have been decided on, and have no job that waits."""
        if self._studies:
            gathering = {study.study_instance_uid for study in self._received.gathering_studies()}
            for uid in [uid for uid in self._studies if uid not in gathering and not self._jobs.awaits(uid)]:
                for series_instance_uid in {one.series_instance_uid for one in self._studies.pop(uid).instances}:
                    self.prepared.forget(series_instance_uid)

    def _look_for_studies(self) -> None:
        """Brings what is known here of studies that still arrive up to the journal."""
        for record in self._received.gathering_studies():
            study = self._studies.setdefault(record.study_instance_uid, _Study(record))
            study.record = record
            study.instances = [one for one in self._received.instances_of_study(record.study_instance_uid) if one.purged_at is None]
        if not self._studies and not self._helper.is_asked and time.monotonic() - self._asked_s > IDLE_HELPER_S:
            self._helper.stop()

    def _step(self, tasks: Iterator[_Task]) -> bool:
        """Does one thing, or waits a moment for it; False when there is nothing to do."""
        if not self.is_on:
            return False
        if self._task is None:
            self._task = next(tasks, None)
            if self._task is None:
                return self._make_a_volume()
            self._asked_s = time.monotonic()
            self._helper.ask(self._task.request)
        answer = self._helper.answer(WAIT_FOR_ANSWER_S)
        if answer is not None:
            task, self._task = self._task, None
            self._take(task, answer)
        return True

    def _tasks(self) -> Iterator[_Task]:
        """Yields what the helper can be asked for: headers first, since they tell which series is wanted."""
        for uid, study in list(self._studies.items()):
            for one in study.instances:
                if self._ready(one).header is None and one.sha256 not in study.refused:
                    yield _Task(uid, one, ReadHeader(self._path(one)))
            self._choose(uid, study)
            full: set[str] = set()
            for one in study.instances:
                if one.series_instance_uid not in study.wanted.keys() - full:
                    continue
                while one.sha256 not in study.refused and (request := self._pixels_of(one)) is not None:
                    if not self._has_place_for(request, one):
                        full.add(one.series_instance_uid)
                        break
                    yield _Task(uid, one, request)

    def _choose(self, uid: str, study: _Study) -> None:
        """Decides again which series are wanted, when there are headers that had no say; lets go what is not."""
        headers = [header for one in study.instances if (header := self._ready(one).header) is not None]
        if len(headers) == study.headers_known:
            return
        study.headers_known = len(headers)
        try:
            series = group_into_series(headers)
            study.wanted = wanted_ahead(series, self._routes, self._cards, self._received.own_series(uid))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # the dispatcher will meet it, and says so
            log.warning("ahead.undecidable", fault=type(error).__name__)
            study.wanted = {}
        for unwanted in {one.series_instance_uid for one in study.instances} - study.wanted.keys():
            self.prepared.forget_pixels(unwanted)
            self.prepared.forget_volumes(unwanted)

    def _pixels_of(self, one: InstanceRecord) -> Request | None:
        """Answers what to ask for next of a file that is wanted; None when it is ready."""
        ready = self._ready(one)
        if ready.instance is None:
            return ReadInstance(self._path(one))
        pixels, missing = ready.instance.pixels, ready.missing
        indices = missing if pixels.decodes_whole else missing[:FRAMES_AT_ONCE]
        return DecodeFrames(pixels, indices) if indices else None

    def _has_place_for(self, request: Request, one: InstanceRecord) -> bool:
        size_bytes = len(request.indices) * request.pixels.frame_bytes if isinstance(request, DecodeFrames) else 0
        return size_bytes <= MOST_BYTES_AT_ONCE and self.prepared.make_room(size_bytes, one.series_instance_uid)

    def _ready(self, one: InstanceRecord) -> ReadyFile:
        return self.prepared.file(one.sha256, one.series_instance_uid)

    def _path(self, one: InstanceRecord) -> Path:
        return spooled_path(self._state_dir, one.sha256)

    def _take(self, task: _Task, answer: object) -> None:
        """Keeps an answer; what was refused or finds no room is left to the job."""
        one, study = task.instance, self._studies.get(task.study_instance_uid)
        if study is None:
            return  # decided and done while the helper was at it
        kept = False
        if isinstance(answer, InstanceHeader):
            kept = self.prepared.add(one.sha256, one.series_instance_uid, header=answer)
        elif isinstance(answer, Instance):
            kept = self.prepared.add(one.sha256, one.series_instance_uid, instance=answer)
        elif isinstance(task.request, DecodeFrames) and isinstance(answer, tuple):
            frames = dict(zip(task.request.indices, answer, strict=True))
            kept = self.prepared.add(one.sha256, one.series_instance_uid, frames=frames)
        elif isinstance(answer, Refused):
            log.info("ahead.left_to_the_job", sha256=one.sha256, reason=answer.kind)
            self._count_losses()
        if not kept:
            study.refused.add(one.sha256)

    def _count_losses(self) -> None:
        if self._helper.losses >= MOST_LOSSES:
            log.error("ahead.off", reason=f"its helper was lost {self._helper.losses} times: nothing is decoded ahead until the next start")
            self.is_on = False
            self.close()

    # ── volumes ─────────────────────────────────────────────────────────────

    def _make_a_volume(self) -> bool:
        """Makes the volume of a series that got nothing for a while and is decoded; False when there is none."""
        for study in self._studies.values():
            for uid, as_volume in study.wanted.items():
                if not as_volume or uid in study.refused:
                    continue
                wait_s = SETTLED_S * 2 ** study.volumes_made.get(uid, 0)
                instances = [one for one in study.instances if one.series_instance_uid == uid]
                digests = frozenset(one.sha256 for one in instances)
                if time.time() - study.record.last_instance_at < wait_s or self.prepared.has_volume(digests):
                    continue
                if not self._is_decoded(instances, study):
                    continue
                study.volumes_made[uid] = study.volumes_made.get(uid, 0) + 1
                if not self._make_volume(uid, instances, digests):
                    study.refused.add(uid)
                return True
        return False

    def _is_decoded(self, instances: Sequence[InstanceRecord], study: _Study) -> bool:
        return all(
            one.sha256 not in study.refused and (ready := self._ready(one)).instance is not None and not ready.missing for one in instances
        )

    def _make_volume(self, series_instance_uid: str, instances: Sequence[InstanceRecord], digests: frozenset[str]) -> bool:
        """Answers whether the volume could be made and kept.

        It is made in this process, of what is decoded. Should even that kill it, a marker tells the next one to leave the series to its
        job, which counts the attempts.
        """
        self.prepared.forget_volumes(series_instance_uid)
        readable = [found for one in instances if (found := self._ready(one).instance) is not None]
        if not self.prepared.make_room(volume_bytes(readable), series_instance_uid):
            return False
        marker = self._state_dir / "run" / f"loading-ahead-{hashlib.sha256(series_instance_uid.encode()).hexdigest()[:16]}"
        if marker.exists():
            log.error("ahead.kills_the_worker", series_instance_uid=series_instance_uid, marker=str(marker))
            return False
        marker.touch()
        try:
            volume = read_series([self._path(one) for one in instances], self.prepared)
        except Exception as error:  # noqa: BLE001 - the job meets it again, and its reason is told there
            log.info("ahead.left_to_the_job", series_instance_uid=series_instance_uid, reason=type(error).__name__)
            return False
        finally:
            marker.unlink(missing_ok=True)
        kept = self.prepared.add_volume(digests, series_instance_uid, volume)
        log.info("ahead.volume", series_instance_uid=series_instance_uid, images=len(instances), kept=kept)
        return kept
