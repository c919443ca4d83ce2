"""The composition root: `radnode serve` keeps the processes of a node alive, and says what each of them runs."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from node.config import Config, load_config
from node.domain.lease import LeasePolicy, judge_pulse
from node.errors import ConfigError, NodeError
from node.files import write_durably
from node.journal import JobJournal, open_database
from node.journal.upkeep import require_sound_journal
from node.locks import HeldLock, LockHeld, read_pulse
from node.log import configure_logging
from node.modelstore import drafts_among

LOCK_WAIT_S: Final = 5.0
STOP_GRACE_S: Final = 8.0
TICK_S: Final = 0.1
FIRST_RESTART_S: Final = 0.1
MAX_RESTART_S: Final = 10.0
STEADY_S: Final = 5.0
"""A process that lived this long starts anew without a wait: a study must not wait for the crash of the one before."""

PULSE_CHECK_S: Final = 1.0

log = structlog.get_logger("radnode")


class AlreadyServed(NodeError):
    """Another node serves this state directory."""


@dataclass
class Child:
    """A process of the node: what it runs, and how often it had to be started."""

    role: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restart_wait_s: float = FIRST_RESTART_S
    due_s: float = field(default=0.0)

    @property
    def name(self) -> str:
        """For logs: `worker cpu`."""
        return " ".join(self.role)


def serve(config_path: Path) -> int:
    """Runs a node until SIGTERM or SIGINT: the listener, the dispatcher, a worker per device, the courier, the housekeeper.

    Raises
    ------
    AlreadyServed
        When another node holds the state directory.
    ConfigError
        When a route names a model whose card is a draft.
    """
    config = load_config(config_path)
    configure_logging(config.log)
    require_confirmed_models(config)
    run_dir = config.node.state_dir / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = _take_lock(run_dir / "node.lock")
    try:
        for stale in (run_dir / "listener.port", *run_dir.glob("loading-*")):
            stale.unlink(missing_ok=True)
        frozen = run_dir / "node.toml"
        write_durably(frozen, config_path.read_bytes())
        require_sound_journal(config.node.state_dir, config.backup.folder)
        open_database(config.node.state_dir).close()
        roles: list[tuple[str, ...]] = [
            ("listener",),
            ("dispatcher",),
            *(("worker", device) for device in config.worker.devices),
            ("courier",),
            ("housekeeper",),
        ]
        stop = stop_on_signals()
        log.info("node.starting", ae_title=config.node.ae_title, state_dir=str(config.node.state_dir))
        supervisor = Supervisor([str(config_path), str(frozen)], [Child(role) for role in roles], WorkerWatch(config))
        supervisor.run(stop, on_ready=lambda: _wait_for_listener(run_dir))
        _forgive_stopped_workers(config)
        log.info("node.stopped")
    finally:
        lock.release()
    return 0


def require_confirmed_models(config: Config) -> None:
    """Raises ConfigError where a route names a model whose card nobody has confirmed. A model that is absent or broken is told later."""
    drafts = drafts_among(config.node.models_dir, [route.model for route in config.routes])  # the dispatcher tells of other faults
    faults = [f"route {config.routes[index].name}: {error}" for index, error in drafts]
    if faults:
        raise ConfigError("\n".join(faults))


def _take_lock(path: Path) -> HeldLock:
    deadline = time.monotonic() + LOCK_WAIT_S  # a node that was just killed may take a moment to vanish
    while True:
        try:
            return HeldLock(path)
        except LockHeld as error:
            if time.monotonic() > deadline:
                raise AlreadyServed(
                    f"another radnode serves {path.parent.parent} → stop it first, or give this one its own state_dir"
                ) from error
            time.sleep(0.1)


class WorkerWatch:
    """Kills workers that live and do nothing, and gives their jobs back with the reason."""

    def __init__(self, config: Config) -> None:
        self._state_dir = config.node.state_dir
        self._policy = LeasePolicy(config.worker.heartbeat_timeout_s, config.worker.attempt_timeout_s)
        self._due_s = 0.0

    def tend(self, children: Sequence[Child], now_s: float) -> None:
        """Looks at the pulse of every worker, once a second."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + PULSE_CHECK_S
        for child in children:
            if child.role[0] == "worker" and child.process is not None:
                self._judge(child.process, now_s)

    def _judge(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        for lock in (self._state_dir / "run").glob(f"worker-*-{process.pid}-*.lock"):
            pulse = read_pulse(lock)
            reason = judge_pulse(pulse, now_s=now_s, policy=self._policy) if pulse is not None else ""
            if reason:
                process.kill()
                process.wait()
                log.error("worker.killed", worker=lock.stem, reason=reason)
                self._release_jobs(lock.stem, reason)

    def _release_jobs(self, worker: str, reason: str) -> None:
        try:
            with closing(open_database(self._state_dir)) as connection:
                JobJournal(connection).release_jobs_of(worker, reason=reason)
        except (sqlite3.Error, NodeError) as error:  # its lock is free now: the dispatcher gives the jobs back when the journal can be had
            log.warning("journal.busy", reason=str(error))


class Supervisor:
    """Starts the processes, starts them again when they die, stops them all at the end."""

    def __init__(self, config_arguments: list[str], children: list[Child], watch: WorkerWatch) -> None:
        self._config_arguments = config_arguments
        self._children = children
        self._watch = watch

    def run(self, stop: threading.Event, on_ready: Callable[[], bool]) -> None:
        """Keeps the processes alive until `stop`; tells systemd once `on_ready` answers True."""
        ready = False
        while not stop.is_set():
            for child in self._children:
                self._tend(child, time.monotonic())
            self._watch.tend(self._children, time.monotonic())
            if not ready and on_ready():
                ready = True
                log.info("node.ready")
                notify_systemd("READY=1")
            stop.wait(TICK_S)
        notify_systemd("STOPPING=1")
        self._stop_all()

    def _tend(self, child: Child, now_s: float) -> None:
        if child.process is not None:
            status = child.process.poll()
            if status is None:
                return
            child.process = None
            if now_s - child.started_s > STEADY_S:
                child.restart_wait_s = FIRST_RESTART_S
            child.due_s = now_s + child.restart_wait_s
            log.error("process.died", process=child.name, status=status, restart_in_s=child.restart_wait_s)
            child.restart_wait_s = min(MAX_RESTART_S, child.restart_wait_s * 2)
        elif now_s >= child.due_s:
            command = [sys.executable, "-m", "node.child", str(os.getpid()), *self._config_arguments, *child.role]
            try:
                child.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - our own interpreter and module
            except OSError as error:  # no memory or no process to be had now: the others must not suffer from it
                child.due_s = now_s + MAX_RESTART_S
                log.error("process.not_started", process=child.name, reason=error.strerror, again_in_s=MAX_RESTART_S)
                return
            child.started_s = now_s
            log.info("process.started", process=child.name, pid=child.process.pid)

    def _stop_all(self) -> None:
        alive = [child.process for child in self._children if child.process is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        for process in alive:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _forgive_stopped_workers(config: Config) -> None:
    """A job that was cut off by a clean stop has not failed: it is taken up at the next start with its attempt back."""
    jobs = JobJournal(open_database(config.node.state_dir))
    for holder in jobs.holders():
        jobs.release_jobs_of(holder, reason="the node was stopped", forgive=True)


def _wait_for_listener(run_dir: Path) -> bool:
    return (run_dir / "listener.port").exists()


def stop_on_signals() -> threading.Event:
    """Answers an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def notify_systemd(message: str) -> None:
    """Tells systemd about our state where it listens (Type=notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.connect("\0" + address[1:] if address.startswith("@") else address)
        link.send(message.encode())
