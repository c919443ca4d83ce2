"""How fast a study is sent: radnode beside DCMTK's storescu and pynetdicom's send_c_store, to a sink that answers at once.

Senders take turns (A B C A B C …), each in a process of its own; the sink (`benchmarks.sink`) is another. "MB/s" is from the first
byte of the association to its last, as the sink sees it, the same for all; "command" is the whole process, with its start, imports,
and the reading of the folder. "x storescu" compares the former, "command x" the latter, round by round. CPU seconds are the sender's
alone: of those in Python from the reading of the folder to the release, of storescu of the whole command without what it takes to
send one small object ("start"). "lost" are the rounds in which a sender gave up: pynetdicom waits for ever, or for its timeout, for a
response that another thread of its own has taken.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from pydicom.uid import SegmentationStorage

from benchmarks.blast import read_part10
from benchmarks.corpora import Corpus, make_corpus
from tests.peers import HOST, tool

RESULTS: Final = Path(__file__).resolve().parent / "results" / "sending.json"
PDU_BYTES: Final = (131072, 16384)
SENDERS: Final = ("radnode", "radnode window", "radnode send", "storescu", "storescu nagle", "pynetdicom")
BASE: Final = "storescu"
"""With TCP_NODELAY: what the others are compared with, round by round."""
WINDOW: Final = 16
STARTS: Final = 5
LOST: Final = 3
"""Exit status of a sender that waited in vain for a response which the sink had sent."""
TIMEOUT_S: Final = 300
SEG_BYTES: Final = 5_000_000


class ResponseLost(Exception):
    """A sender gave up over a response that it did not see."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a sender took."""

    association_s: float
    command_s: float
    sending_cpu_s: float | None
    """From the reading of the folder to the release, where the process can tell that from its start."""
    command_cpu_s: float
    peak_mib: float
    digests: Mapping[str, str]


class PeakWatch:
    """Reads the peak of a process's memory every now and then: that of `wait4` would be the peak of whoever started it."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._peak_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            with suppress(OSError):  # it has ended
                for line in self._status.read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self._peak_mib = int(line.split()[1]) / 1024

    def end(self) -> float:
        """Answers the peak in MiB."""
        self._ended.set()
        self._thread.join()
        return self._peak_mib


class Sink:
    """A running sink."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lines = process.stdout
        self.port = int(self._lines.readline())

    def told(self) -> dict[str, Any]:
        """Answers what came over the association that has just been released."""
        told: dict[str, Any] = json.loads(self._lines.readline())
        return told


@contextmanager
def sink(max_pdu_bytes: int, window: int, *options: str) -> Iterator[Sink]:
    """Runs a sink while the block runs."""
    command = [sys.executable, "-m", "benchmarks.sink", str(max_pdu_bytes), str(window), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Sink(process)
        finally:
            process.kill()


def measure(folder: Path, *, rounds: int, scale: float = 1.0, results: Path | None = None) -> None:
    """Prints a table for each corpus and length of a PDU, medians of the rounds; `results` keeps them."""
    tool("storescu")
    folder.mkdir(parents=True, exist_ok=True)
    _use_compiled_modules(folder / "compiled")
    study = make_corpus("ct500", folder / "ct500", scale=scale)
    part = make_corpus("ct100", folder / "ct100", scale=scale)
    seg = _make_seg(folder / "seg")
    tiny = folder / "tiny"
    tiny.mkdir()
    first = min(study.folder.iterdir()).read_bytes()
    (tiny / "one.dcm").write_bytes(first[: first.rindex(b"\xe0\x7f\x10\x00")])
    kept: dict[str, Any] = {}
    for max_pdu_bytes in PDU_BYTES:
        with ExitStack() as stack:
            sinks = {window: stack.enter_context(sink(max_pdu_bytes, window)) for window in (1, WINDOW)}
            verifying = {window: stack.enter_context(sink(max_pdu_bytes, window, "--digests")) for window in (1, WINDOW)}
            start_cpu_s = {name: statistics.median(_send(name, sinks, tiny).command_cpu_s for _ in range(STARTS)) for name in SENDERS}
            for title, corpus in _titled(study, part, seg):
                for name in SENDERS:
                    with suppress(ResponseLost):
                        assert _send(name, verifying, corpus.folder).digests == corpus.digests, f"{name} changed bytes"
                print(f"{title}, PDUs of {max_pdu_bytes}: all {len(SENDERS)} senders, byte for byte", file=sys.stderr)
                found: list[dict[str, Run]] = []
                for number in range(rounds):
                    print(f"round {number + 1} of {rounds}", file=sys.stderr)
                    found.append({})
                    for name in SENDERS:
                        with suppress(ResponseLost):
                            found[-1][name] = _send(name, sinks, corpus.folder)
                row = {name: _figures(name, found, corpus, start_cpu_s[name]) for name in SENDERS if any(name in one for one in found)}
                _print(f"{title}, {corpus.megabytes:.0f} MB, PDUs of {max_pdu_bytes} bytes; medians of {rounds}", row)
                kept[f"{title} {max_pdu_bytes}"] = row
    if results is not None:
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps({"rounds": rounds, "trials": kept}, indent=1) + "\n", encoding="utf-8")


