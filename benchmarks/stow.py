"""How fast a CT study is received over the web: radnode's STOW-RS beside Orthanc's, fed by the same sender, interleaved.

`python -m benchmarks.stow --rounds 5`. The sender stays out of the way: every request is built before the clock starts, one connection,
50 slices of 512x512 a request. Each receiver is started afresh for each round, in memory (tmpfs) and, where it promises something
that only a disk can keep, on the disk. What arrived is compared with what was sent, data set by data set.
"""

import argparse
import hashlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.blast import read_part10
from benchmarks.corpora import Corpus, make_corpus
from benchmarks.measuring import Cost, Meter
from tests.acceptance.harness import pid_listening
from tests.peers import HOST, orthanc, wait_until

BATCH: Final = 50
BOUNDARY: Final = b"3f0c6a52-4f0e-4c58-9d1f-1b6a9a7c22d4"
"""As long as those of dicomweb-client, which are UUIDs too."""

SETTLE_S: Final = 3.0
PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
CONFIG: Final = """
[node]
ae_title = "RADNODE"
state_dir = "state"
models_dir = "models"
[listener]
host = "127.0.0.1"
port = 0
refuse_below_free_gib = 0.0
durability = "{durability}"
[stow]
host = "127.0.0.1"
port = 0
[log]
level = "warning"
"""


@dataclass(frozen=True, slots=True)
class Receiver:
    """A receiver that is measured; `open` starts it in a folder and gives port and process."""

    name: str
    promise: str
    open: Callable[[Path], AbstractContextManager[tuple[int, int]]]
    on_disk: bool


@contextmanager
def _radnode(folder: Path, *, durability: str) -> Iterator[tuple[int, int]]:
    (folder / "models").mkdir(parents=True)
    config = folder / "node.toml"
    config.write_text(CONFIG.format(durability=durability), encoding="utf-8")
    ready, port_file = folder / "state" / "run" / "listener.port", folder / "state" / "run" / "stow.port"
    command = [sys.executable, "-m", "node.child", str(os.getpid()), str(config), str(config), "listener"]
    with (folder / "log").open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, "the listener of radnode")
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            yield int(port_file.read_text()), process.pid
        finally:
            process.kill()


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[int, int]]:
    settings: dict[str, Any] = {
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "KeepAlive": True,
        "SaveJobs": False,
    }
    with orthanc(folder, **settings) as peer:
        yield peer.http_port, pid_listening(peer.http_port)


RECEIVERS: Final = (
    Receiver("orthanc", "in memory; SQLite index", _orthanc, on_disk=False),
    Receiver("radnode pc", "kill -9 loses nothing that was answered", partial(_radnode, durability="process-crash"), on_disk=False),
    Receiver("orthanc disk", "files flushed, SQLite index not", _orthanc, on_disk=True),
    Receiver("radnode pl", "a power cut loses nothing that was answered", partial(_radnode, durability="power-loss"), on_disk=True),
)
BASES: Final = {"radnode pc": "orthanc", "radnode pl": "orthanc disk", "orthanc": "orthanc", "orthanc disk": "orthanc disk"}
"""With which other the rate of a receiver is compared."""


def measure(folder: Path, *, rounds: int = 5, corpus: str = "ct500", receivers: Sequence[str] = (), quiet_s: float = 10.0) -> None:
    """Prints a table: MB/s, CPU s/GB, peak MiB, ratio to Orthanc's; medians of the rounds."""
    if not PLUGIN.exists():
        print(f"{PLUGIN} is not installed (Debian: orthanc-dicomweb): nothing to compare with", file=sys.stderr)
        return
    sent = make_corpus(corpus, folder / "corpus")
    requests = _requests(sent.folder)
    warm_up = _requests(make_corpus("warm-up", folder / "warm-up").folder)[0]
    chosen = [one for one in RECEIVERS if not receivers or one.name in receivers]
    costs: dict[str, list[Cost]] = {one.name: [] for one in chosen}
    for number in range(1, rounds + 1):
        for receiver in chosen:
            print(f"round {number} of {rounds}: {receiver.name}", file=sys.stderr)
            _wait_for_quiet(quiet_s)
            costs[receiver.name].append(_measure_one(receiver, folder, sent, (warm_up, requests)))
    print(f"\nSTOW-RS, {len(sent.digests)} instances, {sent.megabytes:.0f} MB, {BATCH} a request, one connection; medians of {rounds}")
    print(f"{'receiver':14}{'MB/s':>8}{'min':>7}{'max':>7}{'CPU s/GB':>10}{'peak MiB':>10}{'x Orthanc':>11}  promise")
    for receiver in chosen:
        found = costs[receiver.name]
        rates = [sent.megabytes / cost.wall_s for cost in found]
        cpu_s = statistics.median(cost.cpu_s for cost in found) / sent.megabytes * 1000
        pairs = [base.wall_s / cost.wall_s for base, cost in zip(costs.get(BASES[receiver.name], ()), found, strict=False)]
        print(
            f"{receiver.name:14}{statistics.median(rates):8.0f}{min(rates):7.0f}{max(rates):7.0f}{cpu_s:10.2f}"
            f"{max(cost.peak_rss_mib for cost in found):10.0f}{statistics.median(pairs) if pairs else 0:11.2f}  {receiver.promise}"
        )


