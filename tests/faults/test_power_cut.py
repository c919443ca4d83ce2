"""Promises P1 to P4 at the plug: whenever the power goes, what was acknowledged is there, and so is every result that has a record.

The state lies on an ext4 in a file. A node goes the whole way of a study on it, and stops before every so-many-th call that
touches the disk; there the file is copied: that is what the disk had, without what only the page cache knew. Every copy is mounted
in its turn (ext4 replays its journal), looked through, and a node is started on it, whose end must be that of a clean run.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from node.delivery.store_scu import store_files
from node.delivery.upper_layer import Timeouts
from tests.faults.anomalies import ANSWER_LIMIT_S, STOP_FILE, Life, Workshop, workshop
from tests.faults.shim import Arm, Kind, Mode, build
from tests.integration.intake_kit import peer_of

MEBIBYTES = 48
EVERY = 17
"""Calls between two cuts; a prime, so that the cuts fall on other calls in every instance."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What the disk had when the power went, and what the peers had been told by then."""

    image: Path
    acknowledged: frozenset[str]
    delivered: dict[str, set[str]]
    classes: dict[str, str]


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    done = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def is_stopped(pid: int) -> bool:
    try:
        return pid > 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


def go_and_cut(shop: Workshop, image: Path) -> tuple[Life, list[Cut]]:
    """The way of the study from its fourth image to the archive, with a copy of the disk at every stop."""
    acknowledged = {file.sop_instance_uid for file in shop.files[:3]}
    how = Arm(Kind.DISK, Mode.STOP_AT_EACH, nth=EVERY)
    shop.driver.begin(config=str(shop.node / "node.toml"), roles=["listen", "decide", "work", "deliver"], rounds=1, arm=asdict(how))
    sender = threading.Thread(target=send, args=(shop, acknowledged), daemon=True)
    sender.start()
    cuts: list[Cut] = []
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while not shop.driver.has_ended(0.002) and time.monotonic() < deadline:
        pid = shop.driver.child()
        if is_stopped(pid):
            time.sleep(0.01)  # an answer that is on its way arrives
            known = frozenset(acknowledged)
            copy = image.with_name(f"cut{len(cuts)}")
            shutil.copyfile(image, copy)
            cuts.append(Cut(copy, known, {k: set(v) for k, v in shop.archive.received.items()}, dict(shop.archive.classes)))
            os.kill(pid, signal.SIGCONT)
    sender.join(10)
    return shop.driver.end(), cuts


def send(shop: Workshop, acknowledged: set[str]) -> None:
    port_file = shop.state / "run" / "listener.port"
    deadline = time.monotonic() + ANSWER_LIMIT_S
    while not port_file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for outcome in store_files(peer_of(int(port_file.read_text()), calling="ARCHIVE"), shop.files[3:], Timeouts(10.0, 30.0)):
        assert outcome.error is None, outcome.error
        acknowledged.add(outcome.sop_instance_uid)
    (shop.node / STOP_FILE).touch()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4")
def test_a_power_cut_at_any_moment_loses_no_image_and_no_result(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as stream:
        stream.truncate(MEBIBYTES << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with workshop(tmp_path, build(tmp_path)) as shop:
        shop.restore("half")
        (shop.node / STOP_FILE).unlink()
        had = shop.state.rename(tmp_path / "had")
        shop.state.mkdir()
        with mounted(image, shop.state):
            shutil.copytree(had, shop.state, dirs_exist_ok=True)
            (shop.state / "run" / "listener.port").unlink()
            os.sync()
            life, cuts = go_and_cut(shop, image)
            assert life.ended_well, life.error
            shop.check_promises()
        stages = [check_cut(shop, cut) for cut in cuts]
    print(f"{len(cuts)} cuts, with so many instances acknowledged, results recorded, results delivered: {stages}")
    assert len(cuts) >= 8
    assert stages[0][0] < len(shop.files), "no cut during the intake"
    assert any(recorded > delivered for _, recorded, delivered in stages), "no cut between result and delivery"
    assert stages[-1][2], "no cut during the delivery"


def check_cut(shop: Workshop, cut: Cut) -> tuple[int, int, int]:
    """Mounts what a cut left and recovers from it; answers how far the node had come."""
    with mounted(cut.image, shop.state):
        shop.archive.received, shop.archive.classes = cut.delivered, cut.classes
        come = (len(cut.acknowledged), shop.results(), len(cut.delivered))
        shop.check_kept(set(cut.acknowledged))
        shop.recover(set(cut.acknowledged))
        shop.check_promises()
    cut.image.unlink()
    return come
