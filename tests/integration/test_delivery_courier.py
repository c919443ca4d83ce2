"""Every result reaches every destination: through outages, refusals, kills and restarts; a dead archive delays nobody else."""

import functools
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt

from node.archive import StoredInstance, serving_archive
from node.delivery import courier as courier_module
from node.delivery import outbox as outbox_module
from node.delivery.outbox import Courier, Destination
from node.delivery.upper_layer import Peer
from node.domain.delivery import Outage, RetryPolicy
from node.domain.states import DeliveryState
from node.journal import DeliveryRecord, OutboxJournal, open_database
from node.journal.queries import list_deliveries, transitions_of
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.delivery_kit import QUICK, deliveries, delivering, peer, queue, scripted_archive, states
from tests.integration.intake_kit import config_for, data_set_of
from tests.peers import HOST, free_port, orthanc, wait_until


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=4)


def outage_of(state_dir: Path, destination: str) -> Outage | None:
    connection = open_database(state_dir)
    try:
        return OutboxJournal(connection).outage(destination)
    finally:
        connection.close()


def test_results_reach_every_destination_as_they_lie_on_the_disk(tmp_path: Path, ct: SyntheticSeries) -> None:
    stored: list[StoredInstance] = []
    with (
        serving_archive(tmp_path / "one", ae_title="ONE", on_stored=stored.append) as one,
        serving_archive(tmp_path / "two", ae_title="TWO") as two,
    ):
        config = config_for(tmp_path / "state", peers={"one": peer(one, "ONE"), "two": peer(two, "TWO")})
        queue(tmp_path / "state", ct.paths, ["one", "two"])
        with delivering(config):
            wait_until(lambda: {one.state for one in deliveries(tmp_path / "state")} == {DeliveryState.STORED}, "delivery")
    sent = {data_set_of(path) for path in ct.paths}
    for folder in ("one", "two"):
        assert {data_set_of(path) for path in (tmp_path / folder).glob("*/*/*.dcm")} == sent
    assert {instance.calling_ae_title for instance in stored} == {"RADNODE"}
    assert stored[0].uids.sop_instance == ct.sop_instance_uids[0], "the SEG before the SR that cites it"


def test_a_dead_destination_is_tried_again_while_another_gets_its_results(tmp_path: Path, ct: SyntheticSeries) -> None:
    dead_port = free_port()
    with serving_archive(tmp_path / "alive", ae_title="ALIVE") as alive:
        config = config_for(tmp_path / "state", peers={"alive": peer(alive, "ALIVE"), "dead": peer(dead_port)})
        queue(tmp_path / "state", ct.paths, ["alive", "dead"])
        with delivering(config):
            wait_until(lambda: states(tmp_path / "state", "alive") == {"STORED"}, "delivery to the one that lives", 10)
            outage = wait_until(lambda: (found := outage_of(tmp_path / "state", "dead")) and found.failures >= 2 and found, "attempts")
            dead = [one for one in deliveries(tmp_path / "state") if one.destination == "dead"]
            assert {(one.state, one.attempts) for one in dead} == {(DeliveryState.PENDING, 0)}, "an outage costs no attempt"
            assert "cannot be reached" in outage.reason
            with serving_archive(tmp_path / "dead", ae_title="ARCHIVE", port=dead_port):
                wait_until(lambda: states(tmp_path / "state", "dead") == {"STORED"}, "delivery after the outage", 15)
    assert len(list((tmp_path / "dead").glob("*/*/*.dcm"))) == 4
    assert outage_of(tmp_path / "state", "dead") is None


def test_an_archive_that_holds_the_line_delays_nobody_else(tmp_path: Path, ct: SyntheticSeries) -> None:
    import socket

    with socket.create_server((HOST, 0)) as hole, serving_archive(tmp_path / "alive", ae_title="ALIVE") as alive:
        config = config_for(tmp_path / "state", peers={"hole": peer(hole.getsockname()[1]), "alive": peer(alive, "ALIVE")})
        queue(tmp_path / "state", ct.paths, ["hole", "alive"])
        with delivering(config):
            wait_until(lambda: states(tmp_path / "state", "alive") == {"STORED"}, "delivery to the one that answers", 10)
        # and the courier stops although one of its threads still waits for an answer


def test_out_of_resources_is_tried_again_until_success(tmp_path: Path, ct: SyntheticSeries) -> None:
    seen: list[str] = []

    def answer(uid: str) -> int:
        seen.append(uid)
        return 0xA700 if seen.count(uid) <= 3 else 0

    with scripted_archive(answer) as port:
        queue(tmp_path / "state", ct.paths[:2], ["archive"])
        with delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})):
            wait_until(lambda: states(tmp_path / "state", "archive") == {"STORED"}, "delivery", 20)
    assert [one.attempts for one in deliveries(tmp_path / "state")] == [4, 4]
    assert all(seen.count(uid) == 4 for uid in ct.sop_instance_uids[:2])


