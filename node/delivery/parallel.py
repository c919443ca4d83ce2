"""Files over several associations at once: for a peer that is slower in answering than in taking."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue

from node.delivery.part10 import Part10File, batches
from node.delivery.store_scu import StoreOutcome, WaitingFiles, store_files, store_waiting
from node.delivery.upper_layer import RELEASE_TIMEOUT_S, Peer, Timeouts
from node.errors import DeliveryError


def store_in_parallel(
    peer: Peer, files: Iterable[Part10File], *, associations: int, timeouts: Timeouts | None = None
) -> Iterator[StoreOutcome]:
    """Sends files to a peer as `store_files` does, over so many associations at once, in no order; each outcome is told once.

    A peer may take fewer associations than that: those that it takes send all. Only when there is none any more, the rest has failed.
    """
    for batch in batches(files):
        count = min(associations, len(batch))
        yield from store_files(peer, batch, timeouts) if count == 1 else _store_batch(peer, batch, count, timeouts)


def _store_batch(peer: Peer, batch: Sequence[Part10File], count: int, timeouts: Timeouts | None) -> Iterator[StoreOutcome]:
    waiting = WaitingFiles(batch)
    told: SimpleQueue[StoreOutcome | BaseException | None] = SimpleQueue()

    def send() -> None:
        ended: BaseException | None = None
        try:
            for outcome in store_waiting(peer, waiting, timeouts):
                told.put(outcome)
        except BaseException as error:  # noqa: BLE001 - the boundary of this thread: whoever takes the outcomes hears of it
            ended = error
        told.put(ended)

    threads = [threading.Thread(target=send, name=f"association {number}", daemon=True) for number in range(1, count + 1)]
    for thread in threads:
        thread.start()
    failure: DeliveryError | None = None
    running = count
    try:
        while running:
            one = told.get()
            if isinstance(one, StoreOutcome):
                yield one
                continue
            running -= 1
            if isinstance(one, DeliveryError):
                failure = one
            elif one is not None:
                raise one
    finally:
        unsent = waiting.take_all()  # also where nobody wants the outcomes any more: the associations end then
        for thread in threads:
            thread.join(RELEASE_TIMEOUT_S)
    yield from (StoreOutcome(file.path, file.sop_instance_uid, failure) for file in unsent)
