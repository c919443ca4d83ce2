"""Processes that take connections on one port count their associations together."""

import os
import threading

import pytest

from node.intake.admission import AdmissionRules
from node.intake.census import Census, Desk
from node.network import Rejection

RULES = AdmissionRules("RADNODE", max_associations=5)


def test_the_limit_is_that_of_all_processes_together() -> None:
    census = Census(3)
    assert [census.enter(process, RULES) for process in (0, 1, 1, 2, 2)] == [None] * 5
    refusal = census.enter(0, RULES)
    assert refusal is not None
    assert refusal.rejection is Rejection.LOCAL_LIMIT
    census.leave(1)
    assert census.enter(0, RULES) is None
    assert [census.open_in(process) for process in range(3)] == [2, 1, 2]
    assert [census.is_ahead(process) for process in range(3)] == [True, False, True]


def test_no_entry_is_lost_between_processes_and_threads() -> None:
    census = Census(2)
    rules = AdmissionRules("RADNODE", max_associations=1 << 30)
    child = os.fork()

    def come_and_go(process: int) -> None:
        for _ in range(2000):
            census.enter(process, rules)
            census.enter(process, rules)
            census.leave(process)

    if child == 0:
        come_and_go(1)
        os._exit(0)
    threads = [threading.Thread(target=come_and_go, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert [census.open_in(process) for process in range(2)] == [4000, 2000]


def test_a_process_of_its_own_is_never_ahead() -> None:
    desk = Desk(Census())
    assert desk.enter(RULES) is None
    assert not desk.is_ahead()
    desk.leave()
    assert desk.census.open_in(0) == 0


def test_trouble_is_known_to_all() -> None:
    census = Census(2)
    assert not census.trouble
    census.trouble = True
    child = os.fork()
    if child == 0:
        os._exit(0 if census.trouble else 1)
    assert os.waitpid(child, 0)[1] == 0
    census.trouble = False
    assert not census.trouble
    assert census.open_in(0) == census.open_in(1) == 0, "it stands beside the counts"


@pytest.mark.parametrize("limit", [1, 3])
def test_a_refused_association_is_not_counted(limit: int) -> None:
    census, rules = Census(), AdmissionRules("RADNODE", max_associations=limit)
    for _ in range(limit + 5):
        census.enter(0, rules)
    assert census.open_in(0) == limit
