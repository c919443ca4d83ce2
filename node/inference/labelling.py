"""Blocks of scores become labels as they come, on the network's grid or on that of the source."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from node.errors import BundleInvalid
from node.inference.preprocess import Prepared
from node.inference.restore import WayBack, can_win, contest, winners
from node.inference.tail import LARGEST_VALUE, ChannelSets, Decided, Tail, decide
from node.inference.windows import Block


class Labelling(ABC):
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
        """Takes one block.

        Raises BundleInvalid when there are more classes than a label map has values.
        """
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

    @abstractmethod
    def _take(self, block: Block, scores: torch.Tensor) -> None:
        """Enters the labels of a block that is done."""


class LabelsOnGrid(Labelling):
    """Labels on the network's grid, for bundles that decide before they invert."""

    def __init__(self, prepared: Prepared, tail: Tail) -> None:
        super().__init__(prepared.image.shape[1:], tail)

    @property
    def is_averaged(self) -> bool:
        """Answers whether the scores themselves count: the highest of a voxel is the highest whatever they are divided by."""
        return bool(self._tail.scores_first) or self._tail.decision.threshold is not None

    def _take(self, block: Block, scores: torch.Tensor) -> None:
        decision = self._tail.decision
        values = winners(scores).numpy() if decision.threshold is None else decide(scores, decision, self._sets).values
        self._labels[tuple(slice(*along) for along in block.owned)] = values


class LabelsOnSource(Labelling):
    """Labels on the source grid, of scores that are interpolated there first, as bundles do that invert before they decide."""

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
