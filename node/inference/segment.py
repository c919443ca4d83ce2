"""One run of a segmentation: preprocessing, network, the way back to the source grid, labels.

The scores of a part of the image are decided as soon as the last window over it was seen, and brought to the source before that where
the bundle wants it so: the scores of the whole image are never held. What the inferer is decides how: MONAI's sliding window is done
here (`sliding_window.py`), any other runs as it is and its output goes the same way, part by part.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from node.domain.findings import Findings
from node.domain.volume import LabelMap, Volume
from node.errors import BundleInvalid, DeviceOutOfMemory
from node.inference.engines import Engine
from node.inference.parallel import map_on_all_cores
from node.inference.preprocess import Prepared, prepare
from node.inference.recipe import Recipe
from node.inference.restore import WayBack, bring_probability, can_win, contest, winners
from node.inference.sliding_window import Batches, Block, DifferentSize, Stitcher, blocks_of, stitch, understands, windows_of
from node.inference.tail import LARGEST_VALUE, ChannelSets, Decided, Tail, decide


def segment(images: Sequence[Volume], recipe: Recipe, engine: Engine, progress: Callable[[float], None] = lambda _: None) -> Findings:
    """Answers what the network outlines on the grid of the first of `images`.

    Raises DeviceOutOfMemory when not even one window at a time fits; its text says what was tried.
    """
    progress(0.0)
    tail, source = recipe.tail, images[0].source
    watch = _Watch()
    with torch.inference_mode():
        prepared = prepare(images, recipe.preprocessing, recipe.image_key)
        watch.lap("preprocess")
        way = WayBack(prepared, source)
        result: _Result = _OnGrid(prepared, tail) if tail.decides_first else _OnSource(way, prepared, tail)
        batches = Batches(max(engine.preferred_batch, int(getattr(recipe.inferer, "sw_batch_size", 1))))
        with _told_as_ours(batches):
            _run(prepared.image, recipe, engine, result, batches, progress)
        watch.lap("stitch")
        decided = result.decided()
        if tail.decides_first:
            decided = tail.finish_on_grid(decided)
            decided = replace(decided, values=way.bring_labels(decided.values))
        labels, members = tail.finish_on_source(decided)
        watch.lap("restore")
    progress(1.0)
    probability = None
    if result.probability is not None:
        probability = partial(bring_probability, way, result.probability, lambda scores: tail.finish_scores(scores[None])[0])
    return Findings(
        LabelMap(labels, source, members),
        probability=probability,
        stages=watch.told(network_s=batches.network_s, restore_s=result.restore_s),
        provenance_notes=(*tail.notes, *batches.notes),
    )


def _run(
    image: torch.Tensor, recipe: Recipe, engine: Engine, result: "_Result", batches: Batches, progress: Callable[[float], None]
) -> None:
    if understands(recipe.inferer):
        windows = windows_of(recipe.inferer, image.shape[1:])  # type: ignore[arg-type]
        stitcher = Stitcher(windows, result, skirt=result.skirt, averaged=result.is_averaged)
        stitcher.progress = progress
        try:
            stitch(image, recipe.inferer, engine.infer, stitcher, batches)  # type: ignore[arg-type]
        except DifferentSize:
            pass
        else:
            return
    began = time.perf_counter()
    output = torch.as_tensor(recipe.inferer(image[None], engine.infer))[0].float()
    batches.network_s += time.perf_counter() - began
    map_on_all_cores(result, blocks_of(output, result.skirt))


class _Result:
    """Takes finished blocks of scores and makes labels of them. Called from several threads, for different parts of the image."""

    skirt = 0
    """How many voxels below its own a block must hold."""

    def __init__(self, shape: Sequence[int], tail: Tail) -> None:
        self.probability: torch.Tensor | None = None
        """The scores of the one structure on the network's grid, where they are wanted later."""
        self._labels = np.zeros(tuple(shape), dtype=np.uint8)
        self._tail = tail
        self._sets = ChannelSets()
        self._kind: Decided | None = None
        self._seconds: list[float] = []

    @property
    def restore_s(self) -> float:
        """Answers how long the threads took, on the average."""
        return sum(self._seconds) / torch.get_num_threads()

    @property
    def is_averaged(self) -> bool:
        """Answers whether the scores themselves count, and not only which is the highest."""
        return True

    def __call__(self, block: Block) -> None:
        channels = len(block.values)
        if self._tail.decision.threshold is None and channels > LARGEST_VALUE + 1:
            raise BundleInvalid(f"the network tells {channels} classes apart: radnode keeps label values up to {LARGEST_VALUE}")
        if self._kind is None:
            self._kind = decide(block.values[:, :1, :1, :1], self._tail.decision, ChannelSets())
        scores = self._tail.score(block.values.clone()) if self._tail.scores_first else block.values
        self._take(block, scores)

    def decided(self) -> Decided:
        """Answers all labels. Sets of channels are numbered in their own order, whichever thread has met them first."""
        assert self._kind is not None  # noqa: S101 - there is no image without a voxel
        if self._tail.decision.threshold is None or not self._kind.members:
            return replace(self._kind, values=self._labels)
        members = self._sets.members
        order = sorted(range(len(members)), key=lambda number: members[number])
        table = np.zeros(LARGEST_VALUE + 1, dtype=np.uint8)
        table[order] = np.arange(len(members))
        return replace(self._kind, values=table[self._labels], members=tuple(members[number] for number in order))

    def _take(self, block: Block, scores: torch.Tensor) -> None:
        raise NotImplementedError


