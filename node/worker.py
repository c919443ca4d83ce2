"""The worker process of a device: claims jobs, runs the pipeline, ends every job with evidence or a reason."""

import errno
import hashlib
import os
import random
import sqlite3
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from node.ahead.work import Ahead
from node.config import Config
from node.dispatcher import release_jobs_of_the_dead, worker_lock
from node.domain.delivery import RetryAt, RetryPolicy, decide_retry
from node.domain.ladder import Rung, rungs
from node.domain.modelcard import ModelCard
from node.domain.states import JobState, Outcome
from node.errors import DeviceOutOfMemory, EngineError, NodeError
from node.evidence.context import EvidenceContext
from node.inference.bundle import load_bundle
from node.inference.engines.select import Build, EngineWish
from node.inference.engines.torch_engine import require_device
from node.intake.spool import spooled_path
from node.journal import EvidenceRecord, JobEnd, JobJournal, JobRecord, ReceivedJournal, open_database
from node.locks import Heart, HeldLock
from node.model_shelf import Loaded, ModelShelf
from node.modelstore import find_card
from node.pipeline import (
    Analysis,
    FrozenEvidence,
    Step,
    Stopwatch,
    Wanted,
    analyse,
    context_for,
    decline,
    describe,
    encode,
    illustrate,
)

POLL_S = 0.2
RETRY = RetryPolicy(first_s=5.0, max_s=300.0, give_up_h=1e6)
"""Attempts are limited by `worker.max_attempts`, not by time."""

DISK_FULL_WAIT_S = 30.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

log = structlog.get_logger("radnode")


class JobFenced(NodeError):
    """The job of this attempt has been given to another worker."""


class DeviceBroken(NodeError):
    """The device failed in a way that only a new process can mend."""


def run_worker(config: Config, device: str, stop: threading.Event) -> None:
    """Works off jobs on a device until `stop` is set."""
    name = f"worker-{device.replace(':', '-')}-{os.getpid()}-{time.time_ns()}"
    require_device(device)  # before the first claim: a worker without its device would fail study after study, faster than any other works
    with HeldLock(worker_lock(config.node.state_dir, name)) as lock:
        heart = Heart(lock)
        worker = Worker(config, device, name)
        with heart.busy():
            worker.warm_up()
        while not stop.is_set():
            with heart.busy():
                worker.look_ahead(0.0 if worker.work_once() else POLL_S, stop)
        worker.close()
        heart.stop()
    worker_lock(config.node.state_dir, name).unlink(missing_ok=True)


