"""How long a study that is complete waits for its volume, with and without decoding ahead: interleaved, medians.

All images but the last have arrived and whatever is made ready is ready; then comes the last one, and the quiet time. What follows is
measured: the dispatcher's decision, and the reading of the volume, in the functions that the node runs. That is the best case; then
comes a whole node under way (`benchmarks.decode_ahead_node`).
"""

import itertools
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from benchmarks import decode_ahead_node
from node import dispatcher
from node.ahead.work import Ahead
from node.config import Config, LogSection
from node.dispatcher import Dispatcher, Rules
from node.domain.completeness import CompletenessPolicy
from node.domain.volume import Volume
from node.journal import ReceivedJournal, open_database
from node.log import configure_logging
from node.modelstore import load_cards
from node.study_images import read_study_images
from tests.factories import SyntheticSeries, make_ct_series
from tests.integration.ahead_kit import ASSOCIATION, IDLE, arrive, make_ahead, make_node

QUIET_S = 6.0
READY_WITHIN_S = 180.0
IN_A_NODE = ("native", "JPEG 2000")
CORPORA = {
    "native": (500, ExplicitVRLittleEndian, 0.0),
    "native, tilted gantry": (200, ExplicitVRLittleEndian, 15.0),
    "JPEG-LS": (200, JPEGLSLossless, 0.0),
    "JPEG 2000": (200, JPEG2000Lossless, 0.0),
}


def measure(folder: Path, *, rounds: int = 5, side: int = 512, share: float = 1.0) -> None:
    """Prints a table: seconds of the decision and of the reading, without and with, and the ratio of their sums."""
    print(f"\nfrom the end of the quiet time to the volume, {side}x{side} CT; medians of {rounds}, interleaved")
    print(f"{'series':24}{'slices':>7}{'':4}{'decision s':>11}{'volume s':>10}{'sum s':>8}{'ahead':>7}{'ratio':>8}")
    counter = itertools.count()
    configure_logging(LogSection(level="error"))
    kept: dict[str, Sequence[Path]] = {}
    for name, (slices, syntax, tilt_deg) in CORPORA.items():
        series = make_ct_series(
            folder / name, slices=max(2, round(slices * share)), rows=side, columns=side, spacing_mm=(1.0, 0.7, 0.7),
            transfer_syntax=syntax, gantry_tilt_deg=tilt_deg, edit=_add_noise,
        )  # fmt: skip
        kept[name] = series.paths
        found: dict[bool, list[tuple[float, float, int]]] = {False: [], True: []}
        for _ in range(rounds):
            volumes = {}
            for is_on in (False, True):
                decision_s, volume_s, served, volumes[is_on] = _one(folder / f"node{next(counter)}", series, is_on=is_on)
                found[is_on].append((decision_s, volume_s, served))
            assert np.array_equal(volumes[False].voxels, volumes[True].voxels)
        sums = {is_on: statistics.median(one[0] + one[1] for one in costs) for is_on, costs in found.items()}
        for is_on, costs in found.items():
            decision_s, volume_s, ready = (statistics.median(one[place] for one in costs) for place in range(3))
            ratio = f"{sums[False] / sums[True]:8.1f}" if is_on else ""
            print(
                f"{name:24}{len(series.paths):7}{'on' if is_on else 'off':>4}{decision_s:11.3f}{volume_s:10.3f}{sums[is_on]:8.3f}{ready:7.0f}{ratio}"
            )
    decode_ahead_node.measure(folder / "node", {name: kept[name] for name in IN_A_NODE}, rounds=rounds)


def _add_noise(dataset: Dataset, index: int) -> None:
    """As a scanner has it: without, compressed images would be far too small and quick."""
    pixels = np.frombuffer(dataset.PixelData, np.int16)
    noise = np.random.default_rng(index).normal(0.0, 12.0, pixels.shape)
    dataset.PixelData = (pixels + noise).astype(np.int16).tobytes()


def _one(folder: Path, series: SyntheticSeries, *, is_on: bool) -> tuple[float, float, int, Volume]:
    """One study through one node: seconds of the decision, seconds of the volume, images that were ready, the volume."""
    config = make_node(folder)
    ahead = make_ahead(config, lambda: IDLE, **({} if is_on else {"decode_ahead_mib": 0}))
    dispatcher.READ_AHEAD_S = 0.15 if is_on else 0.0
    try:
        with closing(open_database(config.node.state_dir)) as connection:
            rules = Rules(
                tuple(route.as_route() for route in config.routes), load_cards(config.node.models_dir), CompletenessPolicy(0.0, 600.0)
            )
            deciding = Dispatcher(connection, config.node.state_dir, rules)
            kept = arrive(config, *series.paths[:-1])
            if is_on:
                _work(ahead, deciding, lambda: ahead.prepared.has_volume(frozenset(path.stem for path in kept)), READY_WITHIN_S)
            kept += arrive(config, series.paths[-1])
            if is_on:
                _work(ahead, deciding, lambda: False, QUIET_S)
            ReceivedJournal(connection).close_association(ASSOCIATION)
            began_s = time.perf_counter()
            deciding.tick(time.time())
            decided_s = time.perf_counter()
            volume = _volume(config, kept, ahead)
            return decided_s - began_s, time.perf_counter() - decided_s, ahead.prepared.served, volume
    finally:
        ahead.close()
        shutil.rmtree(folder)


def _volume(config: Config, kept: list[Path], ahead: Ahead) -> Volume:
    ahead.prepared.served = 0
    (card,) = load_cards(config.node.models_dir).values()
    (volume,) = read_study_images(kept, card, ahead.prepared)
    return volume


def _work(ahead: Ahead, deciding: Dispatcher, is_enough: Callable[[], bool], within_s: float) -> None:
    """Lets worker and dispatcher do what they do while they wait."""
    until_s = time.monotonic() + within_s
    while not is_enough() and time.monotonic() < until_s:
        deciding.tick(time.time())
        ahead.work(0.3, threading.Event())
