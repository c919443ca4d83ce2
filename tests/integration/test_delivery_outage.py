"""A destination that is down: left alone until its time, then everything goes; what had no answer is asked about before it is sent again."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt

from node.delivery import courier as courier_module
from node.domain.delivery import JITTER, RetryPolicy
from node.domain.states import DeliveryState, Priority
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.delivery_kit import (
    CT_IMAGE_STORAGE,
    Archive,
    archive,
    deliveries,
    desk,
    queue,
    states,
)
from tests.peers import HOST, free_port, wait_until

HOUR_S = 3600.0


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=4, rows=32, columns=32)


class DeadArchive:
    """Takes connections, counts them, and hangs up."""

    def __init__(self) -> None:
        self.connections = 0

    def serve(self, server: socket.socket) -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return  # the end of the test
            self.connections += 1
            link.close()


@contextmanager
def dead_archive() -> Iterator[tuple[DeadArchive, int]]:
    dead = DeadArchive()
    with socket.create_server((HOST, 0)) as server:
        thread = threading.Thread(target=dead.serve, args=(server,), daemon=True)
        thread.start()
        try:
            yield dead, server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.mark.slow
def test_after_a_day_down_everything_goes_the_urgent_first_over_few_associations(tmp_path: Path) -> None:
    """200 results of 40 jobs; the archive is down for 24 h of a clock that is an argument."""
    series = make_ct_series(tmp_path / "ct", slices=200, rows=16, columns=16)
    paths, state_dir = series.paths, tmp_path / "state"
    urgencies = [Priority.LOW, Priority.MEDIUM, Priority.HIGH, Priority.MEDIUM]
    for number in range(20):
        queue(state_dir, paths[5 * number : 5 * number + 5], ["archive"], key=f"job {number}", priority=urgencies[number % 4])
    tried_at: list[float] = []
    with dead_archive() as (dead, port), desk(state_dir, port) as at:
        began_s = at.now_s
        while at.now_s < began_s + 24 * HOUR_S:
            before = dead.connections
            assert at.send() == 0
            tried_at += [at.now_s] * (dead.connections - before)
            at.now_s += 15.0
            if at.now_s == began_s + 12 * HOUR_S:  # results that come during the outage wait for it too
                for number in range(20, 40):
                    queue(state_dir, paths[5 * number : 5 * number + 5], ["archive"], key=f"job {number}", priority=urgencies[number % 4])
        assert {(one.state, one.attempts) for one in at.all()} == {(DeliveryState.PENDING, 0)}
    waits = [later - earlier for earlier, later in pairwise(tried_at)]
    expected = [min(900.0, 10.0 * 2**n) for n in range(len(waits))]
    assert all(waited >= wait * (1 - JITTER) for waited, wait in zip(waits, expected, strict=True)), "at most one try per wait"
    assert 24 * 4 - 6 <= len(tried_at) <= 24 * 4 + 12
    script = Archive()
    with archive(script) as back, desk(state_dir, back) as at:
        at.now_s = began_s + 24 * HOUR_S
        at.leap()
        assert at.send() == 200
        assert {(one.state, one.attempts) for one in at.all()} == {(DeliveryState.STORED, 1)}
        assert at.outbox.outage("archive") is None
    assert sorted(script.stored) == sorted(series.sop_instance_uids)
    assert script.priorities == [1] * 50 + [0] * 100 + [2] * 50, "HIGH, MEDIUM, LOW"
    assert script.associations == 2, "no herd: as many associations as batches"
    print(f"\n24 h down: {len(tried_at)} connections; then 200 results over {script.associations} associations")


def test_patience_counts_for_each_result_from_its_own_first_try_also_while_nothing_can_be_tried(
    tmp_path: Path, ct: SyntheticSeries
) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths[:1], ["archive"], key="early")
    with desk(state_dir, free_port()) as at:
        at.send()
        at.now_s += 48 * HOUR_S
        queue(state_dir, ct.paths[1:2], ["archive"], key="late")
        at.send()
        at.now_s += 24 * HOUR_S
        at.send()
        early, late = at.all()
        assert (early.state, late.state) == (DeliveryState.GIVEN_UP, DeliveryState.PENDING)
        assert "gave up after 0 attempts in 72.0 h" in early.reason
        assert "cannot be reached" in early.reason
        at.now_s += 48 * HOUR_S
        at.send()
        assert at.all()[1].state is DeliveryState.GIVEN_UP
        # a person sends them again
        at.outbox.open_again([early.delivery_id, late.delivery_id], now_s=at.now_s)
        at.now_s += HOUR_S
        at.send()
        assert {(one.state, one.first_attempt_at) for one in at.all()} == {(DeliveryState.PENDING, at.now_s)}


def test_an_archive_that_does_not_know_us_yet_gets_its_results_when_it_does(tmp_path: Path, ct: SyntheticSeries) -> None:
    """A rejection that calls itself permanent is a fault of the site's configuration: nothing is refused for it."""
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["archive"])
    entity = AE("ARCHIVE")
    entity.add_supported_context(CT_IMAGE_STORAGE)
    entity.require_calling_aet = ["SOMEBODY"]
    stored: list[Any] = []

    def store(event: Any) -> int:
        stored.append(event)
        return 0

    server = entity.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        with desk(state_dir, server.server_address[1]) as at:
            assert at.send() == 0
            outage = at.outbox.outage("archive")
            assert outage is not None
            assert "rejects the association" in outage.reason
            assert {(one.state, one.attempts) for one in at.all()} == {(DeliveryState.PENDING, 0)}
            at.now_s += 10 * HOUR_S
            server.ae.require_calling_aet = ["SOMEBODY", "RADNODE"]
            assert at.send() == 4
            assert {one.state for one in at.all()} == {DeliveryState.STORED}
    finally:
        server.shutdown()
    assert len(stored) == 4