class _OnGrid(_Result):
    """Labels on the network's grid."""

    def __init__(self, prepared: Prepared, tail: Tail) -> None:
        super().__init__(prepared.image.shape[1:], tail)

    @property
    def is_averaged(self) -> bool:
        return bool(self._tail.scores_first) or self._tail.decision.threshold is not None

    def _take(self, block: Block, scores: torch.Tensor) -> None:
        decision = self._tail.decision
        values = winners(scores).numpy() if decision.threshold is None else decide(scores, decision, self._sets).values
        self._labels[tuple(slice(*along) for along in block.owned)] = values


class _OnSource(_Result):
    """Labels on the source grid, of scores that are interpolated there."""

    skirt = 1

    def __init__(self, way: WayBack, prepared: Prepared, tail: Tail) -> None:
        super().__init__(way.source.shape, tail)
        self._way = way
        self._size = tuple(prepared.image.shape[1:])
        self._lock = threading.Lock()

    def _take(self, block: Block, scores: torch.Tensor) -> None:
        began = time.perf_counter()
        self._keep_probability(block, scores)
        decision = self._tail.decision
        is_contest = decision.threshold is None and not self._tail.scores_last
        candidates = can_win(scores) if is_contest else []
        if candidates != [0]:
            for patch in self._way.patches(block):
                if is_contest:
                    values = contest(scores, patch, candidates).numpy()
                else:
                    sampled = self._tail.finish_scores(torch.stack([patch.sample(channel) for channel in scores]))
                    values = decide(sampled, decision, self._sets).values
                patch.put(self._labels, values)
        self._seconds.append(time.perf_counter() - began)

    def _keep_probability(self, block: Block, scores: torch.Tensor) -> None:
        if self._tail.decision.threshold is None or len(scores) > 1:
            return
        with self._lock:
            if self.probability is None:
                self.probability = torch.empty((1, *self._size))
        i, j, k = (slice(*along) for along in block.whole)
        self.probability[:, i, j, k] = scores


class _Watch:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a part."""
        now = time.perf_counter()
        self._laps[name] = now - self._last
        self._last = now

    def told(self, *, network_s: float, restore_s: float) -> dict[str, float]:
        """Answers the parts; what went on during stitching is told by itself."""
        stitch_s = max(0.0, self._laps["stitch"] - network_s - restore_s)
        return {**self._laps, "network": network_s, "stitch": stitch_s, "restore": self._laps["restore"] + restore_s}


@contextmanager
def _told_as_ours(batches: Batches) -> Iterator[None]:
    """Turns torch's word that the sums of the windows did not fit into an error of ours."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        tried = f" ({'; '.join(batches.notes)})" if batches.notes else ""
        raise DeviceOutOfMemory(f"too little memory to put the windows together{tried}") from error
