"""What a bundle does to the network's output, in its order: activations, the decision, the way back to the source, label steps.

The order decides about equality. Scores that are brought back (`Invertd` before `AsDiscreted`) are interpolated and then compared;
labels that are decided first (`AsDiscreted` before `Invertd`) come back by the nearest neighbour, exactly as the reference does it.

Decided voxels are numbers 0..255 (`Decided`): label values, or numbers of sets of channels where structures may overlap. A bundle's
own function of the channels of one voxel (BraTS: three channels to the labels 4, 1, 2) becomes a table over those sets.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.errors import BundleInvalid

LARGEST_VALUE: Final = 255
"""Of what fits into a label map."""

Members = tuple[tuple[int, ...], ...]
Values = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ScoreStep:
    """A change of scores: (channels, ...) to (channels, ...), each voxel by itself. May change its argument in place."""

    name: str
    """softmax, sigmoid, or what the bundle calls it."""
    apply: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Decision:
    """How scores become labels: the class with the highest score, or every channel that reaches a threshold."""

    threshold: float | None = None
    """None: the class with the highest score, the first of equals."""
    is_one_hot: bool = False
    """The classes stand as channels afterwards: what follows sees one channel a class, background too."""


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """Labels on some grid, in any order of axes."""

    values: Values
    channels: int = 1
    """How many channels the reference holds here: 1, or one a structure."""
    members: Members = ()
    """With several channels: those that are set where `values` has this number. Empty: `values` are label values."""
    is_one_hot: bool = False
    """Channels are classes that exclude each other, channel 0 is background."""

    def channel(self, index: int) -> Mask:
        """Answers where one channel is set; of labels in one channel, where they are not background."""
        if not self.members:
            return self.values > 0
        return np.array([index in of for of in self.members], dtype=np.bool_)[self.values]

    def with_channel(self, index: int, mask: Mask) -> "Decided":
        """Answers the same with one channel set where `mask` says so, and nowhere else."""
        if not self.members:
            return replace(self, values=np.where(mask, np.maximum(self.values, 1), 0).astype(np.uint8))
        sets = ChannelSets(self.members)
        values = self.values.copy()
        for is_set in (True, False):
            where = mask if is_set else ~mask
            table = np.zeros(LARGEST_VALUE + 1, dtype=np.uint8)
            for number in np.flatnonzero(np.bincount(self.values[where], minlength=len(table))):
                of = set(self.members[number])
                table[number] = sets.number_of(tuple(sorted(of | {index} if is_set else of - {index})))
            values[where] = table[self.values[where]]
        return replace(self, values=values, members=sets.members)


@dataclass(frozen=True, slots=True)
class LabelStep:
    """A change of labels after the decision; axes are in the order of the reference: (columns, rows, slices)."""

    name: str
    apply: Callable[[Decided], Decided]


@dataclass(frozen=True, slots=True)
class Tail:
    """The postprocessing of a bundle, understood.

    on the network's grid: `scores_first`; then, where `decides_first`: decision, `labels_first`
    back to the source grid: labels by the nearest neighbour where `decides_first`, else scores, interpolated linearly
    on the source grid: `scores_last` and the decision, where not `decides_first`; then `labels_last`
    """

    scores_first: tuple[ScoreStep, ...] = ()
    scores_last: tuple[ScoreStep, ...] = ()
    decision: Decision = field(default_factory=Decision)
    decides_first: bool = False
    labels_first: tuple[LabelStep, ...] = ()
    labels_last: tuple[LabelStep, ...] = ()
    notes: tuple[str, ...] = ()
    """Where radnode reads the postprocessing otherwise than it stands there."""

    def score(self, output: torch.Tensor) -> torch.Tensor:
        """Answers the network's output (channels, i, j, k), which may be changed, as it is brought back or decided."""
        for step in self.scores_first:
            output = step.apply(output)
        return output

    def finish_scores(self, values: torch.Tensor) -> torch.Tensor:
        """Answers scores that were brought back, of shape (channels, ...), as they are decided."""
        for step in self.scores_last:
            values = step.apply(values)
        return values

    def finish_on_grid(self, decided: Decided) -> Decided:
        """Answers labels of the network's grid as they are brought back."""
        for step in self.labels_first:
            decided = step.apply(decided)
        return decided

    def finish_on_source(self, decided: Decided) -> tuple[Values, Members]:
        """Answers `labels` and `members` of a LabelMap out of labels on the source grid, (slices, rows, columns)."""
        if self.labels_last:
            decided = replace(decided, values=decided.values.transpose())
            for step in self.labels_last:
                decided = step.apply(decided)
            decided = replace(decided, values=np.ascontiguousarray(decided.values.transpose()))
        return label_values(decided)


