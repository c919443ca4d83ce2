"""Promise P1 at the plug: what was answered with success is there after a power cut, file and record.

The state lies on an ext4 in a file. While the listener is stopped, the file is copied: that is what the disk had, without what only
the page cache knew. The copy is mounted (its journal replayed), and every acknowledged instance is looked for.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.intake.spool import spooled_path
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.intake_kit import data_set_of, digest
from tests.integration.test_intake_faults import restarted, send_all, start_listener

CUTS = 3
MEBIBYTES = 128


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4")
def test_a_power_cut_loses_nothing_that_was_answered_with_success(tmp_path: Path) -> None:
    series = [make_ct_series(tmp_path / f"ct{number}", slices=60, rows=160, columns=160, series=str(number)) for number in range(2)]
    acknowledged = sum(cut_power(tmp_path / f"cut{number}", series, 0.4 + 0.5 * number) for number in range(CUTS))
    assert acknowledged > 10 * CUTS


def cut_power(folder: Path, series: list[SyntheticSeries], after_s: float) -> int:
    """Cuts the power `after_s` after the first answer; answers how many instances had been acknowledged."""
    folder.mkdir()
    image, copy = folder / "disk", folder / "disk-after"
    with image.open("wb") as stream:
        stream.truncate(MEBIBYTES << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    answered: set[str] = set()
    with mounted(image, folder / "before") as disk:
        state_dir = disk / "state"
        state_dir.mkdir()
        process, port = start_listener(state_dir)
        senders = [threading.Thread(target=send_all, args=(port, one, answered)) for one in series]
        for sender in senders:
            sender.start()
        while not answered:
            time.sleep(0.01)
        time.sleep(after_s)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        known = set(answered)
        shutil.copyfile(image, copy)
        process.kill()
        process.wait()
        for sender in senders:
            sender.join(30)
    with mounted(copy, folder / "after") as disk:
        restarted(disk / "state")
        connection = sqlite3.connect(disk / "state" / "journal.sqlite")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        recorded = dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instance").fetchall())
        connection.close()
        assert known <= recorded.keys(), f"{len(known - recorded.keys())} of {len(known)} acknowledged instances have no record"
        for sha256 in recorded.values():
            assert digest(data_set_of(spooled_path(disk / "state", sha256))) == sha256
    return len(known)
