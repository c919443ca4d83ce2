"""From a process that receives to the one that files: sealed instances go over a pipe, in batches, when nobody is in haste.

What is sealed and has not been handed over when a process dies is found in the spool by the next listener, as after every crash.
"""

import threading
from multiprocessing.connection import Connection
from typing import Final

import structlog

from node.errors import OutOfResources
from node.intake.backlog import Filing, What
from node.intake.census import Census
from node.intake.spool import Spool

STOP_GRACE_S: Final = 3.0

log = structlog.get_logger("radnode")


class Handover(Filing):
    """The Filing of a process that hands what it has sealed to another."""

    def __init__(self, spool: Spool, pipe: Connection, census: Census) -> None:
        super().__init__(spool.refill)
        self._pipe = pipe
        self._census = census
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)

    def start(self) -> int:
        """Passes on by itself from here on; what an earlier life has answered for is for the one who files."""
        self._backlog.make_places()
        self._thread.start()
        return 0

    def check(self) -> None:
        """Raises OutOfResources while the one who files cannot."""
        if self._has_failed or self._census.trouble:
            raise OutOfResources("the journal or the spool cannot be written")

    def stop(self) -> None:
        """Passes on what is outstanding, and ends."""
        self._backlog.stop()
        self._thread.join(STOP_GRACE_S)

    def _run(self) -> None:
        try:
            self._backlog.run(self._pass_on)
        except Exception:  # our bug: nobody hands over any more, so nobody is to be told success either
            log.exception("handover.failed", meaning="instances are refused until the listener is started anew")
            self._has_failed = True

    def _pass_on(self, batch: list[What]) -> bool:
        try:
            self._pipe.send([_plain(one) for one in batch])
        except OSError as error:  # the other one is gone, and this process about to be: what is sealed is found at the next start
            log.warning("handover.in_vain", reason=str(error), count=len(batch))
        return True


def _plain(what: What) -> What:
    """Answers what can be sent: where the bytes of an instance are mapped matters to nobody else."""
    return what if isinstance(what, str) else what._replace(file=what.file._replace(mapped=None))
