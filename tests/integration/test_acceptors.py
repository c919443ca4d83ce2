"""Several processes receive on one port: they count together, nothing is filed twice, and none of them dies alone."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path

import pytest

from node.delivery.store_scu import Part10File, StoreScu, contexts_for, read_part10
from node.errors import AssociationRejectedTransient, DeliveryError, OutOfResources
from node.files import Durability
from node.intake.backlog import Arrival, Backlog, Filing
from node.intake.census import Census
from node.intake.handover import Handover
from node.intake.incoming import FileIdentity
from node.intake.settler import Settler
from node.intake.spool import Spool
from node.intake.uids import InstanceUids, StoreRequest
from tests.factories import make_ct_series
from tests.integration.intake_kit import RunningListener, config_for, data_set_of, digest, leftovers, listening, open_scu
from tests.peers import wait_until

PROCESSES = 3
LISTENER = """
import sys
from pathlib import Path
from node.app import stop_on_signals
from node.intake.listener import run_listener
from tests.integration.intake_kit import config_for
run_listener(config_for(Path(sys.argv[1]), processes=int(sys.argv[2]), max_associations=int(sys.argv[3])), stop_on_signals())
"""


class Running(RunningListener):
    """A listener in processes of its own."""

    process: subprocess.Popen[bytes]

    def acceptors(self) -> list[int]:
        """The processes that take connections."""
        return children_of(self.process.pid)

    def end(self) -> int:
        """Ends it as the supervisor does; answers how it ended."""
        self.process.terminate()
        return self.process.wait(10)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def running(state_dir: Path, *, processes: int = PROCESSES, max_associations: int = 16) -> Iterator[Running]:
    """Runs a listener; kills it at the end of the block if it still runs."""
    port_file = state_dir / "run" / "listener.port"
    port_file.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", LISTENER, str(state_dir), str(processes), str(max_associations)])
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None, "the listener")
        listener = Running(state_dir, int(port_file.read_text()))
        listener.process = process
        yield listener
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Part10File]:
    return [read_part10(path) for path in make_ct_series(tmp_path_factory.mktemp("ct"), slices=60, rows=96, columns=96).paths]


def store_all(port: int, files: Sequence[Part10File], stored: set[str]) -> None:
    """Stores files over one association; notes what was answered with success, and gives up where the listener does."""
    with suppress(DeliveryError, OSError), open_scu(port, contexts_for(files)) as scu:
        for file in files:
            scu.store(file)
            stored.add(file.sop_instance_uid)


def store_in_parallel(port: int, files: Sequence[Part10File], senders: int) -> tuple[list[threading.Thread], set[str]]:
    stored: set[str] = set()
    threads = [threading.Thread(target=store_all, args=(port, files[n::senders], stored), daemon=True) for n in range(senders)]
    for thread in threads:
        thread.start()
    return threads, stored


def connections_of(pid: int) -> int:
    """How many connections a process holds, the socket that listens not counted."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(link))  # noqa: PTH115 - no path: socket:[inode]
    established = [line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "01"]
    return sum(f"socket:[{inode}]" in inodes for inode in established)


def test_senders_in_parallel_are_spread_over_the_processes_and_everything_is_filed_once(tmp_path: Path, files: list[Part10File]) -> None:
    with running(tmp_path / "state") as listener:
        acceptors = listener.acceptors()
        assert len(acceptors) == PROCESSES
        held = [open_scu(listener.port, files[0].contexts) for _ in range(2 * PROCESSES)]
        try:
            assert sum(found := [connections_of(pid) for pid in acceptors]) == len(held)
            assert all(found), "each has some"
        finally:
            for scu in held:
                scu.close()
        threads, stored = store_in_parallel(listener.port, files, 6)
        for thread in threads:
            thread.join(60)
        assert stored == {file.sop_instance_uid for file in files}
        assert {uid: digest(content) for uid, content in listener.kept().items()} == {
            file.sop_instance_uid: digest(data_set_of(file.path)) for file in files
        }
        wait_until(lambda: listener.open_associations() == 0, "the ends of the associations")
        assert listener.end() == 0
        assert not leftovers(listener.state_dir)
        assert not list((listener.state_dir / "spool" / "incoming").iterdir()), "also the places made ahead are gone"
    assert not any(Path(f"/proc/{pid}").exists() for pid in acceptors)


