"""A stored result is delivered when the archive answers for it: by storage commitment, by query, or not at all, and never in silence."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from node.delivery.commitment import FOUND_BY_QUERY, NEITHER
from node.domain.commitment import CommitmentReport, Confirm
from node.domain.delivery import RetryPolicy
from node.domain.states import Confirmation, DeliveryState
from node.journal import CommitmentJournal, open_database
from node.journal.queries import list_deliveries, transitions_of
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.delivery_kit import Archive, Desk, archive, deliveries, delivering, desk, peer, queue, states
from tests.integration.intake_kit import config_for, listening
from tests.peers import OrthancPeer, free_port, orthanc, storescp, wait_until

COMMITTED = (DeliveryState.COMMITTED, Confirmation.GIVEN)
NO_SUCH_OBJECT, RESOURCE_LIMITATION, CLASS_NOT_SUPPORTED = 0x0112, 0x0213, 0x0122


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=4, rows=32, columns=32)


def ends(at: Desk) -> set[tuple[DeliveryState, Confirmation | None]]:
    return {(one.state, one.confirmation) for one in at.all()}


def settle(at: Desk) -> None:
    """Sends what is due and lets it settle, so that it is to be asked about."""
    assert at.send()
    at.now_s += at.destination.confirmation.settle_s
    assert at.confirm()


def transactions(at: Desk) -> list[str]:
    return [row[0] for row in at.connection.execute("SELECT transaction_uid FROM commitment ORDER BY requested_at")]


# ── storage commitment ──────────────────────────────────────────────────────


def test_a_report_on_the_same_association_commits_all_results_of_a_job_in_one_transaction(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    script = Archive(reports=lambda _uids: {})
    with archive(script) as port, desk(tmp_path / "state", port, Confirm.COMMITMENT) as at:
        settle(at)
        assert ends(at) == {COMMITTED}
        history = [step.after for step in transitions_of(at.connection, "delivery", "1")]
        assert history == ["PENDING", "STORED", "COMMITTED"]
        wait_until(lambda: script.answers_to_reports, "our answer to the report")
    assert script.asked == [list(ct.sop_instance_uids[:2])]
    assert script.answers_to_reports == [0]


def test_a_request_is_durable_before_the_archive_hears_of_it(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths[:1], ["archive"])
    known: list[int] = []

    def look(_uids: Any) -> dict[str, int]:
        connection = open_database(state_dir)
        known.append(connection.execute("SELECT count(*) FROM commitment JOIN commitment_item USING (transaction_uid)").fetchone()[0])
        connection.close()
        return {}

    with archive(Archive(reports=look)) as port, desk(state_dir, port) as at:
        settle(at)
    assert known == [1]


def test_what_the_archive_lost_is_sent_again_and_then_committed(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    lost = ct.sop_instance_uids[0]
    answers = iter([{lost: NO_SUCH_OBJECT}, {}])
    script = Archive(reports=lambda _uids: next(answers))
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        settle(at)
        first, second = at.all()
        assert (second.state, second.confirmation) == COMMITTED
        assert (first.state, first.confirmation) == (DeliveryState.PENDING, None)
        assert "0112: no such object instance" in first.reason
        at.run(lambda: ends(at) == {COMMITTED})
        assert [step.after for step in transitions_of(at.connection, "delivery", "1")] == [
            "PENDING", "STORED", "PENDING", "STORED", "COMMITTED",
        ]  # fmt: skip
    assert script.stored == [lost, ct.sop_instance_uids[1], lost]


def test_an_archive_that_stores_and_loses_for_ever_ends_with_patience(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(reports=lambda uids: dict.fromkeys(uids, NO_SUCH_OBJECT))
    policy = RetryPolicy(first_s=10, max_s=900, give_up_h=2)
    with archive(script) as port, desk(tmp_path / "state", port, policy=policy) as at:
        at.run(lambda: at.one().state is DeliveryState.GIVEN_UP)
        assert "gave up after" in at.one().reason
        assert "0112" in at.one().reason
    assert 10 <= len(script.stored) <= 20, "paced: 10 s to 15 min between transfers, for two hours"


def test_what_the_archive_cannot_say_now_is_asked_again_under_a_new_transaction(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    answers = iter([RESOURCE_LIMITATION, RESOURCE_LIMITATION, None])
    script = Archive(reports=lambda uids: {uids[0]: failure} if (failure := next(answers)) else {})
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        settle(at)
        assert (at.one().state, at.one().confirmation) == (DeliveryState.STORED, Confirmation.AWAITED)
        assert "0213: resource limitation" in at.one().reason
        waits = [at.leap()]
        at.confirm()
        waits.append(at.leap())
        at.confirm()
        assert ends(at) == {COMMITTED}
        assert len(set(transactions(at))) == 3
    assert waits == [60, 120]
    assert script.stored == [ct.sop_instance_uids[0]]


def test_what_the_archive_will_never_answer_for_is_refused_with_its_reason(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    with (
        archive(Archive(reports=lambda uids: dict.fromkeys(uids, CLASS_NOT_SUPPORTED))) as port,
        desk(tmp_path / "state", port) as at,
    ):
        settle(at)
        assert at.one().state is DeliveryState.REFUSED
        assert "0122: referenced sop class not supported" in at.one().reason
        at.outbox.open_again([at.one().delivery_id], now_s=at.now_s)
        assert (at.one().state, at.one().attempts) == (DeliveryState.PENDING, 0)


def test_a_late_report_of_an_older_request_still_counts(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    uids = ct.sop_instance_uids
    with archive(Archive(reports=lambda _uids: None)) as port, desk(tmp_path / "state", port, Confirm.COMMITMENT) as at:
        settle(at)
        at.leap()
        at.confirm()
        oldest, newer = transactions(at)
        assert at.commitments.record_report(CommitmentReport(oldest, frozenset({uids[0]})), now_s=at.now_s)
        first, second = at.all()
        assert (first.state, first.confirmation) == COMMITTED
        assert second.confirmation is Confirmation.AWAITED, "a report that does not mention it says nothing of it"
        assert at.commitments.record_report(CommitmentReport(newer, frozenset(uids[:2])), now_s=at.now_s)
        assert ends(at) == {COMMITTED}
        assert at.commitments.record_report(CommitmentReport(newer, frozenset(uids[:2])), now_s=at.now_s), "said twice is harmless"
        assert not at.commitments.record_report(CommitmentReport("1.2.3.4", frozenset(uids[:2])), now_s=at.now_s)


def test_a_late_failure_says_nothing_about_what_was_stored_after_its_request(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    uid = ct.sop_instance_uids[0]
    with archive(Archive(reports=lambda _uids: None)) as port, desk(tmp_path / "state", port, Confirm.COMMITMENT) as at:
        settle(at)
        at.leap()
        at.confirm()
        older, newer = transactions(at)
        lost = {uid: NO_SUCH_OBJECT}
        at.commitments.record_report(CommitmentReport(newer, failed=lost), now_s=at.now_s)
        at.now_s += 1
        at.send()
        assert at.one().attempts == 2
        at.commitments.record_report(CommitmentReport(older, failed=lost), now_s=at.now_s)
        assert at.one().state is DeliveryState.STORED


def test_a_report_touches_only_objects_of_its_transaction(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    queue(tmp_path / "state", ct.paths[1:2], ["archive"], key="other")
    with archive(Archive(reports=lambda _uids: None)) as port, desk(tmp_path / "state", port) as at:
        settle(at)
        (transaction_uid,) = transactions(at)
        at.connection.execute("DELETE FROM commitment_item WHERE delivery_id = 2")
        failed = dict.fromkeys(ct.sop_instance_uids, NO_SUCH_OBJECT)
        assert at.commitments.record_report(CommitmentReport(transaction_uid, failed=failed), now_s=at.now_s)
        assert [one.state for one in at.all()] == [DeliveryState.PENDING, DeliveryState.STORED]


def test_an_archive_that_never_reports_is_asked_by_query_after_three_requests(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(reports=lambda _uids: None, offers_query=True)
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.run(lambda: at.one().confirmation is Confirmation.GIVEN)
        assert (at.one().state, at.one().reason) == (DeliveryState.COMMITTED, FOUND_BY_QUERY)
    assert len(script.asked) == 3
    assert len(script.queried) == 1


@pytest.mark.parametrize("confirm", [Confirm.COMMITMENT, Confirm.AUTO])
def test_an_archive_that_never_reports_and_takes_no_query_is_missed_and_shown(
    tmp_path: Path, ct: SyntheticSeries, confirm: Confirm
) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(reports=lambda _uids: None)
    with archive(script) as port, desk(tmp_path / "state", port, confirm, RetryPolicy(give_up_h=3)) as at:
        at.run(lambda: at.one().confirmation is not Confirmation.AWAITED)
        assert (at.one().state, at.one().confirmation) == (DeliveryState.STORED, Confirmation.MISSED)
        assert f"asked {len(script.asked)} times" in at.one().reason
        assert list_deliveries(at.connection) == at.all(), "also where only the unfinished are listed"
        at.commitments.record_report(CommitmentReport(transactions(at)[-1], frozenset(ct.sop_instance_uids)), now_s=at.now_s)
        assert ends(at) == {COMMITTED}, "better late"
    assert len(script.asked) == 8, "60 s doubling to 1 h, for three hours"
    assert len(script.stored) == 1


# ── query ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reports", [None, lambda _uids: {}], ids=["no commitment", "request refused"])
def test_without_commitment_a_query_confirms(tmp_path: Path, ct: SyntheticSeries, reports: Any) -> None:
    queue(tmp_path / "state", ct.paths, ["archive"])
    script = Archive(reports=reports, action_status=0x0124, offers_query=True)
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        settle(at)
        assert ends(at) == {COMMITTED}
        assert {one.reason for one in at.all()} == {FOUND_BY_QUERY}
    assert sorted(script.queried) == sorted(ct.sop_instance_uids)
    assert script.associations == 2, "one to send, one to ask"


def test_what_two_queries_do_not_find_is_sent_again(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(offers_query=True)
    script.held = lambda _uid: len(script.stored) == 2
    with archive(script) as port, desk(tmp_path / "state", port, Confirm.QUERY) as at:
        settle(at)
        assert at.one().state is DeliveryState.STORED, "an archive may file with delay"
        assert at.leap() == 60
        at.confirm()
        assert at.one().state is DeliveryState.PENDING
        assert "did not find it" in at.one().reason
        at.run(lambda: ends(at) == {COMMITTED})
    assert script.stored == [ct.sop_instance_uids[0]] * 2


def test_an_archive_that_cannot_answer_queries_now_is_asked_later(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:2], ["archive"])
    script = Archive(offers_query=True, find_status=0xA700)
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        settle(at)
        assert ends(at) == {(DeliveryState.STORED, Confirmation.AWAITED)}
        assert {one.reason for one in at.all()} == {"stored, not confirmed yet: the peer answered the query (C-FIND) with A700"}
        script.find_status = 0
        at.leap()
        at.confirm()
        assert ends(at) == {COMMITTED}


# ── neither ─────────────────────────────────────────────────────────────────


@pytest.mark.peer
def test_an_archive_that_offers_neither_is_not_asked_for_ever(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths, ["archive"])
    with storescp(tmp_path / "received", ae_title="ARCHIVE") as port, desk(tmp_path / "state", port) as at:
        settle(at)
        assert ends(at) == {(DeliveryState.STORED, Confirmation.WAIVED)}
        assert {one.reason for one in at.all()} == {NEITHER}


@pytest.mark.parametrize("confirm", [Confirm.COMMITMENT, Confirm.QUERY])
def test_an_archive_that_does_not_offer_what_the_site_asks_for_is_missed(tmp_path: Path, ct: SyntheticSeries, confirm: Confirm) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    with archive(Archive()) as port, desk(tmp_path / "state", port, confirm, RetryPolicy(give_up_h=1)) as at:
        at.run(lambda: at.one().confirmation is Confirmation.MISSED)
        assert "does not offer what [peers.archive] confirm names" in at.one().reason


def test_a_site_that_asks_for_no_confirmation_gets_none(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths, ["archive"])
    script = Archive(reports=lambda _uids: {}, offers_query=True)
    with archive(script) as port, desk(tmp_path / "state", port, Confirm.NONE) as at:
        settle(at)
        assert ends(at) == {(DeliveryState.STORED, Confirmation.WAIVED)}
    assert (script.asked, script.queried, script.associations) == ([], [], 1)


def test_what_an_older_radnode_stored_is_asked_about_before_it_is_missed(tmp_path: Path, ct: SyntheticSeries) -> None:
    """Rows of schema 1 come as stored long ago, awaited since 0."""
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(reports=lambda _uids: {})
    with archive(script) as port, desk(tmp_path / "state", port) as at:
        at.send()
        at.connection.execute("UPDATE delivery SET confirm_at = 0, stored_at = ?", (at.now_s - 30 * 86400,))
        assert at.confirm() == 1
        assert ends(at) == {COMMITTED}


def test_what_was_stored_long_ago_and_is_lost_is_sent_again_before_patience_ends(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    answers = iter([{ct.sop_instance_uids[0]: NO_SUCH_OBJECT}, {}])
    with archive(Archive(reports=lambda _uids: next(answers))) as port, desk(tmp_path / "state", port) as at:
        at.send()
        at.now_s += 30 * 86400
        at.confirm()
        assert at.one().state is DeliveryState.PENDING
        at.run(lambda: ends(at) == {COMMITTED})


def test_an_archive_that_is_down_when_it_is_to_confirm_is_asked_later(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths[:1], ["archive"])
    script = Archive(reports=lambda _uids: {})
    port = free_port()
    with desk(tmp_path / "state", port) as at:
        with archive(script, port):
            assert at.send() == 1
        at.now_s += 1
        assert at.confirm() == 1
        assert "cannot be reached" in at.one().reason
        assert at.confirm() == 0, "not before its time"
        with archive(script, port):
            assert at.leap() == 60
            at.confirm()
        assert ends(at) == {COMMITTED}


# ── the courier as a whole ──────────────────────────────────────────────────


def test_an_archive_that_hangs_over_confirmation_delays_no_sending(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths[:1], ["archive"])
    asked, ended = threading.Event(), threading.Event()

    def hang(_uids: Any) -> dict[str, int]:
        asked.set()
        ended.wait(30)
        return {}

    with archive(Archive(reports=hang)) as port:
        try:
            with delivering(config_for(state_dir, peers={"archive": peer(port)})):
                assert asked.wait(20)
                queue(state_dir, ct.paths[1:], ["archive"], key="next")
                wait_until(lambda: states(state_dir, "archive") == {"STORED"}, "delivery beside a request that hangs")
                ended.set()
        finally:
            ended.set()


def test_confirmation_at_a_destination_that_was_removed_is_missed(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths[:1], ["archive"])
    with archive(Archive()) as port, desk(state_dir, port) as at:
        at.send()
    connection = open_database(state_dir)
    connection.execute("UPDATE delivery SET confirm_at = 0")
    connection.close()
    with delivering(config_for(state_dir)):
        wait_until(lambda: deliveries(state_dir)[0].confirmation is Confirmation.MISSED, "the end")
    assert "no peer archive any more" in deliveries(state_dir)[0].reason


def confirmed_by_orthanc(archive: OrthancPeer, state_dir: Path, **confirm: str) -> None:
    """Runs listener and courier until every result is committed; Orthanc reports on an association of its own."""
    config = config_for(state_dir, peers={"orthanc": {**peer(archive.dicom_port, archive.ae_title), **confirm}})
    with listening(config) as listener:
        archive.add_modality("radnode", "RADNODE", listener.port)
        with delivering(config):
            wait_until(lambda: states(state_dir, "orthanc") == {"COMMITTED"}, "the commitment")


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("confirm", ["auto", "commitment"])
def test_orthanc_commits_on_a_new_association(tmp_path: Path, ct: SyntheticSeries, confirm: str) -> None:
    queue(tmp_path / "state", ct.paths, ["orthanc"])
    with orthanc(tmp_path / "orthanc") as archive:
        confirmed_by_orthanc(archive, tmp_path / "state", confirm=confirm)
    assert {(one.confirmation, one.reason) for one in deliveries(tmp_path / "state")} == {(Confirmation.GIVEN, "")}
    connection = open_database(tmp_path / "state")
    assert connection.execute("SELECT count(*), count(reported_at) FROM commitment").fetchone()[:] == (1, 1)
    connection.close()


@pytest.mark.peer
@pytest.mark.slow
def test_what_orthanc_deleted_before_it_was_asked_is_sent_again_and_committed(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["orthanc"])
    with orthanc(tmp_path / "orthanc") as archive:
        with desk(state_dir, archive.dicom_port, name="orthanc") as at:
            assert at.send() == 4
            archive.post(f"/instances/{archive.instances()[0]}", b"", method="DELETE")
            assert len(archive.sop_instance_uids()) == 3
            at.connection.execute("UPDATE delivery SET confirm_at = 0")
        confirmed_by_orthanc(archive, state_dir)
        assert archive.sop_instance_uids() == set(ct.sop_instance_uids)
    assert sorted(one.attempts for one in deliveries(state_dir)) == [1, 1, 1, 2]
    connection = open_database(state_dir)
    lost = next(one.delivery_id for one in deliveries(state_dir) if one.attempts == 2)
    reasons = [step.reason for step in transitions_of(connection, "delivery", str(lost))]
    assert any("0112" in reason for reason in reasons)
    connection.close()


@pytest.mark.peer
@pytest.mark.slow
def test_orthanc_answers_queries(tmp_path: Path, ct: SyntheticSeries) -> None:
    queue(tmp_path / "state", ct.paths, ["orthanc"])
    with orthanc(tmp_path / "orthanc") as archive:
        confirmed_by_orthanc(archive, tmp_path / "state", confirm="query")
    assert {one.reason for one in deliveries(tmp_path / "state")} == {FOUND_BY_QUERY}


def test_reports_of_two_threads_at_once_are_recorded_once(tmp_path: Path, ct: SyntheticSeries) -> None:
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["archive"])
    with archive(Archive(reports=lambda _uids: None)) as port, desk(state_dir, port) as at:
        settle(at)
        (transaction_uid,) = transactions(at)
        known: list[bool] = []

        def report() -> None:
            connection = open_database(state_dir)
            known.append(
                CommitmentJournal(connection).record_report(CommitmentReport(transaction_uid, frozenset(ct.sop_instance_uids)), now_s=5)
            )
            connection.close()

        threads = [threading.Thread(target=report) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert known == [True] * 4
        assert ends(at) == {COMMITTED}
        assert all(len(transitions_of(at.connection, "delivery", str(one.delivery_id))) == 3 for one in at.all())


COURIER = """
import sys, threading
from pathlib import Path
from node.delivery.outbox import run_courier
from tests.integration.intake_kit import config_for
peers = {"archive": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": int(sys.argv[2])}}
run_courier(config_for(Path(sys.argv[1]), peers=peers), threading.Event())
"""


@pytest.mark.slow
def test_kill_9_between_request_and_report_loses_no_report(tmp_path: Path, ct: SyntheticSeries) -> None:
    """The courier is gone when the archive reports: the listener knows the transaction by the journal."""
    state_dir = tmp_path / "state"
    queue(state_dir, ct.paths, ["archive"])
    asked, ended = threading.Event(), threading.Event()

    def hold(_uids: Any) -> None:
        asked.set()
        ended.wait(30)

    with archive(Archive(reports=hold)) as port:
        courier = subprocess.Popen([sys.executable, "-c", COURIER, str(state_dir), str(port)], stdout=subprocess.DEVNULL)
        assert asked.wait(30)
        courier.send_signal(signal.SIGKILL)
        courier.wait()
        ended.set()
    connection = open_database(state_dir)
    (transaction_uid,) = (row[0] for row in connection.execute("SELECT transaction_uid FROM commitment"))
    report = CommitmentReport(transaction_uid, frozenset(ct.sop_instance_uids))
    assert CommitmentJournal(connection).record_report(report, now_s=time.time())
    connection.close()
    assert states(state_dir, "archive") == {"COMMITTED"}
