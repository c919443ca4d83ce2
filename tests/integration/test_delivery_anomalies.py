"""The n-th statement on the journal fails, the n-th call to the network fails, n = 1, 2, … until a run passes unfailed: whenever it
is, every result is transferred once, committed, and nothing is left open."""

import functools
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from node.domain.states import Confirmation, DeliveryState
from node.journal import JournalUnusable
from node.journal.queries import transitions_of
from node.network.link import BULK_BYTES, Link
from tests.factories import make_ct_series
from tests.integration.delivery_kit import Archive, archive, desk, queue

MOST = 200
LIVES = 5


class Fault:
    """Happens at the n-th call, once or from then on for three calls."""

    def __init__(self) -> None:
        self.counted, self.nth, self.length = 0, 0, 1

    def arm(self, nth: int, length: int) -> None:
        self.counted, self.nth, self.length = 0, nth, length

    def happens(self) -> bool:
        self.counted += 1
        return 0 < self.nth <= self.counted < self.nth + self.length


@pytest.fixture
def fault() -> Fault:
    return Fault()


@pytest.fixture
def broken_journal(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if fault.happens():
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *args)

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if fault.happens():
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(sql, *args)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Connection))


@pytest.fixture
def broken_network(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    create, send, receive = socket.create_connection, Link.send, Link._receive

    def create_connection(*args: Any, **kwargs: Any) -> socket.socket:
        if fault.happens():
            raise ConnectionRefusedError(111, "Connection refused")
        return create(*args, **kwargs)

    def broken_send(self: Link, data: bytes) -> None:
        if fault.happens():
            self.socket.close()  # what follows fails as on a connection that was reset
        send(self, data)

    def broken_receive(self: Link, most: int = BULK_BYTES) -> None:
        if fault.happens():
            raise ConnectionResetError(104, "Connection reset by peer")
        receive(self, most)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(Link, "send", broken_send)
    monkeypatch.setattr(Link, "_receive", broken_receive)


def deliver_under(fault: Fault, folder: Path, port: int, nth: int, length: int) -> bool:
    """Delivers what waits in a folder while the n-th call fails, until it is committed; answers whether the fault was met."""
    fault.arm(nth, length)
    now_s = 1_000_000.0
    for _ in range(LIVES):
        try:
            with desk(folder, port) as at:
                at.now_s = now_s
                try:
                    at.run(lambda at=at: all(one.confirmation is Confirmation.GIVEN for one in at.all()), rounds=50)
                finally:
                    now_s = at.now_s
            break
        except (sqlite3.Error, JournalUnusable):
            now_s += 10.0  # the thread that delivers starts anew after a pause
    met = fault.counted >= nth
    fault.arm(0, 0)
    with desk(folder, port) as at:
        for one in at.all():
            assert (one.state, one.confirmation, one.unsure, one.confirm_at) == (DeliveryState.COMMITTED, Confirmation.GIVEN, False, None)
            steps = [step.after for step in transitions_of(at.connection, "delivery", str(one.delivery_id))]
            assert steps == ["PENDING", "STORED", "COMMITTED"]
        assert at.outbox.outages() == {}
    return met


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("broken", ["broken_journal", "broken_network"])
def test_wherever_it_fails_a_result_is_transferred_once_and_committed(
    tmp_path: Path, fault: Fault, request: pytest.FixtureRequest, broken: str, length: int
) -> None:
    ct = make_ct_series(tmp_path / "ct", slices=2, rows=16, columns=16)
    queue(tmp_path / "queued", ct.paths, ["archive"])
    request.getfixturevalue(broken)
    script = Archive(reports=lambda _uids: {}, offers_query=True)
    with archive(script) as port:
        for nth in range(1, MOST):
            state_dir = shutil.copytree(tmp_path / "queued", tmp_path / str(nth))
            script.stored.clear()
            try:
                met = deliver_under(fault, state_dir, port, nth, length)
            except AssertionError as error:
                raise AssertionError(f"call {nth}: {error}") from error
            assert sorted(script.stored) == sorted(ct.sop_instance_uids), f"call {nth}: not each once"
            if not met:
                print(f"\n{broken}, {length} calls long: {nth - 1} places")
                return
    raise AssertionError(f"more than {MOST} calls")
