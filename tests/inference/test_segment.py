"""Labels equal MONAI's own transforms, sliding window and inverse; what happened on the way is told."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Compose, Invertd, Orientationd, ScaleIntensityRanged, Spacingd
from numpy.typing import NDArray

from node.domain.volume import Volume
from node.errors import BundleInvalid, DeviceOutOfMemory
from node.inference.preprocess import as_meta_tensor
from node.inference.recipe import Recipe
from node.inference.segment import segment
from node.inference.tail import Decision, ScoreStep, Tail
from tests.inference.grids import make_volume

SOFTMAX = ScoreStep("softmax", lambda scores: torch.softmax(scores, dim=0))
TAILS: dict[str, Tail] = {
    "labels brought back": Tail(decides_first=True),
    "probabilities brought back": Tail(scores_first=(SOFTMAX,)),
    "scores brought back": Tail(),
    "each structure by itself": Tail(scores_first=(ScoreStep("sigmoid", torch.Tensor.sigmoid_),), decision=Decision(threshold=0.5)),
}


class Network:
    """A convolution as an engine: it sees the border of its window."""

    preferred_batch = 1

    def __init__(self, channels: int = 3, most: int = 99) -> None:
        generator = torch.Generator().manual_seed(channels)
        self._weights = torch.randn(channels, 1, 3, 3, 3, generator=generator)
        self._most = most

    def infer(self, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > self._most:
            raise DeviceOutOfMemory(f"too little memory for {len(batch)} windows")
        return torch.nn.functional.conv3d(batch, self._weights, padding=1)

    def describe(self) -> str:
        return "convolution"

    def close(self) -> None:
        """Holds nothing."""


def make_recipe(inferer: Any, tail: Tail, pixdim: tuple[float, ...] = (1.5, 1.5, 2.0)) -> Recipe:
    preprocessing = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", pixdim=pixdim, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=-200, a_max=200, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    return Recipe(preprocessing, cast("Callable[..., torch.Tensor]", inferer), tail, torch.nn.Identity, loads_torchscript=False)


def by_monai(volume: Volume, recipe: Recipe, network: Network) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the reference decides, (channels or 1, slices, rows, columns), and how clearly."""
    tail = recipe.tail
    prepared: Any = recipe.preprocessing({"image": as_meta_tensor([volume])})
    with torch.inference_mode():
        output = recipe.inferer(prepared["image"].as_tensor()[None], network.infer)[0]
        for step in tail.scores_first:
            output = step.apply(output)
    best = output.sort(dim=0).values
    clear = best[-1] - best[-2] > 1e-4
    if tail.decides_first:
        output = torch.stack([output.argmax(dim=0), clear]).float()
    invert = Invertd("pred", transform=recipe.preprocessing, orig_keys="image", nearest_interp=tail.decides_first)
    back: NDArray[Any] = invert({**prepared, "pred": MetaTensor(output, affine=prepared["image"].affine)})["pred"].numpy()
    back = back.transpose(0, 3, 2, 1)
    if tail.decides_first:
        return back[:1], back[1] > 0
    if tail.decision.threshold is not None:
        return back >= tail.decision.threshold, (np.abs(back - tail.decision.threshold) > 1e-4).all(axis=0)
    best_two = np.sort(back, axis=0)[-2:]
    return back.argmax(axis=0)[None], best_two[1] - best_two[0] > 1e-4


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(7, 13)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.75, 1.0, 1.5, 2.0])] * 3),
    turn=st.sampled_from(["axial", "coronal", "sagittal", "feet first"]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6]),
    mode=st.sampled_from(["constant", "gaussian"]),
    tail=st.sampled_from(list(TAILS)),
    channels=st.sampled_from([2, 3, 9]),
)
def test_labels_equal_monai(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], turn: str, overlap: float, mode: str, tail: str, channels: int
) -> None:
    volume = make_volume(shape, spacing, turn, seed=sum(shape))
    recipe = make_recipe(SlidingWindowInferer((8, 9, 10), sw_batch_size=2, overlap=overlap, mode=mode), TAILS[tail])
    network = Network(channels)
    label_map = segment([volume], recipe, network).label_map
    assert label_map is not None
    expected, clear = by_monai(volume, recipe, network)
    assert clear.mean() > 0.9
    if len(expected) == 1:
        assert np.array_equal(label_map.labels[clear], expected[0][clear])
    else:
        for channel, of in enumerate(expected):
            assert np.array_equal(label_map.mask(channel + 1)[clear], of[clear])


