"""The processes of the demo, an archive and a node, and what they do, read from the archive's folder and the node's journal."""

import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from node.archive import PORT_FILE
from node.cli.toml import to_toml
from node.delivery.sender import send_paths
from node.delivery.store_scu import echo
from node.delivery.upper_layer import Peer
from node.domain.states import JobState, Outcome, SeriesState
from node.errors import DeliveryError, NodeError, UsageError
from node.journal import JobRecord, SeriesRecord, open_database
from node.journal.queries import job_stages, list_deliveries, list_jobs, list_series

HOST: Final = "127.0.0.1"
ARCHIVE: Final = "archive"
"""The name of the archive among the peers of configs/demo.toml."""

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.2
SILENCE_S: Final = 10.0
"""After so long without news, the last news are told again: a long step is no hang."""

LOG_TAIL_LINES: Final = 15
WANTED: Final = ("SEG", "SR")

Tell = Callable[[str], None]


class DemoFailed(NodeError):
    """The demo did not come to its end."""


@dataclass(frozen=True, slots=True)
class Results:
    """What came back: the files in the archive, what the node made beside, and seconds per stage of the job."""

    job: JobRecord
    paths: Mapping[str, Path]
    stages: Mapping[str, float]


class DemoNode:
    """An archive and a node as subprocesses, in a folder of their own."""

    def __init__(self, config_path: Path, work: Path, *, models: Sequence[str], timeout_s: float) -> None:
        self._work = work
        self._archive_dir = work / "archive"
        self._timeout_s = timeout_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._table = _effective(config_path, work, models)
        self.ae_title: str = self._table["node"]["ae_title"]
        self._archive_ae_title: str = self._table["peers"][ARCHIVE]["ae_title"]

    @property
    def _state_dir(self) -> Path:
        return self._work / "state"

    def start(self) -> None:
        """Starts both, and waits until both answer C-ECHO."""
        self._archive_dir.mkdir()
        self._spawn("archive", "--dir", str(self._archive_dir), "--port", "0", "--ae-title", self._archive_ae_title)
        port = self._wait_for_echo("archive", self._port_of_archive, self._archive_ae_title, self.ae_title)
        self._table["peers"][ARCHIVE].update(host=HOST, port=port)
        config = self._work / "node.toml"
        config.write_text(to_toml(self._table), encoding="utf-8")
        self._spawn("serve", "--config", str(config))
        self._wait_for_echo("serve", self._listener_port, self.ae_title, self._archive_ae_title)

    def _spawn(self, verb: str, *arguments: str) -> None:
        with (self._work / f"{verb}.log").open("wb") as log:
            command = [sys.executable, "-m", "node", verb, *arguments]
            self._processes[verb] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ourselves

    def _port_of_archive(self) -> int:
        written = self._archive_dir / PORT_FILE
        return int(written.read_text()) if written.exists() else 0

    def _listener_port(self) -> int:
        written = self._state_dir / "run" / "listener.port"
        return int(written.read_text()) if written.exists() else 0

    def _wait_for_echo(self, verb: str, port: Callable[[], int], called: str, calling: str) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                if chosen := port():
                    echo(HOST, chosen, called, calling)
                    return chosen
            except DeliveryError:
                pass  # not up yet
            time.sleep(POLL_S)
        raise DemoFailed(f"`radnode {verb}` does not answer within {START_TIMEOUT_S:.0f} s → read {self._work / verb}.log")

    def _check_alive(self) -> None:
        for verb, process in self._processes.items():
            if process.poll() is not None:
                tail = (self._work / f"{verb}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
                said = "\n".join(f"  {line}" for line in tail)
                raise DemoFailed(f"`radnode {verb}` ended with status {process.returncode}:\n{said}")

    def send(self, images: Sequence[Path]) -> None:
        """Sends images to the node as the archive would."""
        peer = Peer(HOST, self._listener_port(), self.ae_title, self._archive_ae_title)
        summary = send_paths(peer, images)
        if not summary.outcomes:
            raise UsageError("the study holds no DICOM images → name another folder with --study")
        for outcome in summary.failed:
            raise outcome.error or DemoFailed(f"{outcome.path} was not stored")

    def wait_for_results(self, images: Sequence[Path], tell: Tell) -> Results:
        """Waits until SEG and SR of the study are in the archive, telling each step of the node."""
        study_uid = next(str(one.StudyInstanceUID) for one in map(_read, images) if one is not None)
        deadline = time.monotonic() + self._timeout_s
        told: list[str] = []
        since = spoken = time.monotonic()
        while time.monotonic() < deadline:
            self._check_alive()
            for text in self._news():
                if text not in told:
                    told.append(text)
                    tell(text)
                    since = spoken = time.monotonic()
            if told and time.monotonic() - spoken > SILENCE_S:
                spoken = time.monotonic()
                tell(f"{told[-1]} (for {spoken - since:.0f} s)")
            found = self._came_back(study_uid)
            if set(WANTED) <= set(found) and self._is_delivered():
                return self._results(found)
            self._give_up_if_it_cannot_come()
            time.sleep(POLL_S)
        raise DemoFailed(f"no SEG and SR within {self._timeout_s:.0f} s → read {self._work / 'serve.log'}")

    def _news(self) -> list[str]:
        """What the journal says now, as lines for a person."""
        with _journal(self._state_dir) as journal:
            news = [_of_series(one) for one in list_series(journal, all=True)]
            jobs = list_jobs(journal, all=True)
            news += [f"job {job.job_id} ({job.model}): {job.outcome or job.step or 'waits for a worker'}" for job in jobs]
            for delivery in list_deliveries(journal, all=True):
                tries = f", tried {delivery.attempts} times" if delivery.attempts > 1 else ""
                news.append(f"{delivery.role.upper()} to {delivery.destination}: {delivery.state.lower()}{tries}")
        return news

    def _is_delivered(self) -> bool:
        with _journal(self._state_dir) as journal:
            return not list_deliveries(journal)

    def _give_up_if_it_cannot_come(self) -> None:
        with _journal(self._state_dir) as journal:
            series = list_series(journal, all=True)
            jobs = list_jobs(journal, all=True)
        if series and not jobs and all(one.state is SeriesState.DECLINED for one in series):
            reasons = "\n".join(f"  {one.reason}" for one in series)
            raise DemoFailed(f"no series of this study suits the model:\n{reasons}")
        if jobs and all(job.state is JobState.CANCELED for job in jobs):
            raise DemoFailed(f"the model could not be run: {jobs[-1].reason} → read {self._work / 'serve.log'}")
        if jobs and all(job.outcome == Outcome.NOTHING_FOUND for job in jobs):
            raise DemoFailed("the model found nothing in this study, so there is no SEG; the SR says so → try another study")

    def _came_back(self, study_uid: str) -> dict[str, Path]:
        """Reads what the archive has of the study: it came by C-STORE from the node, nothing else writes there."""
        found: dict[str, Path] = {}
        for path in sorted(self._archive_dir.glob("[!.]*/*/*.dcm")):
            dataset = _read(path)
            if dataset is not None and dataset.get("StudyInstanceUID") == study_uid and dataset.get("Modality") in WANTED:
                found[str(dataset.Modality)] = path
        return found

    def _results(self, found: Mapping[str, Path]) -> Results:
        with _journal(self._state_dir) as journal:
            job = list_jobs(journal, all=True)[-1]
            stages = job_stages(journal, job.job_id)
            stored = [one.stored_at for one in list_deliveries(journal, job_id=job.job_id, all=True) if one.stored_at is not None]
        waited_s = max(0.0, job.created_at - job.last_instance_at)
        queued_s = (job.ended_at or job.created_at) - job.created_at - sum(stages.values())
        queued = {"wait until quiet": waited_s, "wait for worker": max(0.0, queued_s)}
        delivered = {"deliver": max(0.0, max(stored) - job.ended_at)} if stored and job.ended_at is not None else {}
        folder = self._state_dir / "results" / str(job.job_id) / str(job.run)
        beside = {"key image": folder / "key_image.png", "page": folder / "report.html"}
        paths = {name: found[name] for name in WANTED} | {name: path for name, path in beside.items() if path.is_file()}
        return Results(job, paths, queued | stages | delivered)

    def stop(self) -> None:
        """Stops both, the node first: it delivers to the archive."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _effective(config_path: Path, work: Path, models: Sequence[str]) -> dict[str, Any]:
    """Answers the demo's configuration with the folders of this run and the routes to `models`; the ports are for the OS to choose."""
    table = tomllib.loads(config_path.read_text(encoding="utf-8"))
    if ARCHIVE not in table.get("peers", {}):
        raise UsageError(f"{config_path} has no [peers.{ARCHIVE}] → take configs/demo.toml as the model")
    table["node"]["models_dir"] = str((config_path.parent / table["node"]["models_dir"]).resolve())
    table["node"]["state_dir"] = str(work / "state")
    table.setdefault("listener", {}).update(host=HOST, port=0)
    first = table["routes"][0]
    routed = [route for route in table["routes"] if route["model"] in models]
    table["routes"] = routed or [{**first, "name": model, "model": model} for model in models]
    return table


@contextmanager
def _journal(state_dir: Path) -> Iterator[sqlite3.Connection]:
    connection = open_database(state_dir, create=False)
    try:
        yield connection
    finally:
        connection.close()


def _of_series(series: SeriesRecord) -> str:
    if series.state is SeriesState.RECEIVING:
        return f"series …{series.series_instance_uid[-8:]}: receiving"
    return f"series …{series.series_instance_uid[-8:]}: {series.state.lower()}" + (f", {series.reason}" if series.reason else "")


def _read(path: Path) -> Dataset | None:
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError):
        return None  # still being written
