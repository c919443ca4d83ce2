"""Freed memory stays with the process only while a network runs."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from node.inference.heap import _function, freed_memory_kept

pytestmark = pytest.mark.skipif(_function("mallopt") is None, reason="the C library is not glibc")

BLOCK = 4 << 20
ROUNDS = 16
PAGES = ROUNDS * BLOCK * 4 // resource.getpagesize()
"""That the blocks of all rounds have."""


def faults() -> int:
    """Pages that the kernel hands out while large blocks come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_blocks_that_come_and_go_are_fetched_from_the_kernel_once() -> None:
    with freed_memory_kept():
        faults()
        assert faults() < PAGES / 4


def test_afterwards_the_kernel_has_them_back() -> None:
    before = resident_bytes()
    with freed_memory_kept():
        blocks = [torch.ones(BLOCK) for _ in range(8)]
        assert resident_bytes() - before > 6 * BLOCK * 4
        del blocks
    assert resident_bytes() - before < 2 * BLOCK * 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_many_may_want_it_at_once() -> None:
    def work(_: int) -> float:
        with freed_memory_kept():
            return float(torch.ones(1000).sum())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(20))) == [1000.0] * 20