class Worker:
    """One device, its warm models and its connection to the journal."""

    def __init__(self, config: Config, device: str, name: str) -> None:
        self._config = config
        self._device = device
        self._name = name
        connection = open_database(config.node.state_dir)
        self._jobs = JobJournal(connection)
        self._ahead = Ahead(config, (ReceivedJournal(connection), self._jobs))
        self._shelf = ModelShelf(self._load, device, int(config.worker.models_gib * 2**30))

    def warm_up(self) -> None:
        """Loads the models that the routes name, so that the first study does not wait; a model that fails is told, not fatal.

        A model whose loading killed the process before is left to its first job, which counts the attempts.
        """
        for model in dict.fromkeys(route.model for route in self._config.routes):
            marker = self._config.node.state_dir / "run" / f"loading-{model}-{self._device.replace(':', '-')}"
            if marker.exists():
                log.error("model.kills_the_worker", model=model, marker=str(marker))
                continue
            marker.touch()
            try:
                self._shelf.take(model)
            except NodeError as error:
                log.warning("model.unavailable", model=model, reason=str(error))
            marker.unlink(missing_ok=True)

    def work_once(self) -> bool:
        """Takes a job and brings it an attempt further; False when there was none."""
        release_jobs_of_the_dead(self._jobs, self._config.node.state_dir)
        job = self._jobs.claim(self._name, now_s=time.time())
        if job is None:
            return False
        log.info("job.started", job_id=job.job_id, model=job.model, attempt=job.attempt)
        self._ahead.prepared.served = 0
        watch = Stopwatch(lambda step, fraction: self._enter(job, step, fraction))
        if job.attempt > self._config.worker.max_attempts:
            last = f"; the last time: {job.reason}" if job.reason else ""
            self._tell_failure(job, f"the worker process died {job.attempt - 1} times on this study{last}", watch)
            return True
        try:
            self._conclude(job, self._analyse(job, watch), watch)
        except JobFenced as error:
            log.warning("job.fenced", job_id=job.job_id, reason=str(error))
        except Exception as error:  # noqa: BLE001 - the one boundary of an attempt, see below
            # The boundary of an attempt: whatever a study breaks, the queue goes on and the study gets its end.
            self._after_failure(job, error, watch)
        return True

    def look_ahead(self, wait_s: float, stop: threading.Event) -> None:
        """Spends the time in which there is no job on what the next ones will want; comes back after `wait_s`, or a little later.

        With 0 it only lets go of what was made ready and is not wanted any more.
        """
        try:
            self._ahead.work(wait_s, stop)
        except Exception as error:  # noqa: BLE001 - nobody has asked for it: it must not cost what somebody has
            log.error("ahead.off", reason=describe(error), at=_places(error))
            self._ahead.is_on = False
            self._ahead.close()

    def close(self) -> None:
        """Ends what runs beside it."""
        self._ahead.close()

    def _enter(self, job: JobRecord, step: str, fraction: float) -> None:
        if fraction == 0.0:
            if not self._jobs.enter_step(job, step):
                raise JobFenced("another worker holds the job by now: this attempt stops")
            log.info("job.step", job_id=job.job_id, step=step)

    def _analyse(self, job: JobRecord, watch: Stopwatch) -> Analysis:
        """Climbs down the ladder while memory is short; what was done differently stands in the provenance of the result."""
        *planned, last = rungs(self._device)
        for rung in planned:
            try:
                return told(self._attempt(job, rung, watch), rung)
            except DeviceOutOfMemory as error:
                log.warning("job.out_of_memory", job_id=job.job_id, reason=str(error), rung=rung.name)
                self._ahead.prepared.forget_all()
        return told(self._attempt(job, last, watch), last)

    def _attempt(self, job: JobRecord, rung: Rung, watch: Stopwatch) -> Analysis:
        return analyse(self._files(job), self._shelf.take(job.model, rung), watch, self._ahead.prepared)

    def _files(self, job: JobRecord) -> list[Path]:
        return [spooled_path(self._config.node.state_dir, sha256) for sha256 in self._jobs.inputs_of(job.job_id).values()]

    def _load(self, name: str, rung: Rung) -> Loaded:
        folder, card = self._config.node.models_dir / name, find_card(self._config.node.models_dir, name)
        device = "cpu" if rung is Rung.ON_CPU else self._device
        planned = rung in {Rung.AS_PLANNED, Rung.ALONE}
        engines = EngineWish(
            wanted=self._config.engine_of(name),
            folder=self._config.node.state_dir / "engines",
            build=Build.BACKGROUND if planned else Build.NEVER,
            half=rung is Rung.HALF_PRECISION,
        )
        model = load_bundle(folder, card, device=device, threads=self._config.worker.threads, engines=engines)
        log.info("model.loaded", model=name, version=card.version, engine=model.provenance.engine)
        return model

    def _after_failure(self, job: JobRecord, error: Exception, watch: Stopwatch) -> None:
        reason = describe(error)
        log.error("job.attempt_failed", job_id=job.job_id, attempt=job.attempt, reason=reason, at=_places(error))
        if is_disk_full(error):
            self._postpone(job, DISK_FULL_WAIT_S, reason, forgive=True)  # the study is not to blame
            return
        permanent = isinstance(error, NodeError) and not error.retryable
        if permanent or job.attempt >= self._config.worker.max_attempts:
            self._tell_failure(job, reason, watch)
            return
        now_s = time.time()
        retry = decide_retry(attempts=job.attempt, first_attempt_s=now_s, now_s=now_s, policy=RETRY, chance=random.random())  # noqa: S311 - jitter
        assert isinstance(retry, RetryAt)  # noqa: S101 - RETRY never gives up by time
        self._postpone(job, retry.when_s - now_s, reason, forgive=False)
        if isinstance(error, EngineError) and not self._device.startswith("cpu"):
            raise DeviceBroken(f"{self._device} failed: this process starts anew") from error  # errors of CUDA stick to the process

    def _postpone(self, job: JobRecord, wait_s: float, reason: str, *, forgive: bool) -> None:
        self._jobs.postpone(job, until_s=time.time() + wait_s, reason=reason, forgive=forgive)

    def _tell_failure(self, job: JobRecord, reason: str, watch: Stopwatch) -> None:
        """Ends a job that failed: with a report, or, where not even that can be made, with the reason in the journal."""
        try:
            self._conclude(job, self._failed(job, reason), watch)
        except Exception as error:  # noqa: BLE001 - whatever the study, the disk or the card breaks, the queue goes on
            log.error("job.report_failed", job_id=job.job_id, reason=describe(error), at=_places(error))
            if is_disk_full(error):
                self._postpone(job, DISK_FULL_WAIT_S, reason, forgive=True)
                return
            silent = JobEnd(JobState.CANCELED, Outcome.FAILED, f"{reason}; no report could be made: {describe(error)}", (), watch.stages)
            self._jobs.end(job, silent, now_s=time.time())

    def _failed(self, job: JobRecord, reason: str) -> Analysis:
        return decline(self._files(job), self._card(job), Outcome.FAILED, reason)

    def _card(self, job: JobRecord) -> ModelCard:
        return find_card(self._config.node.models_dir, job.model)

    def _context(self, job: JobRecord) -> EvidenceContext:
        node = self._config.node
        context = context_for(
            job.job_key,
            run=job.run,
            encoded_at_s=self._jobs.fix_encoded_at(job, time.time()),
            ae_title=node.ae_title,
            device_serial_number=node.device_serial_number,
        )
        return replace(context, predecessor=self._jobs.predecessor_report(job))

    def _illustrate(
        self, job: JobRecord, pieces: tuple[Analysis, Sequence[FrozenEvidence], EvidenceContext], folder: Path, watch: Stopwatch
    ) -> None:
        analysis, evidence, context = pieces
        try:
            illustrate(analysis, evidence, context, folder, watch.stages)
        except Exception as error:  # noqa: BLE001 - a picture that fails must not cost a result that is right
            log.error("job.picture_failed", job_id=job.job_id, reason=describe(error), at=_places(error))

    def _conclude(self, job: JobRecord, analysis: Analysis, watch: Stopwatch) -> None:
        folder = self._config.node.state_dir / "results" / str(job.job_id) / str(job.run)
        context = self._context(job)
        wanted = Wanted(self._jobs.objects_of(job.job_id), self._config.node.language)
        evidence = encode(analysis, context, folder, watch, wanted)
        for skipped in wanted.skipped:
            log.error("job.object_skipped", job_id=job.job_id, reason=skipped)
        self._illustrate(job, (analysis, evidence, context), folder, watch)
        self._enter(job, Step.FREEZE, 0.0)
        result = analysis.result
        canceled = result.outcome in {Outcome.NOT_ATTEMPTED, Outcome.FAILED}
        end = JobEnd(
            state=JobState.CANCELED if canceled else JobState.COMPLETED,
            outcome=result.outcome,
            reason=result.reason,
            evidence=tuple(
                EvidenceRecord(
                    sop_instance_uid=str(item.dataset.SOPInstanceUID),
                    role=item.role,
                    sop_class_uid=str(item.dataset.SOPClassUID),
                    series_instance_uid=str(item.dataset.SeriesInstanceUID),
                    path=item.path,
                    sha256=hashlib.sha256(item.content).hexdigest(),
                    size_bytes=len(item.content),
                )
                for item in evidence
            ),
            stages=watch.stages,
        )
        if self._jobs.end(job, end, now_s=time.time()):
            log.info(
                "job.ended",
                job_id=job.job_id,
                outcome=result.outcome,
                reason=result.reason,
                decoded_ahead=self._ahead.prepared.served,
                **{f"{k}_s": round(v, 2) for k, v in watch.stages.items()},
            )
        else:
            log.warning("job.fenced", job_id=job.job_id, reason="another worker holds the job by now; this result is dropped")


def told(analysis: Analysis, rung: Rung) -> Analysis:
    """Answers an analysis whose result says how it was made otherwise than planned."""
    provenance = analysis.result.provenance
    if rung is Rung.AS_PLANNED or provenance is None:
        return analysis
    return replace(analysis, result=replace(analysis.result, provenance=replace(provenance, notes=(rung.value, *provenance.notes))))


def is_disk_full(error: BaseException) -> bool:
    """Answers whether an error says that the disk is full, whoever says so."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error)


def _places(error: BaseException) -> list[str]:
    """Answers where an error came up: files and lines, never its words, which may be out of a header."""
    if isinstance(error, NodeError):
        return []
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-6:]]
