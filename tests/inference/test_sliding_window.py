"""The stitched windows equal MONAI's, for any shape, overlap and weighting, in the memory of a few rows of windows."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SimpleInferer, SlidingWindowInferer, SlidingWindowInfererAdapt

from node.errors import DeviceOutOfMemory
from node.inference import stitcher as stitcher_module
from node.inference.sliding_window import Batches, DifferentSize, stitch
from node.inference.stitcher import Stitcher
from node.inference.windows import Block, blocks_of, understands, windows_of

WEIGHTS = torch.randn(3, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def network(batch: torch.Tensor) -> torch.Tensor:
    """Sees its window's border, so that overlapping windows disagree."""
    return torch.nn.functional.conv3d(batch, WEIGHTS, padding=1)


class Pasted:
    """A consumer that puts blocks together, and counts who owns what."""

    def __init__(self, channels: int, size: tuple[int, ...], skirt: int) -> None:
        self.scores = torch.full((channels, *size), float("nan"))
        self.owners = np.zeros(size, dtype=int)
        self._skirt = skirt

    def __call__(self, block: Block) -> None:
        owned = tuple(slice(*along) for along in block.owned)
        whole = tuple(slice(*along) for along in block.whole)
        for (low, _), (first, _) in zip(block.owned, block.whole, strict=True):
            assert first == max(0, low - self._skirt)
        assert block.values.shape[1:] == self.scores[(slice(None), *whole)].shape[1:]
        shared = self.scores[(slice(None), *whole)]
        known = ~torch.isnan(shared)
        torch.testing.assert_close(block.values[known], shared[known], rtol=1e-4, atol=1e-5)
        self.scores[(slice(None), *whole)] = block.values
        self.owners[owned] += 1


def run(image: torch.Tensor, inferer: SlidingWindowInferer, skirt: int, *, averaged: bool = True) -> Pasted:
    pasted = Pasted(3, tuple(image.shape[1:]), skirt)
    with torch.inference_mode():
        stitcher = Stitcher(windows_of(inferer, image.shape[1:]), pasted, skirt=skirt, averaged=averaged)
        stitch(image, inferer, network, stitcher, Batches(inferer.sw_batch_size))
        assert stitcher.live_bytes == 0
    return pasted


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(*[st.integers(4, 19)] * 3),
    roi=st.tuples(*[st.sampled_from([5, 8, 12, -1, None])] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7, (0.1, 0.5, 0.25)]),
    options=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["constant", "gaussian"]),
            "sigma_scale": st.sampled_from([0.125, 0.3, (0.1, 0.2, 0.3)]),
            "padding_mode": st.sampled_from(["constant", "replicate"]),
            "cval": st.sampled_from([0.0, -1.5]),
            "sw_batch_size": st.sampled_from([1, 3]),
        }
    ),
    skirt=st.sampled_from([0, 1]),
)
def test_equals_monai(size: tuple[int, ...], roi: tuple[int | None, ...], overlap: Any, options: dict[str, Any], skirt: int) -> None:
    if options["padding_mode"] == "replicate":
        options["cval"] = 0.0
    inferer = SlidingWindowInferer(roi_size=roi, overlap=overlap, **options)
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(sum(size)))
    with torch.inference_mode():
        expected = inferer(image[None], network)
    pasted = run(image, inferer, skirt)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(pasted.scores, expected[0], rtol=1e-4, atol=1e-5)
    assert (pasted.owners == 1).all(), "every voxel has one owner"
    winners = run(image, inferer, 0, averaged=False).scores.argmax(dim=0)
    assert (winners != expected[0].argmax(dim=0)).float().mean() < 1e-3, "the winner needs no division, near ties aside"


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(*[st.integers(4, 60)] * 3), roi=st.tuples(*[st.integers(3, 20)] * 3), overlap=st.tuples(*[st.floats(0, 0.95)] * 3))
def test_the_windows_are_those_of_monai(size: tuple[int, ...], roi: tuple[int, ...], overlap: tuple[float, ...]) -> None:
    windows = windows_of(SlidingWindowInferer(roi_size=roi, overlap=overlap, mode="gaussian"), size)
    padded = tuple(max(extent, window) for extent, window in zip(size, roi, strict=True))
    steps = [
        window if window == extent else max(int(window * (1 - share)), 1)
        for window, extent, share in zip(roi, padded, overlap, strict=True)
    ]
    expected = [tuple((part.start, part.stop) for part in window) for window in dense_patch_slices(padded, roi, steps)]
    assert sorted(windows.in_order()) == expected
    assert windows.weights is not None
    assert torch.equal(windows.weights, compute_importance_map(roi, mode="gaussian", sigma_scale=0.125))


