"""Models that nnU-Net v2 trained, as parts of a bundle: its preprocessing by plans.json, its network, the folds as one network.

Written after the behaviour of nnU-Net 2.8 and compared with it (`tests/inference/test_nnunet.py` says how). Differences that remain:
scores are summed up in single precision (nnU-Net: half), and images are not mirrored at test time.
"""

import importlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import MapTransform, Orientation
from numpy.typing import NDArray
from scipy import ndimage

from node.errors import BundleInvalid
from node.inference.nnunet_plans import (
    ARCHITECTURES,
    LAYER_KEYS,
    architecture_of,
    configuration_of,
    heads_of,
    is_anisotropic,
    nearest_axis_back,
    thick_axis,
)
from node.inference.preprocess import NEAREST_ALONG, NearestAlong
from node.inference.windows import Windows

EPSILON: Final = 1e-8
STEP: Final = 0.5
SIGMA: Final = 1 / 8
VALUE_SCALE: Final = 10.0

Image = NDArray[np.float32]


class PreprocessByPlansd(MapTransform):
    """Brings an image onto the grid that the network was trained on, as plans.json says; the affine follows."""

    def __init__(self, keys: Hashable, plans: str, configuration: str, orientation: str) -> None:
        """`orientation` is that of the training images, first axis first: RAS, LPS."""
        super().__init__(keys)
        self.plans: dict[str, Any] = json.loads(Path(plans).read_text(encoding="utf-8"))
        self.configuration = configuration_of(self.plans, configuration)
        self._turn = Orientation(axcodes=orientation, labels=None)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Answers the data with each image prepared."""
        prepared = dict(data)
        for key in self.key_iterator(prepared):
            prepared[key] = self._prepare(prepared[key])
        return prepared

    def _prepare(self, image: MetaTensor) -> MetaTensor:
        turned = cast("MetaTensor", self._turn(image))
        # nnU-Net counts axes from the last of the file to the first, as SimpleITK does, and then as the plans transpose them
        order = [2 - axis for axis in self.plans["transpose_forward"]]
        values = np.asarray(turned.as_tensor(), dtype=np.float32).transpose(0, *(axis + 1 for axis in order)).copy()
        affine = np.asarray(turned.affine, dtype=np.float64)[:, [*order, 3]]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        mask = nonzero_mask(values)
        low, high = _bounds(mask)
        box = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
        values, mask = values[(slice(None), *box)].copy(), mask[box]
        affine = affine @ _moved(low)
        for channel in range(len(values)):
            values[channel] = self._normalised(values[channel], mask, channel)
        wanted = [float(one) for one in self.configuration["spacing"]]
        wanted = wanted if len(wanted) == 3 else [float(spacing[0]), *wanted]
        size = np.array(values.shape[1:])
        new_size = np.array([round(old / new * extent) for old, new, extent in zip(spacing, wanted, size, strict=True)])
        values = resampled(values, new_size, spacing.tolist(), wanted)
        affine = affine @ _scaled(size / new_size)
        meta: dict[str, Any] = {"modality": image.meta.get("modality", "")}
        axis = nearest_axis_back(self.configuration, wanted, spacing.tolist())
        if axis is not None and not np.array_equal(size, new_size):
            meta[NEAREST_ALONG] = NearestAlong(axis, float(new_size[axis] / size[axis]))
        return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine), meta=meta)

    def _normalised(self, image: Image, mask: NDArray[np.bool_], channel: int) -> Image:
        scheme = self.configuration["normalization_schemes"][channel]
        if scheme == "CTNormalization":
            known = self.plans["foreground_intensity_properties_per_channel"][str(channel)]
            clipped = np.clip(image, known["percentile_00_5"], known["percentile_99_5"])
            return np.asarray((clipped - known["mean"]) / max(known["std"], EPSILON), dtype=np.float32)
        if scheme == "ZScoreNormalization":
            inside = mask if self.configuration["use_mask_for_norm"][channel] else np.ones_like(mask)
            scaled = image.copy()
            scaled[inside] = (image[inside] - image[inside].mean()) / max(float(image[inside].std()), EPSILON)
            return scaled
        if scheme == "RescaleTo01Normalization":
            shifted = image - image.min()
            return np.asarray(shifted / max(float(shifted.max()), EPSILON), dtype=np.float32)
        if scheme == "RGBTo01Normalization":
            return np.asarray(image / 255, dtype=np.float32)
        return image  # NoNormalization: configuration_of knows no other


def nonzero_mask(values: Image) -> NDArray[np.bool_]:
    """Answers where any channel is not zero, holes filled."""
    return np.asarray(ndimage.binary_fill_holes((values != 0).any(axis=0)), dtype=np.bool_)


def _bounds(mask: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """The box around a mask; all of it where the mask is empty."""
    low, high = [], []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low.append(int(along[0]) if along.size else 0)
        high.append(int(along[-1]) + 1 if along.size else mask.shape[axis])
    return low, high


def _moved(low: Sequence[int]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = low
    return matrix


def _scaled(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Old index from new index, where the outer faces of the image stay where they are."""
    matrix = np.diag([*factors, 1.0])
    matrix[:3, 3] = (factors - 1) / 2
    return matrix


