"""What the anomaly loops are made of: a node that lives in forks of a driver, an archive that remembers, and the promises to check."""

import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from node.delivery.store_scu import Part10File, read_part10, store_files
from node.delivery.upper_layer import Timeouts
from node.intake.admission import AdmissionRules
from node.intake.association import ScpOptions, StorageScp
from node.intake.incoming import IncomingFile
from node.intake.spool import Spool, spooled_path
from node.intake.uids import StoreRequest
from tests.acceptance.harness import CONFIG
from tests.bundles import make_bundle
from tests.factories import make_ct_series
from tests.faults.driver import STOP_FILE
from tests.faults.shim import Arm, preloading
from tests.integration.intake_kit import data_set_of, digest, peer_of, sealed_in

ANSWER_LIMIT_S: Final = 60.0
LIVES: Final = 3
"""How often a role that dies is started again while the fault lasts; a supervisor would go on for ever, with waits."""


class RememberingArchive:
    """A storage SCP that remembers what it was given; it is never broken itself."""

    def __init__(self, folder: Path) -> None:
        self.received: dict[str, set[str]] = {}
        """SOP Instance UID → digests of all that came under it."""
        self.classes: dict[str, str] = {}
        spool = Spool(folder)
        spool.prepare()
        rules = AdmissionRules("ARCHIVE", max_associations=32, accept_unlisted_peers=True)
        self._scp = StorageScp(ScpOptions(rules, "127.0.0.1", 0), spool, self._accept)
        self.port = self._scp.start()

    def _accept(self, incoming: IncomingFile, request: StoreRequest) -> None:
        incoming.flush()
        content = incoming.path.read_bytes()[incoming.head_bytes :]
        incoming.discard()
        self.received.setdefault(request.sop_instance_uid, set()).add(digest(content))
        self.classes[request.sop_instance_uid] = request.sop_class_uid

    def forget(self) -> None:
        self.received.clear()
        self.classes.clear()

    def close(self) -> None:
        self._scp.stop()


@dataclass(frozen=True, slots=True)
class Life:
    """What a process of the node came to."""

    error: str
    signal: int
    counted: int
    hits: int
    first: str
    ahead_s: float

    @property
    def ended_well(self) -> bool:
        return not self.error and not self.signal


