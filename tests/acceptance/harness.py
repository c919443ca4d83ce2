"""A real node as a subprocess, as its user starts it: `radnode serve --config …`, with its journal in view."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from node.delivery.store_scu import StoreScu, contexts_for, read_part10
from node.delivery.upper_layer import Peer, Timeouts
from node.journal import DeliveryRecord, JobRecord, SeriesRecord, open_database
from node.journal.queries import list_deliveries, list_jobs, list_series

T = TypeVar("T")

CONFIG = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "{models_dir}"

[listener]
host = "127.0.0.1"
port = 0
refuse_below_free_gib = 0.0
durability = "power-loss"

[retention]
purge_below_free_gib = 0.0

[study_complete]
quiet_s = {quiet_s}
max_wait_s = 600.0

[peers.archive]
ae_title = "{archive_ae_title}"
host = "127.0.0.1"
port = {archive_port}
may_send = true
retry = {{ first_s = 0.5, max_s = 2.0, give_up_h = 1.0 }}

[[routes]]
name = "test"
when = {{ Modality = ["CT", "MR"] }}
model = "{model}"
deliver_to = ["archive"]
"""


@dataclass
class RunningNode:
    """A node in its own folder; may be killed and started again."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        """Names the log file."""
        self.log = self.folder / "node.log"

    @property
    def state_dir(self) -> Path:
        """Where the node keeps everything."""
        return self.folder / "state"

    def start(self) -> None:
        """Starts the supervisor and waits until the listener answers."""
        (self.state_dir / "run" / "listener.port").unlink(missing_ok=True)
        command = [sys.executable, "-m", "node", "serve", "--config", str(self.folder / "node.toml")]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=self.folder)
        wait_for(lambda: self.port_file.exists() or self.process_ended(), 120, "the listener", self.log)
        assert not self.process_ended(), self.log.read_text()[-4000:]

    def process_ended(self) -> bool:
        """Whether the supervisor is gone."""
        return self.process is None or self.process.poll() is not None

    @property
    def port_file(self) -> Path:
        """Written by the listener when it is bound."""
        return self.state_dir / "run" / "listener.port"

    @property
    def port(self) -> int:
        """The listener's port, chosen by the OS."""
        return int(self.port_file.read_text())

    def stop(self) -> int:
        """SIGTERM, as systemd does; answers the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        """Kill -9 of the supervisor."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def child_pid(self, role: str) -> int:
        """The process of a role, e.g. `worker`; raises when it is not there."""
        assert self.process is not None
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"node.child" in arguments and str(self.process.pid).encode() in arguments and role.encode() in arguments:
                return int(entry.name)
        raise LookupError(f"no {role} process")

    def kill_child(self, role: str) -> None:
        """Kill -9 of one process of the node."""
        os.kill(self.child_pid(role), signal.SIGKILL)

    def jobs(self) -> tuple[JobRecord, ...]:
        """All jobs."""
        return self._read(lambda c: list_jobs(c, all=True))

    def series(self) -> tuple[SeriesRecord, ...]:
        """All series."""
        return self._read(lambda c: list_series(c, all=True))

    def deliveries(self) -> tuple[DeliveryRecord, ...]:
        """All deliveries."""
        return self._read(lambda c: list_deliveries(c, all=True))

    def _read(self, query: Callable[..., T]) -> T:
        connection = open_database(self.state_dir, create=False)
        try:
            return query(connection)
        finally:
            connection.close()

    def wait_for_jobs(self, count: int, state: str, timeout_s: float = 120) -> tuple[JobRecord, ...]:
        """Waits until `count` jobs are in a state."""

        def ready() -> tuple[JobRecord, ...] | None:
            found = tuple(job for job in self.jobs() if job.state == state)
            return found if len(found) >= count else None

        return wait_for(ready, timeout_s, f"{count} jobs {state}", self.log)

    def wait_for_deliveries(self, count: int, *states: str, timeout_s: float = 120) -> tuple[DeliveryRecord, ...]:
        """Waits until `count` deliveries are in one of some states: by default, until the destination has them."""
        wanted = states or ("STORED", "COMMITTED")

        def ready() -> tuple[DeliveryRecord, ...] | None:
            found = tuple(delivery for delivery in self.deliveries() if delivery.state in wanted)
            return found if len(found) >= count else None

        return wait_for(ready, timeout_s, f"{count} deliveries {' or '.join(wanted)}", self.log)


def configuration(*, durability: str = "power-loss", **settings: object) -> str:
    """Answers CONFIG with settings filled in; `models_dir` and `model` must be among them."""
    defaults: dict[str, object] = {"quiet_s": 1.0, "archive_ae_title": "ARCHIVE", "archive_port": 104}
    return CONFIG.format(**{**defaults, **settings}).replace('"power-loss"', f'"{durability}"')


@contextmanager
def running_node(folder: Path, **settings: Any) -> Iterator[RunningNode]:
    """A node with CONFIG, started; stopped at the end whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "node.toml").write_text(configuration(**settings), encoding="utf-8")
    node = RunningNode(folder)
    node.start()
    try:
        yield node
    finally:
        if not node.process_ended():
            node.kill()


def pid_listening(port: int) -> int:
    """The process that owns a listening port, by ss(8)."""
    listing = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(listing.partition("pid=")[2].partition(",")[0])


def has_connection_to(port: int) -> bool:
    """Whether somebody on this machine is connected to a port, by ss(8)."""
    listing = subprocess.run(["ss", "-tnH", "state", "established", f"dport = :{port}"], capture_output=True, text=True, check=True).stdout
    return bool(listing.strip())


@contextmanager
def frozen_process(pid: int) -> Iterator[None]:
    """Stops a process in its tracks (SIGSTOP) for a while: its connections stay open and answer nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_for(condition: Callable[[], T | None], timeout_s: float, what: str, log: Path | None = None) -> T:
    """Polls until `condition` answers something true; fails with the tail of the log."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    tail = log.read_text()[-6000:] if log and log.exists() else ""
    raise AssertionError(f"{what} did not come within {timeout_s} s\n{tail}")


def send(files: Sequence[Path], port: int, *, called: str = "RADNODE", calling: str = "ARCHIVE") -> None:
    """Sends files by C-STORE over one association; raises unless each was answered with success.

    With our own SCU: pynetdicom's loses an answer, and waits for it in vain, where its reactor is woken late on a busy machine.
    """
    waiting = [read_part10(path) for path in files]
    with StoreScu(Peer("127.0.0.1", port, called, calling), contexts_for(waiting), Timeouts(10.0, 60.0)) as scu:
        for file in waiting:
            warning = scu.store(file)
            assert not warning, warning
