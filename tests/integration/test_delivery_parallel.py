"""Deliveries several at once: over several associations, or within a window of operations; each is stored once and none is lost."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from node.delivery.courier import Claims, Courier
from node.delivery.destination import Destination
from node.delivery.part10 import read_part10
from node.delivery.upper_layer import Peer
from node.domain.commitment import Confirm
from node.domain.delivery import RetryPolicy
from node.domain.states import DeliveryState
from node.journal import DeliveryRecord, OutboxJournal, open_database
from node.journal.queries import transitions_of
from tests.factories import make_ct_series
from tests.integration.delivery_kit import QUICK, deliveries, delivering, peer, queue, states
from tests.integration.intake_kit import config_for, data_set_of
from tests.integration.sending_kit import Acceptor, Conversation, Stored, accepting
from tests.peers import HOST, free_port, wait_until


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    return make_ct_series(tmp_path_factory.mktemp("results"), slices=24, rows=16, columns=16).paths


def destination(port: int) -> Destination:
    peer = Peer(HOST, port, "ARCHIVE", "RADNODE")
    return Destination("archive", peer, RetryPolicy(), QUICK, Confirm.NONE)


def steps(state_dir: Path) -> set[tuple[str, ...]]:
    with closing(open_database(state_dir)) as connection:
        found = deliveries(state_dir)
        return {tuple(step.after for step in transitions_of(connection, "delivery", str(one.delivery_id))) for one in found}


def test_results_go_over_as_many_associations_as_are_configured_each_once(tmp_path: Path, results: Sequence[Path]) -> None:
    all_open = threading.Barrier(3)
    met: set[int] = set()

    def wait_for_the_others(conversation: Conversation, stored: Stored) -> None:
        if id(conversation) not in met:
            met.add(id(conversation))
            all_open.wait(10)
        conversation.respond(stored)

    state_dir = tmp_path / "state"
    queue(state_dir, results, ["archive"])
    with accepting(Acceptor(on_stored=wait_for_the_others)) as acceptor:
        config = config_for(state_dir, peers={"archive": {**peer(acceptor.port), "associations": 3, "confirm": "none"}})
        with delivering(config):
            wait_until(lambda: states(state_dir, "archive") == {"STORED"}, "delivery")
    assert len(acceptor.uids()) == len(set(acceptor.uids())) == len(results)
    assert set(acceptor.data_sets().values()) == {data_set_of(path) for path in results}
    assert steps(state_dir) == {("PENDING", "STORED")}
    assert acceptor.most_open == 3


def test_an_archive_that_takes_no_further_association_is_not_down(tmp_path: Path, results: Sequence[Path]) -> None:
    """It rejects another courier while one sends: that courier rests, no outage is noted, and nothing waits for it."""
    state_dir = tmp_path / "state"
    queue(state_dir, results, ["archive"])
    claims, now_s = Claims(2), time.time()
    made_by_the_other: list[int] = []

    def let_the_other_try(conversation: Conversation, stored: Stored) -> None:
        if not made_by_the_other:
            with closing(open_database(state_dir)) as connection:
                outbox = OutboxJournal(connection)
                other = Courier(outbox, destination(acceptor.port), claims=claims, clock=lambda: now_s)
                made_by_the_other.extend([other.deliver_due(now_s), other.deliver_due(now_s)])
                assert outbox.outages() == {}
        conversation.respond(stored)

    with accepting(Acceptor(most_associations=1, on_stored=let_the_other_try)) as acceptor, closing(open_database(state_dir)) as connection:
        courier = Courier(OutboxJournal(connection), destination(acceptor.port), claims=claims, clock=lambda: now_s)
        made = [courier.deliver_due(now_s)]
        while made[-1]:
            made.append(courier.deliver_due(now_s))
        assert made_by_the_other == [0, 0]
        assert acceptor.rejected == 1, "it rests after that"
    assert made[0] == len(results) / 2, "half was left for the other courier"
    assert sum(made) == len(acceptor.uids()) == len(set(acceptor.uids())) == len(results)
    assert states(state_dir, "archive") == {"STORED"}


def test_an_outage_is_counted_once_and_probed_by_one(tmp_path: Path, results: Sequence[Path]) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, results, ["archive"])
    claims, now_s = Claims(2), 100.0
    with closing(open_database(state_dir)) as connection:
        outbox = OutboxJournal(connection)
        one, two = (Courier(outbox, destination(free_port()), claims=claims, clock=lambda: now_s, chance=lambda: 0.5) for _ in range(2))
        assert one.deliver_due(now_s) == two.deliver_due(now_s) == 0
        outage = outbox.outage("archive")
        assert outage is not None
        assert outage.failures == 1
        now_s = outage.next_attempt_s
        with claims.claim(lambda: outbox.due("archive", now_s, limit=1), alone=True) as held:
            assert len(held) == 1, "another courier probes"
            assert two.deliver_due(now_s) == 0
        assert outbox.outage("archive") == outage
        assert two.deliver_due(now_s) == 0
        again = outbox.outage("archive")
        assert again is not None
        assert again.failures == 2


def test_no_two_hold_the_same_delivery_and_each_gets_a_share(tmp_path: Path, results: Sequence[Path]) -> None:
    queue(tmp_path / "state", results, ["archive"])
    with closing(open_database(tmp_path / "state")) as connection:
        outbox = OutboxJournal(connection)

        def due() -> Sequence[DeliveryRecord]:
            return outbox.due("archive", 10.0)

        claims = Claims(3)
        with claims.claim(due, alone=False) as first, claims.claim(due, alone=False) as second, claims.claim(due, alone=False) as third:
            shares = [{one.delivery_id for one in share} for share in (first, second, third)]
            assert [len(share) for share in shares] == [8, 8, 8]
            assert len(set().union(*shares)) == 24
            with claims.claim(due, alone=False) as none:
                assert not none
        with suppress(KeyError), claims.claim(due, alone=True) as again:
            assert [one.delivery_id for one in again] == [one.delivery_id for one in first]
            raise KeyError
        with claims.claim(due, alone=True) as again:
            assert len(again) == 8, "put down, whatever happened"


def test_results_go_within_the_window_and_answers_in_any_order_find_them(tmp_path: Path, results: Sequence[Path]) -> None:
    """The attempt of each is durable before it is sent."""
    state_dir = tmp_path / "state"
    queue(state_dir, results, ["archive"])
    doubts: list[int] = []

    def answer_when_full(conversation: Conversation, _stored: Stored) -> None:
        if len(conversation.unanswered) == 6:
            doubts.append(sum(one.unsure and one.attempts == 1 for one in deliveries(state_dir)))
            for one in reversed(conversation.unanswered):
                conversation.respond(one, 0xA900 if one.sop_instance_uid == refused else 0)

    refused = read_part10(results[7]).sop_instance_uid
    with accepting(Acceptor(window=(6, 1), on_stored=answer_when_full)) as acceptor, closing(open_database(state_dir)) as connection:
        courier = Courier(OutboxJournal(connection), destination(acceptor.port))
        assert courier.deliver_due(time.time()) == 24
    assert doubts == [6, 6, 6, 6]
    ended = {one.sop_instance_uid: one.state for one in deliveries(state_dir)}
    assert ended.pop(refused) is DeliveryState.REFUSED
    assert set(ended.values()) == {DeliveryState.STORED}
    assert len(acceptor.windows) == 1


def test_after_a_break_what_had_no_answer_goes_alone_and_only_the_culprit_stays(tmp_path: Path, results: Sequence[Path]) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, results, ["archive"])
    poison = read_part10(results[9]).sop_instance_uid
    now_s = 100.0

    def die_over_poison(conversation: Conversation, stored: Stored) -> None:
        if stored.sop_instance_uid == poison:
            conversation.abort()
        elif len(acceptor.windows) > 1 or len(acceptor.stored) % 2:
            conversation.respond(stored)

    with accepting(Acceptor(window=(8, 1), on_stored=die_over_poison)) as acceptor, closing(open_database(state_dir)) as connection:
        courier = Courier(OutboxJournal(connection), destination(acceptor.port), clock=lambda: now_s, chance=lambda: 0.5)
        while courier.deliver_due(now_s):
            pass
        lost = [one for one in deliveries(state_dir) if one.state is DeliveryState.PENDING]
        assert poison in {one.sop_instance_uid for one in lost}
        assert 2 <= len(lost) <= 8
        assert {(one.unsure, one.attempts) for one in lost} == {(True, 1)}
        now_s = 120.0
        acceptor.most_unanswered = 0
        while courier.deliver_due(now_s):
            pass
        assert acceptor.most_unanswered == 1, "alone"
    (left,) = [one for one in deliveries(state_dir) if one.state is DeliveryState.PENDING]
    assert (left.sop_instance_uid, left.attempts) == (poison, 2)
    counts = {uid: acceptor.uids().count(uid) for uid in acceptor.uids()}
    assert max(counts.values()) == 2
    assert len(counts) == 24


def test_the_keys_of_the_configuration_reach_the_destination(tmp_path: Path) -> None:
    peers = {"archive": {**peer(104), "associations": 4, "async_operations": 1}, "plain": peer(105, "PLAIN")}
    config = config_for(tmp_path / "state", peers=peers)
    ours, plain = Destination.of(config, "archive"), Destination.of(config, "plain")
    assert (ours.associations, ours.peer.async_operations) == (4, 1)
    assert (plain.associations, plain.peer.async_operations) == (1, 16)