@pytest.mark.parametrize("tail", list(TAILS))
def test_another_inferer_runs_as_it_is(tail: str) -> None:
    volume = make_volume((12, 14, 16), (2.0, 1.0, 1.0), "axial", 1)
    recipe, network = make_recipe(SimpleInferer(), TAILS[tail]), Network()
    label_map = segment([volume], recipe, network).label_map
    assert label_map is not None
    expected, clear = by_monai(volume, recipe, network)
    for channel, of in enumerate(expected if len(expected) > 1 else []):
        assert np.array_equal(label_map.mask(channel + 1)[clear], of[clear])
    if len(expected) == 1:
        assert np.array_equal(label_map.labels[clear], expected[0][clear])


def test_a_network_whose_output_is_smaller_is_left_to_monai() -> None:
    class Halving(Network):
        def infer(self, batch: torch.Tensor) -> torch.Tensor:
            return super().infer(batch)[:, :, ::2, ::2, ::2]

    volume = make_volume((16, 16, 16), (1.0, 1.0, 1.0), "axial", 1)
    recipe = make_recipe(SlidingWindowInferer((8, 8, 8), overlap=0.5), TAILS["labels brought back"], (1.0, 1.0, 1.0))
    calls: list[tuple[int, ...]] = []

    def inferer(*arguments: Any) -> torch.Tensor:
        calls.append(tuple(arguments[0].shape))
        return torch.zeros(1, 3, 16, 16, 16)

    plain = SlidingWindowInferer.__call__
    SlidingWindowInferer.__call__ = lambda _, *arguments: inferer(*arguments)  # type: ignore[method-assign,assignment]
    try:
        segment([volume], recipe, Halving())
    finally:
        SlidingWindowInferer.__call__ = plain  # type: ignore[method-assign]
    assert calls == [(1, 1, 16, 16, 16)]


def test_the_parts_of_the_run_are_timed_and_its_progress_told() -> None:
    volume = make_volume((16, 16, 16), (1.0, 1.0, 1.0), "axial", 1)
    told: list[float] = []
    findings = segment([volume], make_recipe(SlidingWindowInferer((8, 8, 8)), TAILS["scores brought back"]), Network(), told.append)
    assert set(findings.stages) == {"preprocess", "network", "stitch", "restore"}
    assert all(seconds >= 0 for seconds in findings.stages.values())
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert len(told) > 3


def test_a_smaller_batch_for_want_of_memory_stands_in_the_findings() -> None:
    volume = make_volume((16, 16, 16), (1.0, 1.0, 1.0), "axial", 1)
    recipe = make_recipe(SlidingWindowInferer((8, 8, 8), sw_batch_size=8), TAILS["labels brought back"])
    scarce, plenty = segment([volume], recipe, Network(most=1)), segment([volume], recipe, Network())
    assert scarce.provenance_notes == ("out of memory: 1 window at a time",)
    assert plenty.provenance_notes == ()
    assert scarce.label_map is not None
    assert plenty.label_map is not None
    assert np.array_equal(scarce.label_map.labels, plenty.label_map.labels)


def test_no_memory_for_a_single_window_is_told_to_the_caller() -> None:
    volume = make_volume((16, 16, 16), (1.0, 1.0, 1.0), "axial", 1)
    recipe = make_recipe(SlidingWindowInferer((8, 8, 8), sw_batch_size=8), TAILS["labels brought back"])
    with pytest.raises(DeviceOutOfMemory, match="1 window at a time"):
        segment([volume], recipe, Network(most=0))


def test_a_probability_is_that_of_the_reference() -> None:
    volume = make_volume((12, 14, 16), (2.0, 1.0, 1.0), "axial", 1)
    recipe, network = make_recipe(SlidingWindowInferer((8, 8, 8)), TAILS["each structure by itself"]), Network(channels=1)
    findings = segment([volume], recipe, network)
    assert findings.probability is not None
    assert findings.label_map is not None
    probability = findings.probability()
    assert 0.02 < (probability >= 0.5).mean() < 0.98
    clear = np.abs(probability - 0.5) > 1e-4
    assert np.array_equal(findings.label_map.labels[clear], (probability >= 0.5)[clear])


def test_more_classes_than_a_label_map_holds_are_refused() -> None:
    volume = make_volume((8, 8, 8), (1.0, 1.0, 1.0), "axial", 1)
    with pytest.raises(BundleInvalid, match="257 classes"):
        segment([volume], make_recipe(SlidingWindowInferer((8, 8, 8)), TAILS["scores brought back"]), Network(channels=257))