def resampled(values: Image, size: NDArray[np.int64], spacing: Sequence[float], wanted: Sequence[float]) -> Image:
    """Answers (channels, …) on a grid of `size` voxels: cubic; where slices are thick, cubic within them and nearest across."""
    if tuple(values.shape[1:]) == tuple(size):
        return values
    axis = thick_axis(spacing if is_anisotropic(spacing) else wanted)
    if axis is None:
        return np.stack([_resized(image, tuple(size)) for image in values]).astype(np.float32)
    flat = tuple(extent for place, extent in enumerate(size) if place != axis)
    channels = []
    for image in values:
        slices = [_resized(one, flat) for one in np.moveaxis(image, axis, 0)]
        nearest = np.floor(image.shape[axis] / size[axis] * (np.arange(size[axis]) + 0.5)).astype(
            int
        )  # - 0.5 of the centre, + 0.5 to round
        nearest = np.clip(nearest, 0, image.shape[axis] - 1)
        channels.append(np.moveaxis(np.stack([slices[place] for place in nearest]), 0, axis))
    return np.stack(channels).astype(np.float32)


def _resized(image: Image, size: tuple[int, ...]) -> NDArray[np.float64]:
    """Cubic, outer faces on outer faces; nothing leaves the range of the image's own values."""
    if image.shape == size:
        return image.astype(np.float64)
    factors = [new / old for new, old in zip(size, image.shape, strict=True)]
    zoomed = ndimage.zoom(image.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    return np.asarray(np.clip(zoomed, image.min(), image.max()))


class EvenWindows(SlidingWindowInferer):
    """nnU-Net's windows: spread evenly over the image, half a window apart at most, weighted by its Gaussian."""

    def lay_windows(self, size: Sequence[int]) -> Windows:
        """Answers the windows of an image of this size."""
        roi = tuple(int(extent) for extent in np.atleast_1d(self.roi_size))
        missing = [max(window - extent, 0) for window, extent in zip(roi, size, strict=True)]
        return Windows(
            size=tuple(size),
            before=tuple(more // 2 for more in missing),
            after=tuple(more - more // 2 for more in missing),
            roi=roi,
            starts=tuple(_even_starts(extent + more, window) for extent, more, window in zip(size, missing, roi, strict=True)),
            weights=_gaussian(roi),
        )


def _even_starts(extent: int, window: int) -> tuple[int, ...]:
    count = int(np.ceil((extent - window) / max(window * STEP, 1))) + 1
    return tuple(round(place * (extent - window) / max(count - 1, 1)) for place in range(count))


def _gaussian(roi: Sequence[int]) -> torch.Tensor:
    """A Gaussian of an eighth of the window around its middle voxel; in half precision, as nnU-Net has it, and nowhere zero."""
    peak = np.zeros(roi)
    peak[tuple(extent // 2 for extent in roi)] = 1.0
    weights = ndimage.gaussian_filter(peak, [extent * SIGMA for extent in roi], mode="constant")
    halved = torch.from_numpy(weights / weights.max() * VALUE_SCALE).to(torch.float16)
    halved[halved == 0] = halved[halved > 0].min()
    return halved.float()


class FoldEnsemble(torch.nn.Module):
    """Several networks of one kind; their scores are averaged. Networks of slices see windows that are one slice thick."""

    def __init__(self, folds: Sequence[torch.nn.Module], *, of_slices: bool = False) -> None:
        """All of them take the same image."""
        super().__init__()
        self.of_slices = of_slices
        self.folds = torch.nn.ModuleList(folds)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answers the mean of the folds' scores."""
        image = image[:, :, 0] if self.of_slices else image
        total: torch.Tensor = self.folds[0](image)
        for fold in self.folds[1:]:
            total = total + fold(image)
        total = total / len(self.folds)
        return total[:, :, None] if self.of_slices else total


def build_network(plans: str, dataset: str, configuration: str, folds: int = 1) -> torch.nn.Module:
    """Answers the network of a trained folder, its folds as one.

    Raises BundleInvalid when its architecture is none that radnode knows, or its package is not installed.
    """
    table = json.loads(Path(plans).read_text(encoding="utf-8"))
    described = json.loads(Path(dataset).read_text(encoding="utf-8"))
    settings = configuration_of(table, configuration)
    name, arguments = architecture_of(settings)
    channels = described.get("channel_names") or described["modality"]
    layers: dict[str, Any] = {
        key: getattr(torch.nn, arguments[key]) if arguments.get(key) else None for key in LAYER_KEYS if key in arguments
    }
    arguments |= {"deep_supervision": False, **layers}
    kind = _architecture(name)
    made = [kind(input_channels=len(channels), num_classes=heads_of(described), **arguments) for _ in range(folds)]
    return FoldEnsemble(made, of_slices=len(settings["patch_size"]) == 2)


def _architecture(name: str) -> Any:
    try:
        return getattr(importlib.import_module(ARCHITECTURES[name]), name)
    except ImportError as error:
        raise BundleInvalid("networks of nnU-Net need the package dynamic-network-architectures → pip install 'radnode[nnunet]'") from error
    except AttributeError as error:
        raise BundleInvalid(f"the installed dynamic-network-architectures has no {name}") from error