def test_the_limit_of_associations_is_one_for_all_of_them(tmp_path: Path, files: list[Part10File]) -> None:
    contexts = files[0].contexts
    with running(tmp_path / "state", max_associations=4) as listener:
        held: list[StoreScu] = [open_scu(listener.port, contexts) for _ in range(4)]
        for _ in range(3):
            with pytest.raises(AssociationRejectedTransient, match="limit"):
                open_scu(listener.port, contexts)
        held.pop().close()
        held.append(open_scu(listener.port, contexts))
        for scu in held:
            scu.close()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["acceptor", "listener"])
def test_kill_9_of_any_of_them_loses_nothing_that_was_answered(tmp_path: Path, files: list[Part10File], victim: str) -> None:
    chance = random.Random(20)
    state_dir, acknowledged = tmp_path / "state", set()
    for _ in range(3):
        with running(state_dir) as listener:
            acceptors = listener.acceptors()
            threads, stored = store_in_parallel(listener.port, files, 4)
            time.sleep(chance.uniform(0.02, 0.2))
            os.kill(listener.process.pid if victim == "listener" else chance.choice(acceptors), signal.SIGKILL)
            assert listener.process.wait(10) != 0, "one that lost an acceptor ends: the supervisor starts it anew"
            wait_until(lambda pids=acceptors: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of the others")
            for thread in threads:
                thread.join(60)
            acknowledged |= stored
    with listening(config_for(state_dir)) as recovered:
        kept = recovered.kept()
    assert acknowledged <= kept.keys()
    by_uid = {file.sop_instance_uid: file for file in files}
    assert all(content == data_set_of(by_uid[uid].path) for uid, content in kept.items())


def test_the_next_listener_sweeps_nothing_while_a_process_of_the_last_one_lives(tmp_path: Path) -> None:
    """Else it would take away what that one is about to answer for."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    with spool.claimed():
        child = os.fork()
        if child == 0:
            time.sleep(1.0)
            os._exit(0)
    begun_s = time.monotonic()
    with Spool(tmp_path / "spool").claimed():
        assert os.waitpid(child, os.WNOHANG)[0] == child or time.monotonic() - begun_s > 0.5


@pytest.mark.parametrize("kind", ["settler", "handover"])
def test_where_the_thread_that_files_has_ended_by_a_fault_nothing_is_taken_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Backlog, "run", broken)
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    pipe, other = Pipe()
    filing: Filing = Settler(tmp_path, spool, Durability.POWER_LOSS) if kind == "settler" else Handover(spool, pipe, Census())
    filing.start()

    def refuses() -> bool:
        with suppress(OutOfResources):
            filing.check()
            return False
        return True

    wait_until(refuses, "the refusal")
    filing.stop()
    pipe.close()
    other.close()


def test_what_is_handed_over_arrives_in_order_and_is_refused_while_it_cannot_be_filed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", durability=Durability.PROCESS_CRASH)
    spool.prepare()
    ours, theirs = Pipe()
    census = Census()
    handover = Handover(spool, theirs, census)
    assert handover.start() == 0
    sent: list[Arrival | str] = []
    for number in range(150):
        incoming = spool.open_incoming(FileIdentity("1.2", f"1.2.{number}", "1.2.840.10008.1.2.1"))
        incoming.conclude(b"bytes")
        uids = InstanceUids("1.2", f"1.2.{number}", "1.3", "1.4")
        sent.append(Arrival(incoming.seal(), uids, StoreRequest("1.2", f"1.2.{number}", "1.2.840.10008.1.2.1", "TESTER", "association")))
        handover.submit(sent[-1])  # type: ignore[arg-type]
    handover.submit_end("association")
    sent.append("association")
    received: list[Arrival | str] = []
    while len(received) < len(sent):
        assert ours.poll(10)
        received += ours.recv()
    assert received == sent
    assert handover.drain(5)
    handover.check()
    census.trouble = True
    with pytest.raises(OutOfResources):
        handover.check()
    handover.stop()
