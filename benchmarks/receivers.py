"""Who receives: radnode's listener in its settings, DCMTK's storescp, Orthanc, pynetdicom's own application; each in a fresh folder."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.blast import read_part10
from benchmarks.measuring import tree
from node.intake.spool import spooled_path
from node.journal import open_database
from tests.acceptance.harness import pid_listening
from tests.peers import answers, free_port, orthanc, tool, wait_until

CONFIG: Final = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"

[listener]
host = "127.0.0.1"
port = 0
refuse_below_free_gib = 0.0
max_associations = 32
durability = "{durability}"
{more}

[log]
level = "warning"
"""
SETTLE_S: Final = 120.0
PREALLOCATED_MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver that is running."""

    port: int
    pid: int
    called: str
    kept: Callable[[], dict[str, set[str]]]
    """Answers sha256 of the data sets by SOP Instance UID, as they lie on the disk."""
    settle: Callable[[int], None] = lambda _wanted: None
    """Waits until so many instances are filed, where they are filed behind the answer."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A kind of receiver; `open` starts one in a folder."""

    name: str
    promise: str
    open: Callable[..., AbstractContextManager[Target]]
    on_disk: bool = False
    """Whether its folder has to lie on a real disk: what it promises means something there only."""
    ours: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def radnode(folder: Path, *, durability: str, preallocated_mib: int = 0, **_: object) -> Iterator[Target]:
    """Runs the listener of a node, as its supervisor does."""
    (folder / "models").mkdir(parents=True)
    config = folder / "node.toml"
    config.write_text(
        CONFIG.format(durability=durability, more=f"preallocated_mib = {preallocated_mib}" if preallocated_mib else ""), encoding="utf-8"
    )
    port_file = folder / "state" / "run" / "listener.port"
    command = [sys.executable, "-m", "node.child", str(os.getpid()), str(config), str(config), "listener"]
    with _process(command, folder) as process:
        wait_until(lambda: port_file.exists() or process.poll() is not None, "the listener of radnode")
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield Target(
            int(port_file.read_text()),
            process.pid,
            "RADNODE",
            partial(_kept_by_radnode, folder / "state"),
            partial(_settle, folder / "state"),
        )
        process.terminate()
        process.wait(30)


@contextmanager
def storescp(
    folder: Path, *, associations: int, nodelay: bool = True, options: tuple[str, ...] = ("+B", "-pdu", "131072")
) -> Iterator[Target]:
    """Runs DCMTK's receiver: a process an association where there are several at once."""
    (folder / "out").mkdir(parents=True)
    port = free_port()
    fork = ["--fork"] if associations > 1 else []
    command = [tool("storescp"), "-od", str(folder / "out"), "+xa", *fork, *options, str(port)]
    with _process(command, folder, {"TCP_NODELAY": "1"} if nodelay else {}) as process:
        wait_until(lambda: answers(port) or process.poll() is not None, "storescp")
        yield Target(port, process.pid, "ANY-SCP", partial(_kept_in, folder / "out"))


@contextmanager
def orthanc_sqlite(folder: Path, *, nodelay: bool = True, **_: object) -> Iterator[Target]:
    """Runs Orthanc as Debian ships it: SQLite, files flushed, no compression."""
    with _environment("TCP_NODELAY", str(int(nodelay))), orthanc(folder, SaveJobs=False) as peer:
        yield Target(peer.dicom_port, pid_listening(peer.dicom_port), peer.ae_title, partial(_kept_in, folder / "storage"))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def pynetdicom_app(folder: Path, **_: object) -> Iterator[Target]:
    """Runs pynetdicom's own application with its defaults."""
    (folder / "out").mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "pynetdicom", "storescp", "-q", "-ba", "127.0.0.1", "-od", str(folder / "out"), str(port)]
    with _process(command, folder) as process:
        wait_until(lambda: answers(port) or process.poll() is not None, "pynetdicom's storescp")
        yield Target(port, process.pid, "STORESCP", partial(_kept_in, folder / "out"))


@contextmanager
def _process(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    surroundings = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    with (folder / "log").open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**surroundings, **(environment or {})})
    try:
        yield process
    finally:
        below = [pid for pid in tree(process.pid) if pid != process.pid] if process.poll() is None else []
        process.kill()
        process.wait()
        for pid in below:  # what storescp --fork has left
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def _settle(state_dir: Path, wanted: int) -> None:
    with closing(open_database(state_dir)) as connection:
        deadline = time.monotonic() + SETTLE_S
        while connection.execute("SELECT count(*) FROM instance").fetchone()[0] < wanted and time.monotonic() < deadline:
            time.sleep(0.01)


def _kept_by_radnode(state_dir: Path) -> dict[str, set[str]]:
    with closing(open_database(state_dir)) as connection:
        rows = connection.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall()
    return {row[0]: {_digest(spooled_path(state_dir, row[1]))} for row in rows}


def _kept_in(folder: Path) -> dict[str, set[str]]:
    """Answers the data sets in a folder; of an instance there may be several files (Orthanc keeps headers apart)."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and _is_part10(path):
            file = read_part10(memoryview(path.read_bytes()))
            found.setdefault(file.sop_instance_uid, set()).add(hashlib.sha256(file.data_set).hexdigest())
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(read_part10(memoryview(path.read_bytes())).data_set).hexdigest()


def _is_part10(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _ours(name: str, promise: str, durability: str, preallocated_mib: int = 0, *, on_disk: bool = False) -> Receiver:
    return Receiver(
        name,
        promise,
        partial(radnode, durability=durability, preallocated_mib=preallocated_mib),
        on_disk=on_disk or durability == "power-loss",
        ours=True,
    )


def receivers() -> dict[str, Receiver]:
    """Answers all of them by name."""
    kernel, disk = "kill -9 loses nothing that was answered", "a power cut loses nothing that was answered"
    ours = [
        _ours("radnode pc", kernel, "process-crash"),
        _ours("radnode pc preallocated", kernel, "process-crash", PREALLOCATED_MIB),
        _ours("radnode pc disk", kernel, "process-crash", on_disk=True),
        _ours("radnode pc preallocated disk", kernel, "process-crash", PREALLOCATED_MIB, on_disk=True),
        _ours("radnode pl", disk, "power-loss"),
        _ours("radnode pl preallocated", disk, "power-loss", PREALLOCATED_MIB),
    ]
    theirs = [
        Receiver("storescp", "nothing flushed, no index", storescp),
        Receiver("storescp disk", "nothing flushed, no index", storescp, on_disk=True),
        Receiver("storescp defaults", "nothing flushed, no index", partial(storescp, nodelay=False, options=())),
        Receiver("orthanc", "in memory; SQLite index", orthanc_sqlite),
        Receiver("orthanc disk", "files flushed, SQLite index not", orthanc_sqlite, on_disk=True),
        Receiver("orthanc defaults", "in memory; SQLite index", partial(orthanc_sqlite, nodelay=False)),
        Receiver("pynetdicom", "nothing flushed, no index", pynetdicom_app),
    ]
    return {one.name: one for one in (*ours, *theirs)}
