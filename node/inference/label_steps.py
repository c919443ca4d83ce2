"""The label transforms of MONAI that bundles end with, on decided labels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from monai.data import MetaTensor

from node.errors import BundleInvalid
from node.inference.islands import Mask, largest_components, with_holes_filled, without_small_objects
from node.inference.tail import LARGEST_VALUE, ChannelSets, Decided

Function = Callable[[torch.Tensor], Any]

_TRIAL_SHAPE: Final = (12, 12, 12)
_TRIALS_ONE_IN: Final = (2, 2, 40)
"""In each trial of a function one voxel in so many is not the first kind: crowded ones, and one with islands."""


def keep_largest(
    decided: Decided,
    *,
    applied_labels: Sequence[int] | None = None,
    is_onehot: bool | None = None,
    independent: bool = True,
    connectivity: int | None = None,
    num_components: int = 1,
) -> Decided:
    """KeepLargestConnectedComponentd: every label, or all of them together, keeps its largest parts alone."""
    is_onehot = decided.channels > 1 if is_onehot is None else is_onehot
    chosen = list(applied_labels) if applied_labels is not None else _labels_present(decided, is_onehot=is_onehot)

    def mask_of(label: int) -> Mask:
        return decided.channel(label) if is_onehot else np.asarray(decided.values == label)

    if independent:
        for label in chosen:
            mask = mask_of(label)
            decided = _without(decided, label, mask & ~largest_components(mask, connectivity, num_components), is_onehot=is_onehot)
        return decided
    union = np.logical_or.reduce([mask_of(label) for label in chosen]) if chosen else np.zeros(decided.values.shape, dtype=np.bool_)
    dropped = union & ~largest_components(union, connectivity, num_components)
    for label in chosen:
        decided = _without(decided, label, dropped & mask_of(label), is_onehot=is_onehot)
    return decided


def fill_holes(decided: Decided, *, applied_labels: Iterable[int] | None = None, connectivity: int | None = None) -> Decided:
    """FillHolesd: whatever a label encloses becomes that label, be it background or another one."""
    is_onehot = decided.channels > 1
    for label in sorted(set(applied_labels) if applied_labels is not None else set(_labels_present(decided, is_onehot=is_onehot))):
        if label == 0:
            continue
        if is_onehot:
            decided = decided.with_channel(label, with_holes_filled(decided.channel(label), connectivity))
        else:
            mask = np.asarray(decided.values == label)
            filled = with_holes_filled(mask, connectivity)
            decided = replace(decided, values=np.where(filled, np.uint8(label), decided.values))
    return decided


def remove_small_objects(decided: Decided, *, min_size: int = 64, connectivity: int = 1, independent_channels: bool = True) -> Decided:
    """RemoveSmallObjectsd, as it is: of several labels in one channel it drops whole labels, of one label its small parts."""
    if decided.channels > 1:
        dense = np.stack([decided.channel(index) for index in range(decided.channels)])
        kept = without_small_objects(dense, min_size, connectivity)  # MONAI hands the channels over as one more axis of space
        for index in range(decided.channels):
            decided = decided.with_channel(index, kept[index])
        return decided
    if independent_channels and decided.values.max(initial=0) > 1:
        keeps = np.bincount(decided.values.reshape(-1), minlength=LARGEST_VALUE + 1) >= min_size
        return replace(decided, values=np.where(keeps[decided.values], decided.values, np.uint8(0)))
    kept = without_small_objects(np.asarray(decided.values > 0), min_size, connectivity)
    return replace(decided, values=np.where(kept, decided.values, np.uint8(0)))


def apply_function(decided: Decided, function: Function, name: str) -> Decided:
    """Answers labels after a function of the bundle's own, which takes and answers (channels, ...), float32.

    A function that looks at each voxel by itself is asked once for every set of channels (or label) that is there. Whether it is
    one is tried on arrangements at random; one that is none gets the whole volume.
    """
    present = np.flatnonzero(np.bincount(decided.values.reshape(-1), minlength=LARGEST_VALUE + 1))
    kinds = _dense(replace(decided, values=present.astype(np.uint8)))  # (channels, kinds)
    answers = _try_out(kinds, function)
    if answers is None:
        return from_dense(_answer(function, _dense(decided), decided.values.ndim), name)
    few = from_dense(answers, name)
    table = np.zeros(LARGEST_VALUE + 1, dtype=np.uint8)
    table[present] = few.values
    return replace(few, values=table[decided.values])


def _without(decided: Decided, label: int, dropped: Mask, *, is_onehot: bool) -> Decided:
    if not dropped.any():
        return decided
    if is_onehot:
        return decided.with_channel(label, decided.channel(label) & ~dropped)
    return replace(decided, values=np.where(dropped, np.uint8(0), decided.values))


def _labels_present(decided: Decided, *, is_onehot: bool) -> list[int]:
    """Answers the labels but 0 that are there, the channels but 0 where they stand for labels."""
    present = np.flatnonzero(np.bincount(decided.values.reshape(-1), minlength=LARGEST_VALUE + 1)).tolist()
    if not is_onehot:
        return [label for label in present if label]
    if not decided.members:
        return []
    return sorted({channel for number in present for channel in decided.members[number]} - {0})


def _dense(decided: Decided) -> torch.Tensor:
    """Answers the channels as the reference holds them, (channels, ...), float32."""
    if not decided.members:
        return torch.from_numpy(decided.values.astype(np.float32))[None]
    return torch.from_numpy(np.stack([decided.channel(index) for index in range(decided.channels)]).astype(np.float32))


def from_dense(channels: torch.Tensor, name: str) -> Decided:
    """Answers labels out of channels (channels, ...) as the reference holds them; `name` made them."""
    if channels.shape[0] > 1:
        if not ((channels == 0) | (channels == 1)).all():
            raise BundleInvalid(f"{name} answers {channels.shape[0]} channels that are not 0 or 1: radnode cannot read labels out of them")
        sets = ChannelSets()
        return Decided(sets.number(channels > 0), channels.shape[0], sets.members)
    values = channels[0]
    if values.is_floating_point() and not torch.equal(values, values.round()):
        raise BundleInvalid(f"{name} answers numbers between the labels: radnode cannot read labels out of them")
    if values.numel() and not (0 <= int(values.min()) and int(values.max()) <= LARGEST_VALUE):
        raise BundleInvalid(f"{name} answers labels from {int(values.min())} to {int(values.max())}: radnode keeps 0 to {LARGEST_VALUE}")
    return Decided(values.to(torch.uint8).numpy())


def _answer(function: Function, channels: torch.Tensor, dimensions: int) -> torch.Tensor:
    answer = function(channels)
    tensor = answer.as_tensor() if isinstance(answer, MetaTensor) else torch.as_tensor(answer)
    return tensor if tensor.ndim > dimensions else tensor[None]


def _try_out(kinds: torch.Tensor, function: Function) -> torch.Tensor | None:
    """Answers what a function makes of each kind of voxel, (channels, kinds); None where that depends on the other voxels."""
    generator = np.random.default_rng(1)
    count = kinds.shape[1]
    found: torch.Tensor | None = None
    for one_in in _TRIALS_ONE_IN:
        number = int(np.prod(_TRIAL_SHAPE))
        arrangement = np.where(generator.random(number) < 1 / one_in, generator.integers(0, count, number), 0)
        arrangement[generator.permutation(number)[:count]] = np.arange(count)
        answer = _answer(function, kinds[:, arrangement].reshape(-1, *_TRIAL_SHAPE), 3)
        if tuple(answer.shape[1:]) != _TRIAL_SHAPE:
            return None
        flat = answer.reshape(answer.shape[0], -1)
        if found is None:
            found = torch.zeros(flat.shape[0], count, dtype=flat.dtype)
            found[:, arrangement] = flat
        if found.shape[0] != flat.shape[0] or not torch.equal(found[:, arrangement], flat):
            return None
    return found
