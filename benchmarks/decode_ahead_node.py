"""The same in a whole node, `radnode serve` with its load gate: how long after the last answer to C-STORE the volume is there.

A sender stores one study at a modality's pace, or as fast as it can; the quiet time passes, the dispatcher decides, the worker claims
the job and reads the volume. What is told is the time from the last answer to the end of that reading, without the quiet time, which
is configured. Each study goes to a node of its own, started in an empty folder; with and without decoding ahead take turns.
"""

import itertools
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from node.delivery.store_scu import StoreScu, contexts_for, read_part10
from node.delivery.upper_layer import Peer, Timeouts
from node.pipeline import Step
from tests.acceptance.harness import RunningNode, configuration, wait_for
from tests.bundles import make_bundle
from tests.peers import HOST

QUIET_S: Final = 5.0
"""A node waits 30 s by default: the less it waits, the less time there is for what a study that comes fast leaves to do."""

PACES: Final = (20.0, 50.0, 0.0)
"""Instances a second; 0 is as fast as they are taken."""

READY_WITHIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One study through one node."""

    beyond_quiet_s: float
    """From the last answer to the volume, without the quiet time."""
    prepare_s: float
    """Of that, the stage in which the worker reads the volume."""
    served: int
    """Images of the volume that was ready; 0 where none was."""
    pauses: int
    """How often the load gate closed over it."""
    sent_s: float


def measure(folder: Path, corpora: Mapping[str, Sequence[Path]], *, rounds: int) -> None:
    """Prints a table: a line for each corpus and pace, without and with decoding ahead."""
    make_bundle(folder / "models")
    print(
        f"\nfrom the last answer to C-STORE to the volume, in a whole node, beyond the quiet time of {QUIET_S:.0f} s; medians of {rounds}"
    )
    heads = ("sent inst/s", "volume s", "prepare s", "ahead", "pauses", "ratio")
    print(f"{'series':24}{'images':>7}{'':4}" + "".join(f"{head:>12}" for head in heads))
    counter = itertools.count()
    for (name, files), pace in itertools.product(corpora.items(), PACES):
        found: dict[bool, list[Run]] = {False: [], True: []}
        for _ in range(rounds):
            for is_on in (False, True):
                found[is_on].append(_one(folder, f"node{next(counter)}", files, pace, is_on=is_on))
        for is_on, runs in found.items():
            _print(f"{name}, {f'{pace:.0f}/s' if pace else 'at once'}", len(files), runs, is_on=is_on)
        print(f"{'':35}{_median(found[False]) / _median(found[True]):>72.1f}")


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(run.beyond_quiet_s for run in runs)


def _print(name: str, images: int, runs: Sequence[Run], *, is_on: bool) -> None:
    sent, prepare_s, served, pauses = (
        statistics.median(values)
        for values in zip(*((images / one.sent_s, one.prepare_s, one.served, one.pauses) for one in runs), strict=True)
    )
    print(f"{name:24}{images:7}{'on' if is_on else 'off':>4}{sent:12.0f}{_median(runs):12.2f}{prepare_s:12.2f}{served:12.0f}{pauses:12.0f}")


def _one(folder: Path, name: str, files: Sequence[Path], pace: float, *, is_on: bool) -> Run:
    node = RunningNode(folder / name)
    node.folder.mkdir(parents=True)
    text = configuration(models_dir=str(folder / "models"), model="thresholds", quiet_s=QUIET_S)
    ahead = "" if is_on else "decode_ahead_mib = 0\n"
    (node.folder / "node.toml").write_text(f'{text}\n[worker]\n{ahead}\n[log]\nformat = "json"\n', encoding="utf-8")
    node.start()
    try:
        wait_for(lambda: _first(node, "model.loaded"), READY_WITHIN_S, "the model", node.log)
        begun_s = time.time()
        _send(files, node.port, pace)
        answered_s = time.time()
        ready_s = wait_for(lambda: _step(node, Step.INFER), READY_WITHIN_S, "the volume", node.log)
        prepare_s = ready_s - (_step(node, Step.PREPARE) or 0.0)
        ahead_of_it = max((line["images"] for line in _lines(node, "ahead.volume") if line["kept"]), default=0)
        pauses = sum(1 for _ in _lines(node, "ahead.paused"))
        return Run(ready_s - answered_s - QUIET_S, prepare_s, ahead_of_it, pauses, answered_s - begun_s)
    finally:
        node.kill()
        shutil.rmtree(node.folder)


def _send(files: Sequence[Path], port: int, pace: float) -> None:
    waiting = [read_part10(path) for path in files]
    begun_s = time.monotonic()
    with StoreScu(Peer(HOST, port, "RADNODE", "ARCHIVE"), contexts_for(waiting), Timeouts(10.0, 60.0)) as scu:
        for number, file in enumerate(waiting):
            due_s = begun_s + number / pace if pace else 0.0
            time.sleep(max(0.0, due_s - time.monotonic()))
            warning = scu.store(file)
            assert not warning, warning


def _step(node: RunningNode, step: Step) -> float | None:
    """Answers when the first job entered a step, None while it has not."""
    return next((_moment(line) for line in _lines(node, "job.step") if line["step"] == step), None)


def _first(node: RunningNode, event: str) -> dict[str, Any] | None:
    return next(_lines(node, event), None)


def _lines(node: RunningNode, event: str) -> Iterator[dict[str, Any]]:
    """Yields what the node has logged of an event."""
    for line in node.log.read_text(encoding="utf-8").splitlines():
        if event in line and line.startswith("{"):
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                yield told


def _moment(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