def decide(scores: torch.Tensor, decision: Decision, sets: "ChannelSets") -> Decided:
    """Answers the labels of scores (channels, ...); parts of one volume share `sets`."""
    channels = scores.shape[0]
    if decision.threshold is not None:
        reached = scores >= decision.threshold
        if channels == 1:
            return Decided(reached[0].to(torch.uint8).numpy())
        return Decided(sets.number(reached), channels, sets.members)
    if channels > LARGEST_VALUE + 1:
        raise BundleInvalid(f"the network tells {channels} classes apart: radnode keeps label values up to {LARGEST_VALUE}")
    labels = torch.argmax(scores, dim=0).to(torch.uint8).numpy()
    if decision.is_one_hot:
        return Decided(labels, channels, tuple((channel,) for channel in range(channels)), is_one_hot=True)
    return Decided(labels)


def stack(parts: Sequence[Decided]) -> Decided:
    """Answers parts of one volume, decided with the same `sets`, as one: along a new first axis."""
    longest = max(parts, key=lambda part: len(part.members))
    return replace(longest, values=np.stack([part.values for part in parts]))


class ChannelSets:
    """Gives numbers 0..255 to the sets of channels that are met at a voxel; 0 is the empty set, or what `members` begin with."""

    def __init__(self, members: Members = ((),)) -> None:
        """`members` have their numbers already."""
        self._number_of = {of: number for number, of in enumerate(members)}
        self._lock = threading.Lock()

    @property
    def members(self) -> Members:
        """Answers the channels of each number."""
        return tuple(self._number_of)

    def number_of(self, of: tuple[int, ...]) -> int:
        """Answers the number of one set; raises BundleInvalid when there are too many."""
        with self._lock:
            number = self._number_of.setdefault(of, len(self._number_of))
        if number > LARGEST_VALUE:
            raise BundleInvalid(
                f"the structures of this model overlap in more than {LARGEST_VALUE} ways: such a result cannot be kept "
                "→ use a model whose structures exclude each other"
            )
        return number

    def number(self, channels: torch.Tensor) -> Values:
        """Answers the number of the set at every voxel of (channels, ...), bool."""
        shape = tuple(channels.shape[1:])
        flat = channels.reshape(channels.shape[0], -1).numpy()
        numbers = np.zeros(flat.shape[1], dtype=np.uint8)
        somewhere = np.flatnonzero(flat.any(axis=0))
        if len(somewhere):
            packed = np.packbits(flat[:, somewhere], axis=0, bitorder="little")
            if len(packed) == 1:
                code = packed[0]
                kinds = np.flatnonzero(np.bincount(code))[None].astype(np.uint8)
                code = np.searchsorted(kinds[0], code)
            else:
                kinds, code = np.unique(packed, axis=1, return_inverse=True)
            bits = np.unpackbits(kinds, axis=0, bitorder="little").T
            table = np.array([self.number_of(tuple(np.flatnonzero(kind).tolist())) for kind in bits], dtype=np.uint8)
            numbers[somewhere] = table[code.reshape(-1)]
        return numbers.reshape(shape)


def label_values(decided: Decided) -> tuple[Values, Members]:
    """Answers `labels` and `members` of a LabelMap. Channel n of a network with several structures has the label value n + 1."""
    if not decided.members:
        return decided.values, ()
    if decided.is_one_hot:
        return _table([min(of, default=0) for of in decided.members])[decided.values], ()
    named = tuple(tuple(channel + 1 for channel in of) for of in decided.members)
    present = np.flatnonzero(np.bincount(decided.values.reshape(-1), minlength=LARGEST_VALUE + 1))
    if all(len(named[number]) < 2 for number in present):  # nothing overlaps here
        return _table([of[0] if len(of) == 1 else 0 for of in named])[decided.values], ()
    return decided.values, named


def _table(values: Sequence[int]) -> Values:
    if any(not 0 <= value <= LARGEST_VALUE for value in values):
        raise BundleInvalid(f"the model makes label values up to {max(values)}: radnode keeps 0 to {LARGEST_VALUE}")
    return np.array(values, dtype=np.uint8)