class Driver:
    """The process that forks lives (tests/faults/driver.py)."""

    def __init__(self, log: Path, library: Path | None = None) -> None:
        """`library` is the shim, without which lives can be killed at steps but not broken at calls."""
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[2],
            env=preloading(library),
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n", log.read_text()

    def begin(self, **request: Any) -> None:
        """Starts a life."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def child(self) -> int:
        """Answers the process whose life it is, 0 when there is none."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def has_ended(self, within_s: float = 0.0) -> bool:
        """Answers whether the life is over."""
        return bool(select.select([self._process.stdout], [], [], within_s)[0])

    def end(self) -> Life:
        """Waits for the end of the life."""
        assert self._process.stdout
        assert self.has_ended(ANSWER_LIMIT_S), "the process of the node does not end"
        return Life(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


@dataclass(eq=False)
class Workshop:
    """A node at a place that never changes, prepared states of it to start from, and its peers."""

    folder: Path
    driver: Driver
    archive: RememberingArchive
    files: tuple[Part10File, ...]
    digests: dict[str, str] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    """SOP Instance UID → SOP class of what a clean run brings into the archive."""

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def state(self) -> Path:
        return self.node / "state"

    def restore(self, snapshot: str) -> None:
        """Puts the node back to a prepared state; the spool's 256 folders are left where both have them."""
        wanted = self.folder / snapshot
        for folder, folders, files in os.walk(self.node):
            here, there = Path(folder), wanted / Path(folder).relative_to(self.node)
            for name in files:
                (here / name).unlink()
            for name in [name for name in folders if not (there / name).is_dir()]:
                shutil.rmtree(here / name)
                folders.remove(name)
        shutil.copytree(wanted, self.node, dirs_exist_ok=True)
        self.archive.forget()

    def keep(self, snapshot: str) -> None:
        """Keeps the present state to start from."""
        shutil.copytree(self.node, self.folder / snapshot)

    def live(self, *roles: str, arm: Arm | None = None, rounds: int = 1, ahead_s: float = 0.0) -> Life:
        """One life without a sender."""
        self.driver.begin(config=str(self.node / "node.toml"), roles=roles, rounds=rounds, ahead_s=ahead_s, arm=arm and asdict(arm))
        return self.driver.end()

    def receive(self, files: Sequence[Part10File], arm: Arm | None = None) -> tuple[Life, set[str]]:
        """One life of a listener, to which files are sent; answers what it acknowledged."""
        stop, port_file = self.node / STOP_FILE, self.state / "run" / "listener.port"
        stop.unlink(missing_ok=True)
        port_file.unlink(missing_ok=True)
        self.driver.begin(config=str(self.node / "node.toml"), roles=["listen"], arm=arm and asdict(arm))
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while not port_file.exists() and not self.driver.has_ended(0.002):
            assert time.monotonic() < deadline, "the listener does not start"
        acknowledged: set[str] = set()
        if not self.driver.has_ended():
            peer = peer_of(int(port_file.read_text()), calling="ARCHIVE")
            outcomes = store_files(peer, files, Timeouts(2.0, 10.0))
            acknowledged = {outcome.sop_instance_uid for outcome in outcomes if outcome.error is None}
        stop.touch()
        return self.driver.end(), acknowledged

    def _journal(self) -> sqlite3.Connection:
        """Opens the journal to look only: what its log holds is left for the node to bring in."""
        return sqlite3.connect(f"file:{self.state}/journal.sqlite?mode=ro", uri=True)

    def results(self) -> int:
        """Answers how many objects are recorded as made."""
        with closing(self._journal()) as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'evidence'").fetchone()[0]:
                return 0
            return int(connection.execute("SELECT count(*) FROM evidence").fetchone()[0])

    # ── the promises ────────────────────────────────────────────────────────

    def check_kept(self, acknowledged: set[str]) -> None:
        """P1, at any moment: the journal is sound, and what was acknowledged is sealed, or recorded and lies there, byte for byte."""
        if not acknowledged and not (self.state / "journal.sqlite").exists():
            return
        with closing(self._journal()) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            recorded = dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall()) if acknowledged else {}
            evidence = connection.execute("SELECT path, sha256 FROM evidence").fetchall() if acknowledged else []
        for uid in acknowledged - {uid for uid, sha256 in self.digests.items() if sha256 in sealed_in(self.state)}:
            assert recorded.get(uid) == self.digests[uid], "acknowledged, and neither sealed nor in the journal"
            assert digest(data_set_of(spooled_path(self.state, recorded[uid]))) == self.digests[uid]
        for path, sha256 in evidence:
            assert digest(Path(path).read_bytes()) == sha256

    def check_promises(self) -> None:
        """P1 to P4, after the recovery: everything received, one job with one outcome, delivered once, nothing left over."""
        self.check_kept(set(self.digests))
        with closing(self._journal()) as connection:
            series = connection.execute("SELECT state, reason FROM series").fetchall()
            jobs = connection.execute("SELECT state, outcome, owner FROM job").fetchall()
            deliveries = connection.execute("SELECT state FROM delivery").fetchall()
            ends = connection.execute(
                "SELECT count(*) FROM transition WHERE kind = 'job' AND after IN ('COMPLETED', 'CANCELED')"
            ).fetchone()
        assert series == [("SELECTED", "")]
        assert jobs == [("COMPLETED", "found", "")]
        assert ends == (1,)
        assert {state for (state,) in deliveries} <= {"STORED", "COMMITTED"}
        assert len(deliveries) == 2
        assert self.archive.classes == self.expected
        assert all(len(contents) == 1 for contents in self.archive.received.values()), "one UID, several contents"
        assert not list((self.state / "spool" / "incoming").iterdir())
        left = [path.name for path in self.state.rglob("*.part")]
        assert not left, f"left over: {left}"

    def recover(self, acknowledged: set[str], *before: str) -> None:
        """What a node does that is started again, and what its sender does: send what was not acknowledged; roles `before` come first."""
        waiting = [file for file in self.files if file.sop_instance_uid not in acknowledged]
        life, more = self.receive(waiting)
        assert life.ended_well, life.error
        assert more == {file.sop_instance_uid for file in waiting}
        life = self.live(*before, "decide", "work", "deliver", rounds=3)
        assert life.ended_well, life.error


@contextmanager
def workshop(folder: Path, library: Path) -> Iterator[Workshop]:
    """A workshop with the states of a node after each step of a clean run; `expected` is what that run delivered."""
    with closing(RememberingArchive(folder / "archive")) as archive, closing(Driver(folder / "driver.log", library)) as driver:
        series = make_ct_series(folder / "ct", slices=6, rows=32, columns=32, spacing_mm=(12.0, 4.0, 4.0))
        files = tuple(read_part10(path) for path in series.paths)
        shop = Workshop(folder, driver, archive, files, {file.sop_instance_uid: digest(data_set_of(file.path)) for file in files})
        make_bundle(shop.node / "models")
        settings = CONFIG.format(
            models_dir="models", model="thresholds", quiet_s=0.0, archive_ae_title="ARCHIVE", archive_port=archive.port
        )
        (shop.node / "node.toml").write_text(settings)
        shop.state.mkdir()
        shop.keep("new")
        steps = [("half", "listen", files[:3]), ("received", "listen", files[3:]), ("decided", "decide", ()), ("worked", "work", ())]
        for snapshot, role, sent in steps:
            life = shop.receive(sent)[0] if sent else shop.live(role)
            assert life.ended_well, life.error
            shop.keep(snapshot)
        life = shop.live("deliver")
        assert life.ended_well, life.error
        shop.expected.update(archive.classes)
        assert len(shop.expected) == 2
        shop.check_promises()
        yield shop
