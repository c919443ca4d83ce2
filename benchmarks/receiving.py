"""How fast a CT study is received and kept: radnode beside DCMTK's storescp and Orthanc, fed by the same storescu, interleaved.

What they promise differs and is printed: radnode has the bytes and the journal row on the disk before it answers success, or,
with `durability = "process-crash"`, in the kernel; Orthanc flushes files but not its index; storescp flushes nothing.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measuring import Cost, Meter
from tests.acceptance.harness import pid_listening, running_node
from tests.bundles import make_bundle
from tests.factories import make_ct_series
from tests.peers import orthanc, storescp, storescu, tool

PROMISES = {
    "radnode": "bytes and journal on disk before success",
    "radnode pc": "durability process-crash: bytes and journal in the kernel before success",
    "orthanc": "bytes flushed, index not",
    "storescp": "nothing flushed",
}


def measure(folder: Path, *, slices: int, rounds: int) -> None:
    """Prints a table: MB/s, instances/s, CPU s/GB, peak MiB, ratio to storescp; medians of the rounds."""
    tool("storescu")
    print(f"making {slices} CT slices of 512x512", file=sys.stderr)
    studies = [
        make_ct_series(
            folder / f"study{n}", slices=slices, rows=512, columns=512, spacing_mm=(1.0, 0.7, 0.7), study=f"s{n}", series=f"r{n}"
        )
        for n in range(rounds)
    ]
    megabytes = sum(path.stat().st_size for path in studies[0].paths) / 1e6
    costs: dict[str, list[Cost]] = {name: [] for name in PROMISES}
    with ExitStack() as stack:
        receivers = {name: stack.enter_context(receiver) for name, receiver in _receivers(folder).items()}
        for number, study in enumerate(studies, 1):
            for name, (port, pid, called) in receivers.items():
                print(f"round {number} of {rounds}: {name}", file=sys.stderr)
                meter = Meter(pid)
                sent = storescu(port, [study.folder], called=called, calling="ARCHIVE")
                assert sent.returncode == 0, sent.stderr[-2000:]
                costs[name].append(meter.read())
                time.sleep(0.5)
    base = statistics.median(cost.wall_s for cost in costs["storescp"])
    print(f"\nreceiving {slices} CT slices, {megabytes:.0f} MB, one association, sender storescu with TCP_NODELAY; medians of {rounds}")
    print(f"{'receiver':12}{'MB/s':>8}{'inst/s':>8}{'CPU s/GB':>10}{'peak MiB':>10}{'x storescp':>12}  promise")
    for name, found in costs.items():
        wall_s = statistics.median(cost.wall_s for cost in found)
        cpu_s = statistics.median(cost.cpu_s for cost in found)
        peak = max(cost.peak_rss_mib for cost in found)
        print(
            f"{name:12}{megabytes / wall_s:8.0f}{slices / wall_s:8.0f}{cpu_s / megabytes * 1000:10.1f}{peak:10.0f}{base / wall_s:12.2f}  {PROMISES[name]}"
        )


def _receivers(folder: Path) -> dict[str, "contextmanager[tuple[int, int, str]]"]:  # type: ignore[valid-type]
    return {
        "storescp": _storescp(folder / "storescp"),
        "orthanc": _orthanc(folder / "orthanc"),
        "radnode": _radnode(folder / "radnode"),
        "radnode pc": _radnode(folder / "radnode-pc", durability="process-crash"),
    }


@contextmanager
def _storescp(folder: Path) -> Iterator[tuple[int, int, str]]:
    with storescp(folder, "+B", "-pdu", "131072") as port:
        yield port, pid_listening(port), "STORESCP"


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[int, int, str]]:
    with orthanc(folder) as peer:
        yield peer.dicom_port, pid_listening(peer.dicom_port), peer.ae_title


@contextmanager
def _radnode(folder: Path, **settings: object) -> Iterator[tuple[int, int, str]]:
    make_bundle(folder / "models")
    with running_node(folder, models_dir=folder / "models", model="thresholds", quiet_s=500.0, **settings) as node:
        yield node.port, node.child_pid("listener"), "RADNODE"