def test_the_priority_of_the_job_goes_with_the_request(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    for number, priority in enumerate((Priority.LOW, Priority.HIGH, Priority.MEDIUM)):
        queue(state_dir, ct.paths[number : number + 1], ["archive"], key=priority, priority=priority)
    script = Archive()
    with archive(script) as port, desk(state_dir, port) as at:
        assert at.send() == 3
    assert script.priorities == [1, 0, 2]
    assert script.stored == [ct.sop_instance_uids[number] for number in (1, 2, 0)]


# ── outcome unknown ─────────────────────────────────────────────────────────


class Breaking(Archive):
    """Stores, and breaks the association over the first so many objects instead of answering."""

    breaks = 1
    keeps = True

    def _on_store(self, event: Any) -> int:
        if self.breaks:
            self.breaks -= 1
            if self.keeps:
                self.stored.append(str(event.request.AffectedSOPInstanceUID))
            event.assoc.abort()
            return 0
        return super()._on_store(event)


def test_what_had_arrived_without_an_answer_is_found_by_query_and_not_sent_again(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    script = Breaking(offers_query=True)
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.send()
        first, second = at.all()
        assert (first.state, first.unsure, second.state) == (DeliveryState.PENDING, True, DeliveryState.STORED)
        at.now_s += 60
        at.send()
        first = at.all()[0]
        assert (first.state, first.unsure, first.attempts) == (DeliveryState.STORED, False, 1)
        assert first.reason == courier_module.FOUND_BY_QUERY
    assert script.queried == [ct.sop_instance_uids[0]]
    assert sorted(script.stored) == sorted(ct.sop_instance_uids[:2])


@pytest.mark.parametrize(("offers_query", "find_status"), [(True, 0), (True, 0xA900), (False, 0)], ids=["absent", "refused", "no C-FIND"])
def test_what_a_query_does_not_find_is_sent_again(tmp_path: Path, ct: SyntheticSeries, offers_query: bool, find_status: int) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Breaking(offers_query=offers_query, find_status=find_status)
    script.keeps = False
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.send()
        assert at.one().unsure
        at.leap()
        at.send()
        assert (at.one().state, at.one().attempts, at.one().unsure) == (DeliveryState.STORED, 2, False)
    assert script.stored == [ct.sop_instance_uids[0]]
    assert len(script.queried) == offers_query


def test_an_answer_leaves_no_doubt_and_needs_no_query(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    answers = iter([0xA700, 0])
    script = Archive(on_store=lambda _uid: next(answers), offers_query=True)
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.send()
        assert not at.one().unsure
        at.leap()
        at.send()
        assert (at.one().state, at.one().attempts) == (DeliveryState.STORED, 2)
    assert script.queried == []


class BreakingQuery(Breaking):
    """Breaks the association over queries, too."""

    def _on_find(self, event: Any) -> Iterator[tuple[int, Any]]:
        self.queried.append(str(event.identifier.SOPInstanceUID))
        event.assoc.abort()
        yield 0xC000, None


def test_a_query_that_breaks_is_no_answer_costs_no_attempt_and_delays_no_other_result(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    script = BreakingQuery(offers_query=True)
    policy = RetryPolicy(give_up_h=1)
    with archive(script) as port, desk(tmp_path / "state", port, policy=policy) as at:
        at.send()
        for _ in range(3):
            at.now_s += 1000
            at.send()
        first, second = at.all()
        assert (first.state, first.attempts, first.unsure) == (DeliveryState.PENDING, 1, True)
        assert second.state is DeliveryState.STORED
        assert len(script.queried) == 3
        at.now_s += 1000
        at.send()
        assert at.all()[0].state is DeliveryState.GIVEN_UP
    assert script.stored.count(ct.sop_instance_uids[0]) == 1


def test_a_query_that_hangs_ends(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    ended = threading.Event()
    script = Breaking(offers_query=True, held=lambda _uid: ended.wait(30))
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.send()
        at.now_s += 60
        at.send()
        ended.set()
        assert (at.one().state, at.one().attempts, at.one().unsure) == (DeliveryState.PENDING, 1, True)
        assert "does not answer a query" in at.one().reason
        at.now_s += 60
        at.send()
        assert at.one().state is DeliveryState.STORED


COURIER = """
import sys, threading
from pathlib import Path
from node.delivery.outbox import run_courier
from tests.integration.intake_kit import config_for
retry = {"first_s": 0.2, "max_s": 0.4, "give_up_h": 1.0}
peers = {"archive": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": int(sys.argv[2]), "confirm": "none", "retry": retry}}
run_courier(config_for(Path(sys.argv[1]), peers=peers), threading.Event())
"""


@pytest.mark.slow
def test_kill_9_between_request_and_answer_costs_no_second_transfer_where_the_archive_can_be_asked(
    tmp_path: Path, ct: SyntheticSeries
) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["archive"])
    arrived, answer = threading.Semaphore(0), threading.Event()
    requests: list[str] = []

    def hold(uid: str) -> int:
        requests.append(uid)
        arrived.release()
        answer.wait(20)
        return 0

    script = Archive(on_store=hold, offers_query=True, held=lambda uid: uid in requests)
    with archive(script) as port:
        command = [sys.executable, "-c", COURIER, str(state_dir), str(port)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        assert arrived.acquire(timeout=30)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [(one.state, one.unsure) for one in deliveries(state_dir)] == [(DeliveryState.PENDING, n == 0) for n in range(4)]
        answer.set()
        second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: states(state_dir, "archive") == {"STORED"}, "delivery")
        second.kill()
        second.wait()
    assert script.queried == [ct.sop_instance_uids[0]]
    assert sorted(requests) == sorted(ct.sop_instance_uids), "one C-STORE for each"
