"""Preprocessing equals MONAI's own Compose: value by value, for any spacing, direction and order of transforms."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureTyped,
    Lambdad,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
    ThresholdIntensityd,
)
from numpy.typing import NDArray

from node.domain.volume import Volume, VolumeGeometry
from node.inference.preprocess import RAS_FROM_LPS, prepare
from tests.inference.grids import make_volume

SCALINGS: dict[str, Any] = {
    "none": lambda: EnsureTyped("image"),
    "range": lambda: ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
    "range, open": lambda: ScaleIntensityRanged("image", a_min=-57, a_max=164),
    "percentiles": lambda: ScaleIntensityRangePercentilesd("image", lower=2, upper=98, b_min=0.0, b_max=1.0, clip=True),
    "normal": lambda: NormalizeIntensityd("image"),
    "normal, nonzero": lambda: NormalizeIntensityd("image", nonzero=True),
    "normal, nonzero, by channel": lambda: NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    "scale": lambda: ScaleIntensityd("image", minv=-1.0, maxv=1.0),
    "scale by channel": lambda: ScaleIntensityd("image", minv=0.0, maxv=1.0, channel_wise=True),
    "threshold": lambda: ThresholdIntensityd("image", threshold=-100, above=True, cval=-100),
    "not recognised": lambda: Lambdad("image", func=lambda image: image * 0.5 + 3),
}
SPACINGS = [0.5, 0.68359375, 0.75, 1.0, 1.5, 2.5, 3.0]


def by_monai(volumes: list[Volume], compose: Compose) -> MetaTensor:
    """What MONAI makes of the same voxels and affine."""
    xyz = np.ascontiguousarray(np.stack([volume.voxels for volume in volumes]).transpose(0, 3, 2, 1))
    affine = RAS_FROM_LPS @ volumes[0].geometry.patient_from_voxel[:, [2, 1, 0, 3]]
    result: MetaTensor = compose({"image": MetaTensor(torch.from_numpy(xyz), affine=torch.from_numpy(affine))})["image"]
    return result


def require_equal(volumes: list[Volume], compose: Compose) -> None:
    before = [volume.voxels.copy() for volume in volumes]
    ours, theirs = prepare(volumes, compose, "image"), by_monai(volumes, compose)
    assert all(np.array_equal(volume.voxels, voxels) for volume, voxels in zip(volumes, before, strict=True)), "the input was written to"
    assert ours.image.dtype == torch.float32
    assert ours.image.is_contiguous()
    assert ours.image.shape == theirs.shape
    np.testing.assert_allclose(ours.patient_from_index, RAS_FROM_LPS @ np.asarray(theirs.affine), atol=1e-9)
    np.testing.assert_allclose(ours.image.numpy(), theirs.numpy(), rtol=2e-6, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(5, 17)] * 3),
    spacing=st.tuples(*[st.sampled_from(SPACINGS)] * 3),
    turn=st.sampled_from(["axial", "coronal", "sagittal", "feet first", "tilted"]),
    wanted=st.tuples(*[st.sampled_from([0.8, 1.0, 1.5, 2.0, 3.0])] * 3),
    options=st.fixed_dictionaries({"padding_mode": st.sampled_from(["border", "zeros"]), "diagonal": st.booleans()}),
    axcodes=st.sampled_from(["RAS", "LIA", "SPL", "none"]),
    is_turned_first=st.booleans(),
    scaling=st.sampled_from(list(SCALINGS)),
    channels=st.sampled_from([1, 1, 2]),
)
def test_equals_monai(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    turn: str,
    wanted: tuple[float, float, float],
    options: dict[str, Any],
    axcodes: str,
    is_turned_first: bool,
    scaling: str,
    channels: int,
) -> None:
    if "nonzero" in scaling:
        options["padding_mode"] = "border"  # zeros at the rim are zeros up to 1e-17, on both sides
    volumes = [make_volume(shape, spacing, turn, seed) for seed in range(channels)]
    turning = [] if axcodes == "none" else [Orientationd("image", axcodes=axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))]
    spacing_ = [Spacingd("image", pixdim=wanted, mode="bilinear", **options)]
    spatial = [*turning, *spacing_] if is_turned_first else [*spacing_, *turning]
    require_equal(volumes, Compose([*spatial, SCALINGS[scaling]()]))


@pytest.mark.parametrize("scaling", list(SCALINGS))
def test_each_scaling_is_equal_before_and_after_a_crop(scaling: str) -> None:
    volumes = [make_volume((9, 11, 13), (2.0, 1.0, 1.0), "axial", 3)]
    volumes[0].voxels[2:5, 3:9, :6] = 0
    crop = CropForegroundd("image", source_key="image", select_fn=lambda image: image > image.mean(), margin=1, allow_smaller=True)
    require_equal(volumes, Compose([SCALINGS[scaling](), crop, SpatialPadd("image", spatial_size=(12, 20, 8)), SCALINGS[scaling]()]))


def test_an_image_of_the_wanted_spacing_is_left_alone() -> None:
    volume = make_volume((6, 7, 8), (1.0, 1.5, 2.0), "axial", 1)
    compose = Compose([Spacingd("image", pixdim=(2.0, 1.5, 1.0))])
    require_equal([volume], compose)
    assert prepare([volume], compose, "image").resampled is None


def test_other_interpolations_are_left_to_monai() -> None:
    volume = make_volume((6, 7, 8), (1.0, 1.5, 2.0), "axial", 1)
    for options in ({"mode": "nearest"}, {"padding_mode": "reflection"}, {"align_corners": True}, {"dtype": np.float32}, {"mode": 3}):
        require_equal([volume], Compose([Spacingd("image", pixdim=(1.3, 1.2, 1.1), **options)]))


def test_a_large_image_takes_the_percentiles_of_numpy() -> None:
    generator = np.random.default_rng(0)
    voxels: NDArray[np.float32] = generator.normal(size=(101, 101, 101)).astype(np.float32)
    small = make_volume((4, 4, 4), (1.0, 1.0, 1.0), "axial", 0)
    volume = Volume(voxels, VolumeGeometry((101, 101, 101), small.geometry.patient_from_voxel), small.source, "CT")
    require_equal([volume], Compose([SCALINGS["percentiles"]()]))


def test_an_image_of_one_value_is_scaled_as_by_monai() -> None:
    one = make_volume((4, 5, 6), (1.0, 1.0, 1.0), "axial", 0)
    for value in (0.0, 7.0):
        volume = Volume(np.full((4, 5, 6), value, np.float32), one.geometry, one.source, "CT")
        for name, scaling in SCALINGS.items():
            if name != "percentiles":  # MONAI divides by zero there
                require_equal([volume], Compose([scaling()]))
