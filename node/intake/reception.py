"""What happens to an instance between its last byte and the answer: checked, and sealed; the settler does the rest."""

import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from node.domain.commitment import CommitmentReport
from node.files import Durability
from node.intake.backlog import Arrival, Filing
from node.intake.handlers import Rest
from node.intake.incoming import IncomingFile
from node.intake.settler import Settler
from node.intake.spool import Spool
from node.intake.uids import StoreRequest, read_uids, refuse_bomb
from node.journal import CommitmentJournal, open_database


class Intake:
    """Takes instances into the spool and the journal. One object serves all threads of the listener."""

    def __init__(self, state_dir: Path, spool: Spool, durability: Durability = Durability.POWER_LOSS, filing: Filing | None = None) -> None:
        """`filing`: who sees to the rows, where it is not a settler of this process."""
        self._state_dir = state_dir
        self._spool = spool
        self._filing = filing or Settler(state_dir, spool, durability)

    def start(self) -> int:
        """Takes in what an earlier life has answered for; answers how many instances that was. From here on rows are written."""
        return self._filing.start()

    def accept(self, incoming: IncomingFile, request: StoreRequest) -> Rest:
        """Takes an instance; when this returns, it survives what was promised (P1).

        What it answers sees to the row: called when the sender has its answer, or, should we die before, after the next start.

        Raises
        ------
        OutOfResources
            When the disk is full or below the limit, or the journal cannot be written.
        DataSetMismatch
            When the data set says another SOP class or instance than the request.
        CannotUnderstand
            When the bytes are no data set, or lack the UIDs under which to file them.
        """
        try:
            incoming.check()
            uids = read_uids(incoming, request)
            refuse_bomb(incoming, request.transfer_syntax_uid)
            self._filing.check()
            arrival = Arrival(incoming.seal(), uids, request)
        except BaseException:
            incoming.discard()
            raise
        return partial(self._file, incoming, arrival)

    def _file(self, incoming: IncomingFile, arrival: Arrival) -> None:
        try:
            incoming.close()
        finally:  # it is safe, whatever the system says of its descriptor
            self._filing.submit(arrival)

    def record_report(self, report: CommitmentReport) -> bool:
        """Notes durably what an archive says about a storage commitment; answers False when it answers no request of ours."""
        with closing(open_database(self._state_dir)) as connection:
            return CommitmentJournal(connection).record_report(report, now_s=time.time())

    def end_association(self, association: str) -> None:
        """Notes that an association has ended, behind what arrived over it."""
        self._filing.submit_end(association)

    def settle(self, timeout_s: float) -> bool:
        """Waits until everything that was accepted has its row; answers False where that takes longer."""
        return self._filing.drain(timeout_s)

    def stop(self) -> None:
        """Writes what is outstanding, and ends; what the journal does not take now is found at the next start."""
        self._filing.stop()
        with suppress(OSError):  # empty files: swept at the next start
            self._spool.clear()