def test_a_refusal_ends_a_delivery_with_its_reason_and_the_others_go_on(tmp_path: Path, ct: SyntheticSeries) -> None:
    answers = dict(zip(ct.sop_instance_uids, (0xA900, 0xC123, 0xB007, 0), strict=True))
    with scripted_archive(answers.__getitem__) as port:
        queue(tmp_path / "state", ct.paths, ["archive"])
        with delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})):
            wait_until(lambda: not any(d.state is DeliveryState.PENDING for d in deliveries(tmp_path / "state")), "the ends")
            time.sleep(1)
    ended = {one.sop_instance_uid: (one.state, one.attempts, one.reason) for one in deliveries(tmp_path / "state")}
    refused, misunderstood, warned, stored = (ended[uid] for uid in ct.sop_instance_uids)
    assert refused[:2] == misunderstood[:2] == (DeliveryState.REFUSED, 1)
    assert "A900" in refused[2]
    assert "C123" in misunderstood[2]
    assert warned == (DeliveryState.STORED, 1, "B007")
    assert stored == (DeliveryState.STORED, 1, "")


def test_an_association_that_breaks_costs_only_the_object_on_its_way(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The archive dies over one object, three times: the others arrive meanwhile."""
    seen: list[str] = []
    poison = ct.sop_instance_uids[1]

    def abort_over_poison(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        seen.append(uid)
        if uid == poison and seen.count(uid) <= 3:
            event.assoc.abort()
        return 0

    entity = AE("ARCHIVE")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, abort_over_poison)])
    assert server is not None
    queue(tmp_path / "state", ct.paths, ["archive"])
    with delivering(config_for(tmp_path / "state", peers={"archive": peer(server.server_address[1])})):
        wait_until(lambda: states(tmp_path / "state", "archive") == {"STORED"}, "delivery", 20)
    server.shutdown()
    assert {uid: seen.count(uid) for uid in ct.sop_instance_uids} == {uid: 4 if uid == poison else 1 for uid in ct.sop_instance_uids}


def test_patience_ends(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    config = config_for(tmp_path / "state", peers={"archive": peer(free_port(), give_up_h=1 / 3600)})
    with delivering(config):
        wait_until(lambda: states(tmp_path / "state", "archive") == {"GIVEN UP"}, "the end of patience", 15)
    (one,) = deliveries(tmp_path / "state")
    assert "gave up after" in one.reason
    assert "cannot be reached" in one.reason


def test_a_destination_that_was_removed_is_told(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths, ["gone"])
    with delivering(config_for(tmp_path / "state", peers={"archive": peer(free_port())})):
        wait_until(lambda: states(tmp_path / "state", "gone") == {"REFUSED"}, "the refusal")
    assert {one.reason for one in deliveries(tmp_path / "state")} == {"the configuration has no peer gone any more"}


def test_a_result_whose_file_is_gone_is_refused_alone(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths, ["archive"])
    ct.paths[1].unlink()
    with serving_archive(tmp_path / "archive") as port, delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})):
        wait_until(lambda: not any(d.state is DeliveryState.PENDING for d in deliveries(tmp_path / "state")), "the ends")
    by_state = {one.sop_instance_uid: one for one in deliveries(tmp_path / "state")}
    lost = by_state.pop(ct.sop_instance_uids[1])
    assert lost.state is DeliveryState.REFUSED
    assert "cannot be read" in lost.reason
    assert {one.state for one in by_state.values()} == {DeliveryState.STORED}


def test_more_results_than_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_module, "BATCH", 5)
    series = make_ct_series(tmp_path / "many", slices=23, rows=32, columns=32)
    queue(tmp_path / "state", series.paths, ["archive"])
    with serving_archive(tmp_path / "archive") as port, delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})):
        wait_until(lambda: states(tmp_path / "state", "archive") == {"STORED"}, "delivery")
    assert [one.attempts for one in deliveries(tmp_path / "state")] == [1] * 23


def test_a_journal_that_cannot_be_read_for_a_while_ends_no_courier(
    tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "PAUSE_AFTER_SURPRISE_S", 0.2)
    queue(tmp_path / "state", ct.paths, ["archive"])
    failures = iter([sqlite3.OperationalError("disk I/O error")] * 2)
    due = OutboxJournal.due

    def due_at_last(self: OutboxJournal, *args: Any, **kwargs: Any) -> tuple[DeliveryRecord, ...]:
        for failure in failures:
            raise failure
        return due(self, *args, **kwargs)

    monkeypatch.setattr(OutboxJournal, "due", due_at_last)
    with serving_archive(tmp_path / "archive") as port, delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})):
        wait_until(lambda: states(tmp_path / "state", "archive") == {"STORED"}, "delivery")


class FailingCommits(sqlite3.Connection):
    """A journal whose commits fail as long as told."""

    failures = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and FailingCommits.failures:
            FailingCommits.failures -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


def test_a_commit_that_fails_leaves_no_lock_behind_and_is_made_good(
    tmp_path: Path, ct: SyntheticSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "PAUSE_AFTER_SURPRISE_S", 0.2)
    monkeypatch.setattr("node.journal.database.BUSY_TIMEOUT_S", 1.0)
    queue(tmp_path / "state", ct.paths, ["archive"])
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=FailingCommits))
    FailingCommits.failures = 3
    names: list[str] = []
    with (
        serving_archive(tmp_path / "archive", on_stored=lambda stored: names.append(stored.uids.sop_instance)) as port,
        delivering(config_for(tmp_path / "state", peers={"archive": peer(port)})),
    ):
        wait_until(lambda: states(tmp_path / "state", "archive") == {"STORED"}, "delivery")
    assert FailingCommits.failures == 0
    assert set(names) == set(ct.sop_instance_uids)
    assert 4 <= len(names) <= 7, "up to three were stored and not noted: sent again, the same bytes under the same UID"


def test_an_attempt_is_counted_before_it_is_made(tmp_path: Path, ct: SyntheticSeries) -> None:
    """So that an object that kills the courier is not tried for ever without anybody noticing."""
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths[:1], ["archive"])
    counted = []

    def answer(_uid: str) -> int:
        counted.append(deliveries(state_dir)[0].attempts)
        return 0

    with scripted_archive(answer) as port:
        destination = Destination("archive", Peer(HOST, port, "ARCHIVE", "RADNODE"), RetryPolicy(), QUICK)
        courier = Courier(OutboxJournal(open_database(state_dir)), destination)
        assert courier.deliver_due(time.time()) == 1
        assert courier.deliver_due(time.time()) == 0
    assert counted == [1]


COURIER = """
import sys, threading
from pathlib import Path
from node.delivery.outbox import run_courier
from tests.integration.delivery_kit import QUICK, deliveries, delivering, peer, queue, scripted_archive, states
from tests.integration.intake_kit import config_for
retry = {"first_s": 0.2, "max_s": 0.4, "give_up_h": 1.0}
peers = {"archive": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": int(sys.argv[2]), "retry": retry}}
run_courier(config_for(Path(sys.argv[1]), peers=peers), threading.Event())
"""


@pytest.mark.slow
def test_kill_9_between_storing_and_answer_leaves_one_object_and_a_finished_delivery(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The archive has it, the courier does not know: it sends the same bytes under the same UID again."""
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["archive"])
    stored = threading.Semaphore(0)
    answer = threading.Event()
    names: list[str] = []

    def hold(instance: StoredInstance) -> None:
        names.append(instance.uids.sop_instance)
        stored.release()
        answer.wait(20)

    with serving_archive(tmp_path / "archive", on_stored=hold) as port:
        command = [sys.executable, "-c", COURIER, str(state_dir), str(port)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        assert stored.acquire(timeout=30)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [one.state for one in deliveries(state_dir)] == [DeliveryState.PENDING] * 4
        answer.set()
        second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: states(state_dir, "archive") == {"STORED"}, "delivery")
        second.kill()
        second.wait()
    assert names.count(ct.sop_instance_uids[0]) == 2
    assert len(list((tmp_path / "archive").glob("*/*/*.dcm"))) == 4
    connection = open_database(state_dir)
    for one in list_deliveries(connection, all=True):
        assert [step.after for step in transitions_of(connection, "delivery", str(one.delivery_id))] == ["PENDING", "STORED"]
    connection.close()


@pytest.mark.peer
def test_orthanc_goes_away_and_comes_back(tmp_path: Path, ct: SyntheticSeries) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        archive.pause()
        queue(tmp_path / "state", ct.paths, ["orthanc"])
        with delivering(config_for(tmp_path / "state", peers={"orthanc": peer(archive.dicom_port, archive.ae_title)})):
            wait_until(lambda: outage_of(tmp_path / "state", "orthanc"), "an attempt")
            archive.resume()
            wait_until(lambda: states(tmp_path / "state", "orthanc") <= {"STORED", "COMMITTED"}, "delivery")
        assert archive.sop_instance_uids() == set(ct.sop_instance_uids)
