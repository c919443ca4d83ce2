"""`radnode delivery`: what waits and why, what was refused, and how a person sends it again."""

import json
from pathlib import Path

import pytest

from node.cli import main
from node.codes import ExitCode
from node.domain.delivery import Outage
from node.domain.states import Confirmation, DeliveryState
from node.journal import CommitmentJournal, OutboxJournal, open_database
from node.journal.queries import list_deliveries
from tests.factories import make_ct_series
from tests.integration.delivery_kit import queue

DOWN = Outage("pacs", 7, 1_000_000.0, 1_000_900.0, "PACS at 10.0.0.1:104 cannot be reached: Connection refused")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with four results for `pacs`, which is down, and `research`; answers its state folder."""
    ct = make_ct_series(tmp_path / "ct", slices=4, rows=16, columns=16)
    (tmp_path / "models").mkdir()
    (tmp_path / "node.toml").write_text('[node]\nae_title = "RADNODE"\nstate_dir = "state"\nmodels_dir = "models"\n', encoding="utf-8")
    queue(tmp_path / "state", ct.paths, ["pacs", "research"])
    connection = open_database(tmp_path / "state")
    OutboxJournal(connection).begin_outage(DOWN)
    connection.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def end_badly(state_dir: Path) -> None:
    """1 (pacs) is refused, 2 (pacs) given up, 5 (research) refused."""
    connection = open_database(state_dir)
    outbox = OutboxJournal(connection)
    outbox.refuse(1, now_s=5, reason="the peer answered A900")
    outbox.give_up(2, now_s=5, reason="gave up after 9 attempts in 72.0 h")
    outbox.refuse(5, now_s=5, reason="the peer answered C000")
    connection.close()


def states_by_id(state_dir: Path) -> dict[int, DeliveryState]:
    connection = open_database(state_dir)
    try:
        return {one.delivery_id: one.state for one in list_deliveries(connection, all=True)}
    finally:
        connection.close()


def test_the_list_names_the_outage_that_deliveries_wait_for(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delivery", "list"]) == ExitCode.OK
    told = capsys.readouterr()
    assert told.out.splitlines()[0].split() == ["DELIVERY", "JOB", "ROLE", "TO", "STATE", "CONFIRMED", "TRIES", "STORED/NEXT", "REASON"]
    assert told.out.count(f"waits: {DOWN.reason}") == 4
    assert "pacs cannot be reached since" in told.err
    assert "(7 tries)" in told.err
    assert "4 deliveries wait" in told.err
    assert "research" not in told.err


def test_programs_get_the_outage_with_each_delivery_and_its_confirmation(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = open_database(node)
    OutboxJournal(connection).mark_stored(5, now_s=9)
    connection.close()
    assert main(["delivery", "list", "--json"]) == ExitCode.OK
    listed = {one["delivery_id"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed[1]["outage"] == {
        "destination": "pacs", "failures": 7, "down_since_s": 1_000_000.0, "next_attempt_s": 1_000_900.0, "reason": DOWN.reason,
    }  # fmt: skip
    assert listed[6]["outage"] is None
    assert (listed[5]["state"], listed[5]["confirmation"]) == ("STORED", "AWAITED"), "stored, but not confirmed: still on its way"


def test_a_person_sends_one_again(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end_badly(node)
    assert main(["delivery", "retry", "1", "5"]) == ExitCode.OK
    assert "2 deliveries are on the way again" in capsys.readouterr().err
    after = states_by_id(node)
    assert (after[1], after[2], after[5]) == (DeliveryState.PENDING, DeliveryState.GIVEN_UP, DeliveryState.PENDING)


@pytest.mark.parametrize(("options", "opened"), [([], [1, 2, 5]), (["--destination", "pacs"], [1, 2])], ids=["all", "one destination"])
def test_a_person_sends_all_again(node: Path, capsys: pytest.CaptureFixture[str], options: list[str], opened: list[int]) -> None:
    end_badly(node)
    assert main(["delivery", "retry", "--refused", *options, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"opened": opened}
    assert all(states_by_id(node)[number] is DeliveryState.PENDING for number in opened)


def test_a_person_has_an_archive_asked_again(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = open_database(node)
    OutboxJournal(connection).mark_stored(5, now_s=9)
    CommitmentJournal(connection).miss([5], reason="stored, but not confirmed though asked 80 times; last: no report")
    assert main(["delivery", "list"]) == ExitCode.OK
    assert "asked 80 times" in capsys.readouterr().out
    assert main(["delivery", "retry", "--missed"]) == ExitCode.OK
    (found,) = [one for one in list_deliveries(connection, all=True) if one.delivery_id == 5]
    assert (found.state, found.confirmation, found.confirm_attempts) == (DeliveryState.STORED, Confirmation.AWAITED, 0)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["1", "3"], "delivery 3 is PENDING; only one that is REFUSED or GIVEN UP"),
        (["99"], "there is no delivery 99"),
        ([], "name deliveries by their numbers, or all with --refused or --missed"),
        (["1", "--refused"], "name deliveries by their numbers, or all with --refused or --missed"),
        (["1", "--destination", "pacs"], "--destination goes with --refused or --missed"),
    ],
)
def test_what_cannot_be_sent_again_is_told_and_nothing_is_changed(
    node: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    end_badly(node)
    before = states_by_id(node)
    assert main(["delivery", "retry", *arguments]) == ExitCode.USAGE
    assert told in capsys.readouterr().err
    assert states_by_id(node) == before


def test_nothing_to_send_again_is_said(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delivery", "retry", "--refused"]) == ExitCode.OK
    assert "there is none to retry" in capsys.readouterr().err
