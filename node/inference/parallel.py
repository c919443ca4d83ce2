"""Many small torch operations on all cores: whole pieces of work side by side, each operation on one thread.

torch splits every single operation over the cores and waits at its end. For short operations that waiting is spinning, and it
grows without bound when other processes want the cores: measured here, five times the processor time for a network beside a busy
machine. Pieces that run side by side wait only once, at the end.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def map_on_all_cores(work: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Answers `work` of every item, in order; as many at once as torch may use threads. Gradients are not recorded."""

    def one(item: Item) -> Answer:
        with torch.inference_mode():
            return work(item)

    return list(_pool(torch.get_num_threads()).map(one, items))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Answers a pool whose threads let torch use no threads of its own.

    torch remembers the last number set for threads that are still to come: so all of the pool's threads are started here, and
    the number is set back.
    """
    all_started = threading.Barrier(threads)
    pool = ThreadPoolExecutor(threads, "radnode-torch", initializer=_work_alone)
    list(pool.map(lambda _: all_started.wait(), range(threads)))
    torch.set_num_threads(threads)
    return pool


def _work_alone() -> None:
    torch.get_num_threads()  # a thread's first call takes over the number of the process: it must not come after the next line
    torch.set_num_threads(1)
