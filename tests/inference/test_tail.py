"""The order of a bundle's postprocessing decides where labels are made; what is not understood is refused by name."""

from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.bundle import ConfigParser

from node.errors import BundleInvalid
from node.inference.postprocessing import read_tail
from node.inference.tail import ChannelSets, Decision, Tail, decide, label_values, stack


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "pred", **arguments}


SOFTMAX, SIGMOID = transform("Activationsd", softmax=True), transform("Activationsd", sigmoid=True)
ARGMAX, THRESHOLD = transform("AsDiscreted", argmax=True), transform("AsDiscreted", threshold=0.3)
LINEAR, NEAREST = (transform("Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=near) for near in (False, True))
LARGEST: Final = transform("KeepLargestConnectedComponentd")
SAVE: Final = transform("SaveImaged", output_dir="out")


def tail_of(*transforms: Any, **more: Any) -> Tail:
    return read_tail(ConfigParser({"postprocessing": {"_target_": "Compose", "transforms": list(transforms)}, **more}))


def names(tail: Tail) -> tuple[list[str], ...]:
    return tuple([step.name for step in steps] for steps in (tail.scores_first, tail.scores_last, tail.labels_first, tail.labels_last))


def test_scores_that_are_inverted_first_are_brought_back() -> None:
    tail = tail_of(SOFTMAX, LINEAR, ARGMAX, LARGEST, SAVE)
    assert names(tail) == (["softmax"], [], [], ["KeepLargestConnectedComponentd"])
    assert not tail.decides_first


def test_labels_that_are_decided_first_are_brought_back_by_the_nearest_neighbour() -> None:
    tail = tail_of(SOFTMAX, ARGMAX, LARGEST, NEAREST, SAVE)
    assert tail.decides_first
    assert names(tail) == ([], [], ["KeepLargestConnectedComponentd"], []), "the argmax of a softmax is that of the scores"


def test_scores_inverted_by_the_nearest_neighbour_are_decided_before() -> None:
    tail = tail_of(SIGMOID, NEAREST, THRESHOLD, LARGEST)
    assert tail.decides_first
    assert names(tail) == (["sigmoid"], [], [], ["KeepLargestConnectedComponentd"])


def test_activations_after_the_inversion_work_on_the_source_grid() -> None:
    assert names(tail_of(LINEAR, SIGMOID, THRESHOLD))[:2] == ([], ["sigmoid"])
    assert names(tail_of(LINEAR, SOFTMAX, ARGMAX))[:2] == ([], [])


def test_interpolated_labels_are_not_made_and_that_is_told() -> None:
    tail = tail_of(ARGMAX, LINEAR)
    assert tail.decides_first
    assert "nearest neighbour" in tail.notes[0]


def test_without_inversion_scores_are_brought_back_unless_the_file_does_it() -> None:
    assert not tail_of(SOFTMAX, ARGMAX, LARGEST, SAVE).decides_first
    assert names(tail_of(SOFTMAX, ARGMAX, LARGEST, SAVE))[3] == ["KeepLargestConnectedComponentd"]
    resampled = tail_of(SOFTMAX, ARGMAX, LARGEST, {**SAVE, "resample": True})
    assert resampled.decides_first
    assert names(resampled)[2] == ["KeepLargestConnectedComponentd"]


def test_without_a_decision_the_activation_says_which() -> None:
    assert tail_of(SIGMOID, LINEAR).decision == Decision(threshold=0.5)
    assert tail_of(SOFTMAX, LINEAR).decision == Decision()
    assert read_tail(ConfigParser({})).decision == Decision()


def test_rounding_is_a_threshold_above_one_half() -> None:
    decision = tail_of(SIGMOID, LINEAR, transform("AsDiscreted", rounding="torchrounding")).decision
    scores = torch.tensor([0.4, 0.5, 0.6])[None]
    assert np.array_equal(decide(scores, decision, ChannelSets()).values, torch.round(scores[0]).numpy())


def test_references_expressions_disabled_and_foreign_transforms_are_seen_through() -> None:
    tail = tail_of(
        "$monai.transforms.Activationsd('pred', sigmoid=True)",
        {**SOFTMAX, "_disabled_": "@off"},
        {**LINEAR, "keys": ["@key"]},
        {"_target_": "monai.transforms.AsDiscreteD", "keys": "@key", "threshold": "@cut"},
        {"_target_": "CopyItemsd", "keys": "label", "names": "copy"},
        preprocessing=None, off="$True", key="pred", cut="$0.25 + 0.5",
    )  # fmt: skip
    assert names(tail)[0] == ["sigmoid"]
    assert tail.decision == Decision(threshold=0.75)


def test_lists_under_another_name_and_objects_are_understood() -> None:
    steps = [SIGMOID, THRESHOLD]
    by_reference = read_tail(ConfigParser({"post": steps, "postprocessing": {"_target_": "Compose", "transforms": "$@post"}}))
    by_expression = read_tail(ConfigParser({"post": steps, "postprocessing": "$monai.transforms.Compose(@post)"}))
    assert by_reference.decision == by_expression.decision == Decision(threshold=0.3)


def test_the_networks_answer_may_have_another_name() -> None:
    renamed = [{**step, "keys": "seg"} for step in (SIGMOID, LINEAR, THRESHOLD)]
    assert tail_of(*renamed).decision == Decision(threshold=0.3)


@pytest.mark.parametrize(
    ("transforms", "told"),
    [
        ([transform("MedianSmoothd")], "MedianSmoothd"),
        ([ARGMAX, SOFTMAX], "after the labels are decided"),
        ([LARGEST, ARGMAX], "before the labels are decided"),
        ([LINEAR, transform("Lambdad", func="$lambda x: x[1:]"), ARGMAX], "before the labels are decided"),
        ([transform("MeanEnsembled", keys=["pred0", "pred1"], output_key="pred")], "MeanEnsembled"),
        ([LINEAR, ARGMAX, NEAREST], "twice"),
        ([ARGMAX, transform("RemoveSmallObjectsd", by_measure=True)], "min_size in voxels"),
        ([{"_target_": "AsDiscrete", "argmax": True}], "dictionary form"),
        ([transform("Activationsd", softmax=True, dim=1)], "not over the channels"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_with_the_reason(transforms: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(BundleInvalid, match=told):
        tail_of(*transforms)


@given(arrays(np.bool_, st.tuples(st.integers(2, 20), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))))
def test_overlapping_structures_are_all_told_apart(channels: np.ndarray) -> None:
    sets = ChannelSets()
    scores = torch.from_numpy(channels.astype(np.float32))
    decided = stack([decide(scores[:, plane], Decision(threshold=0.5), sets) for plane in range(channels.shape[1])])
    labels, members = label_values(decided)
    for channel, mask in enumerate(channels):
        found = np.isin(labels, [value for value, of in enumerate(members) if channel + 1 in of]) if members else labels == channel + 1
        assert np.array_equal(found, mask)
    assert bool(members) == bool((channels.sum(axis=0) > 1).any())


def test_more_overlaps_than_a_label_map_holds_are_refused() -> None:
    every = torch.tensor([[number >> bit & 1 for number in range(512)] for bit in range(9)], dtype=torch.float32)
    with pytest.raises(BundleInvalid, match="overlap in more than 255 ways"):
        decide(every[:, :, None, None], Decision(threshold=0.5), ChannelSets())


def test_more_classes_than_a_label_map_holds_are_refused() -> None:
    with pytest.raises(BundleInvalid, match="tells 257 classes apart"):
        decide(torch.zeros(257, 1, 1, 1), Decision(), ChannelSets())


def test_labels_beyond_a_label_map_are_refused() -> None:
    tail = tail_of(LINEAR, ARGMAX, transform("Lambdad", func="$lambda x: x * 300"))
    scores = torch.zeros(2, 2, 2, 2)
    scores[1, 0] = 1
    with pytest.raises(BundleInvalid, match="labels from 0 to 300"):
        tail.finish_on_source(decide(scores, tail.decision, ChannelSets()))