def _use_compiled_modules(folder: Path) -> None:
    """Makes Python keep what it compiles, as an installed program has it, also where the environment says that it must not."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def _titled(study: Corpus, part: Corpus, seg: Corpus) -> tuple[tuple[str, Corpus], ...]:
    return (f"{len(study.digests)} CT slices", study), (f"{len(part.digests)} CT slices", part), ("one SEG", seg)


def _figures(name: str, rounds: Sequence[Mapping[str, Run]], corpus: Corpus, start_cpu_s: float) -> dict[str, float]:
    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    runs = [one[name] for one in rounds if name in one]
    sending = [one.command_cpu_s - start_cpu_s if one.sending_cpu_s is None else one.sending_cpu_s for one in runs]
    return {
        "association_ms": median(one.association_s * 1000 for one in runs),
        "x_storescu": median(one[BASE].association_s / one[name].association_s for one in rounds if name in one),
        "mb_per_s": median(corpus.megabytes / one.association_s for one in runs),
        "command_ms": median(one.command_s * 1000 for one in runs),
        "command_x_storescu": median(one[BASE].command_s / one[name].command_s for one in rounds if name in one),
        "command_mb_per_s": median(corpus.megabytes / one.command_s for one in runs),
        "cpu_s_per_gb": statistics.median(sending) / corpus.megabytes * 1000,
        "command_cpu_s_per_gb": median(one.command_cpu_s for one in runs) / corpus.megabytes * 1000,
        "start_cpu_ms": start_cpu_s * 1000,
        "peak_mib": max(one.peak_mib for one in runs),
        "lost": len(rounds) - len(runs),
    }


def _print(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    print(f"\nsending {title}")
    heads = ("ms", "MB/s", "x storescu", "CPU s/GB", "command ms", "command x", "command CPU s/GB", "start CPU ms", "peak MiB", "lost")
    print(f"{'sender':16}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for name, row in rows.items():
        values = (
            f"{row['association_ms']:.0f}",
            f"{row['mb_per_s']:.0f}",
            f"{row['x_storescu']:.2f}",
            f"{row['cpu_s_per_gb']:.2f}" if name != "radnode send" else "-",
            f"{row['command_ms']:.0f}",
            f"{row['command_x_storescu']:.2f}",
            f"{row['command_cpu_s_per_gb']:.2f}",
            f"{row['start_cpu_ms']:.0f}",
            f"{row['peak_mib']:.0f}",
            f"{row['lost']:.0f}",
        )
        print(f"{name:16}" + "".join(f"{value:>{len(head) + 3}}" for head, value in zip(heads, values, strict=True)))


def _send(name: str, sinks: Mapping[int, Sink], folder: Path) -> Run:
    """Runs a sender once; answers what it took."""
    to = sinks[WINDOW if name == "radnode window" else 1]
    command, environment = _command(name, to.port, folder)
    begun_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout
        assert process.stderr
        watch = PeakWatch(process.pid)
        said, complaint = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak_mib = watch.end()
    command_s = time.perf_counter() - begun_s
    if name == "pynetdicom" and process.returncode == LOST:
        raise ResponseLost
    assert process.returncode == 0, f"{name}: {said[-1000:]} {complaint[-1000:]}"
    told = to.told()
    return Run(
        told["seconds"],
        command_s,
        json.loads(said.splitlines()[-1])["cpu_s"] if command[:3] == _THIS else None,
        used.ru_utime + used.ru_stime,
        peak_mib,
        told["digests"],
    )


_THIS: Final = [sys.executable, "-m", "benchmarks.sending"]


def _command(name: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    if name.startswith("storescu"):
        nagle = name == "storescu nagle"
        command = [tool("storescu"), "-R", "--max-send-pdu", "131072", HOST, str(port), "+sd", str(folder)]
        return command, {} if nagle else {"TCP_NODELAY": "1"}
    if name == "radnode send":
        return [sys.executable, "-m", "node", "send", f"{HOST}:{port}", str(folder)], {}
    return [*_THIS, "pynetdicom" if name == "pynetdicom" else "radnode", str(port), str(folder)], {}


def _make_seg(folder: Path) -> Corpus:
    """Answers a BINARY segmentation of five megabytes: what it shows plays no part."""
    template = make_corpus("ct500", folder / "template", scale=0.002)
    image = pydicom.dcmread(next(template.folder.iterdir()))
    shutil.rmtree(template.folder)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    image.BitsAllocated = image.BitsStored = 1
    image.HighBit = 0
    image.PixelData = np.random.default_rng(5).bytes(SEG_BYTES)
    image["PixelData"].VR = "OB"
    image.save_as(folder / "seg.dcm")
    data_set = read_part10(memoryview((folder / "seg.dcm").read_bytes())).data_set
    digest = hashlib.sha256(data_set).hexdigest()
    return Corpus(folder, {str(image.SOPInstanceUID): digest}, len(data_set) / 1e6)


def send_ours(port: int, folder: Path) -> float:
    """Sends a folder as `radnode send` does; answers the CPU seconds."""
    from node.delivery.sender import send_paths
    from node.delivery.upper_layer import Peer

    cpu_s = time.process_time()
    summary = send_paths(Peer(HOST, port, "SINK", "RADNODE"), [folder])
    assert not summary.failed, summary.failed[:1]
    return time.process_time() - cpu_s


def send_by_pynetdicom(port: int, folder: Path) -> float:
    """Sends a folder by `Association.send_c_store(path)`; answers the CPU seconds."""
    from pydicom import dcmread
    from pynetdicom import AE, _config

    _config.LOG_HANDLER_LEVEL = "none"
    cpu_s = time.process_time()
    paths = sorted(folder.iterdir())
    first = dcmread(paths[0], stop_before_pixels=True)
    entity = AE("PYNETDICOM")
    entity.dimse_timeout = 5
    entity.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
    association = entity.associate(HOST, port, ae_title="SINK")
    assert association.is_established
    for path in paths:
        if "Status" not in association.send_c_store(path):
            sys.exit(LOST)
    association.release()
    return time.process_time() - cpu_s


if __name__ == "__main__":
    send = {"radnode": send_ours, "pynetdicom": send_by_pynetdicom}[sys.argv[1]]
    print(json.dumps({"cpu_s": send(int(sys.argv[2]), Path(sys.argv[3]))}))