def _measure_one(receiver: Receiver, folder: Path, sent: Corpus, requests: tuple[bytes, list[bytes]]) -> Cost:
    place = Path(tempfile.mkdtemp(prefix="radnode-stow-", dir=folder if receiver.on_disk else MEMORY))
    warm_up, timed = requests
    try:
        os.sync()  # what an earlier one has left to write is not this one's
        with receiver.open(place / "receiver") as (port, pid):
            _post(port, [warm_up])
            meter = Meter(pid)
            _post(port, timed)
            answered = meter.read()
            wanted = set(sent.digests.values())
            wait_until(lambda: wanted <= _digests(place), "every data set, as it was sent")
            time.sleep(SETTLE_S)
            settled = meter.read()  # what is done behind the answer costs too
        return Cost(answered.wall_s, settled.cpu_s, settled.peak_rss_mib, settled.peak_own_mib)
    finally:
        shutil.rmtree(place)


def _requests(folder: Path) -> list[bytes]:
    """Answers the files of a folder as whole HTTP requests."""
    paths = sorted(folder.iterdir())
    return [_request([path.read_bytes() for path in paths[place : place + BATCH]]) for place in range(0, len(paths), BATCH)]


def _request(files: Sequence[bytes]) -> bytes:
    parts = [b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (BOUNDARY, content) for content in files]
    body = b"".join([*parts, b"--%s--\r\n" % BOUNDARY])
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: {HOST}\r\nAccept: application/dicom+json\r\nContent-Length: {len(body)}\r\n"
        f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY.decode()}\r\n\r\n'
    )
    return head.encode() + body


def _post(port: int, requests: Sequence[bytes]) -> None:
    """Sends requests one after the other over one connection; each must be answered with every instance stored."""
    with socket.create_connection((HOST, port), 300) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = answer.read()
            assert answer.status == 200, (answer.status, body[:2000])
            assert len(json.loads(body)["00081199"]["Value"]) == request.count(b"--%s\r\n" % BOUNDARY), body[:2000]


def _digests(folder: Path) -> set[str]:
    """Answers the digest of the data set of every Part 10 file below a folder."""
    found = set()
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if content[128:132] == b"DICM":
            found.add(hashlib.sha256(read_part10(memoryview(content)).data_set).hexdigest())
    return found


def _wait_for_quiet(limit_s: float) -> None:
    """Waits until others leave nine tenths of the machine alone, or for so long."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        before = _idle_and_all()
        time.sleep(0.3)
        idle, everything = (after - first for after, first in zip(_idle_and_all(), before, strict=True))
        if idle > 0.9 * everything:
            return


def _idle_and_all() -> tuple[int, int]:
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def main() -> int:
    """Measures; answers 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stow", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, of which the median is printed (default 5)")
    parser.add_argument("--corpus", default="ct500", help="what is sent: ct500, ct100, ct2000, small5000 (default ct500)")
    parser.add_argument("--receivers", nargs="+", default=[], help=f"some of {', '.join(one.name for one in RECEIVERS)}")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds to wait at most for an idle machine (default 10)")
    parser.add_argument("--disk", help="a folder on the disk to measure on, where the system's temporary folder is none")
    arguments = parser.parse_args()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="radnode-bench-", dir=arguments.disk) as folder:
        measure(Path(folder), rounds=arguments.rounds, corpus=arguments.corpus, receivers=arguments.receivers, quiet_s=arguments.quiet)
    print(f"{time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