def test_holds_a_few_rows_of_windows_and_not_the_image() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.25)
    most = 0
    with torch.inference_mode():
        stitcher = Stitcher(windows_of(inferer, (26, 26, 80)), lambda _: None, skirt=1, averaged=True)

        def watched(batch: torch.Tensor) -> torch.Tensor:
            nonlocal most
            most = max(most, stitcher.live_bytes)
            return network(batch)

        stitch(torch.randn(2, 26, 26, 80), inferer, watched, stitcher, Batches(2))
    whole = 3 * 26 * 26 * 80 * 4
    assert 0 < most < whole / 6


def test_long_cells_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    inferer = SlidingWindowInferer(roi_size=(16, 16, 16), overlap=0.25, mode="gaussian")
    image = torch.randn(2, 18, 16, 31)
    whole = run(image, inferer, 1)
    monkeypatch.setattr(stitcher_module, "LONGEST_CELL", 5)
    parted = run(image, inferer, 1)
    torch.testing.assert_close(parted.scores, whole.scores, rtol=1e-5, atol=1e-6)
    assert (parted.owners == 1).all()


def test_two_windows_at_a_time_where_the_bundle_asks_for_one() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=1)
    seen: list[int] = []

    def watched(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return network(batch)

    stitcher = Stitcher(windows_of(inferer, (8, 8, 60)), lambda _: None, skirt=0, averaged=False)
    stitch(torch.randn(2, 8, 8, 60), inferer, watched, stitcher, Batches(1))
    assert min(seen[:-1]) >= 2


def test_too_little_memory_halves_the_batch_and_tells_so() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=4)
    image = torch.randn(2, 20, 20, 20)
    batches = Batches(4)

    def small(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 1:
            raise DeviceOutOfMemory("too little memory")
        return network(batch)

    pasted = Pasted(3, (20, 20, 20), 0)
    with torch.inference_mode():
        stitch(image, inferer, small, Stitcher(windows_of(inferer, (20, 20, 20)), pasted, skirt=0, averaged=True), batches)
        expected = inferer(image[None], network)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(pasted.scores, expected[0], rtol=1e-4, atol=1e-5)
    assert batches.notes == ["out of memory: 1 window at a time"]


def test_where_not_one_window_fits_the_error_says_what_was_tried() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=4)

    def never(_: torch.Tensor) -> torch.Tensor:
        raise DeviceOutOfMemory("too little memory")

    stitcher = Stitcher(windows_of(inferer, (20, 20, 20)), lambda _: None, skirt=0, averaged=False)
    with pytest.raises(DeviceOutOfMemory, match="1 window at a time"):
        stitch(torch.randn(2, 20, 20, 20), inferer, never, stitcher, Batches(4))


def test_other_inferers_and_networks_that_scale_are_left_to_monai() -> None:
    assert understands(SlidingWindowInferer(8))
    assert understands(SlidingWindowInfererAdapt(8))
    assert not understands(SimpleInferer())
    assert not understands(SlidingWindowInferer(8, with_coord=True))
    assert not understands(type("Own", (SlidingWindowInferer,), {})(8)), "a bundle's own class may do anything"
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8))
    stitcher = Stitcher(windows_of(inferer, (20, 20, 20)), lambda _: None, skirt=0, averaged=False)
    with pytest.raises(DifferentSize):
        stitch(torch.randn(2, 20, 20, 20), inferer, lambda batch: network(batch)[:, :, ::2, ::2, ::2], stitcher, Batches(1))


def test_blocks_of_a_whole_image_own_each_voxel_once() -> None:
    scores = torch.randn(2, 30, 17, 9)
    owners = np.zeros((30, 17, 9), dtype=int)
    for block in blocks_of(scores, skirt=1, edge=8):
        owners[tuple(slice(*along) for along in block.owned)] += 1
        assert torch.equal(block.values, scores[(slice(None), *(slice(*along) for along in block.whole))])
    assert (owners == 1).all()
    assert len(list(itertools.islice(blocks_of(scores, skirt=1), 9))) == 1
