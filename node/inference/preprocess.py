"""A bundle's preprocessing on a volume in memory: what we recognise in few passes and in place, everything else by MONAI itself.

Recognised are `Orientationd` and `Spacingd` (together one interpolation, straight from the volume as it was read), `EnsureTyped`, and
the common scalings of intensity. Recognised means: of exactly that class, on the image alone, with options that are done equally.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from monai.config import USE_COMPILED
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Compose, EnsureTyped, MapTransform, Orientationd, Spacingd
from numpy.typing import NDArray

from node.domain.volume import Volume
from node.inference.intensity import rescaled
from node.inference.resample import Resampling, interpolate, parallel_axes, taps_of

RAS_FROM_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])

NEAREST_ALONG: Final = "radnode_nearest_along"
"""Under this name a transform says in `meta` that scores come back by the nearest voxel along one axis: a `NearestAlong`."""

_PADDINGS: Final = ("border", "zeros")


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """The one interpolation of a preprocessing: its way back is the way back of the labels."""

    resampling: Resampling
    """From the volume, turned as the bundle wants it; affines in RAS millimetres."""
    padding: str


@dataclass(frozen=True, slots=True)
class NearestAlong:
    """An axis of the network's grid along which scores are not mixed on their way back; one of the source runs along it."""

    axis: int
    scale: float
    """Voxels of the network's grid for one of the image, whose outer faces lie on its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a network sees."""

    image: torch.Tensor
    """(channels, i, j, k), float32, contiguous."""
    patient_from_index: NDArray[np.float64]
    """LPS millimetres of (i, j, k, 1)."""
    resampled: Resampled | None = None
    """None where there was no interpolation, or one that we did not do."""
    nearest_along: NearestAlong | None = None
    """None: linear along every axis."""


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """An image on its way. `values` may be a view of the volume as it was read: then nothing may be written into it."""

    key: str
    values: torch.Tensor
    affine: NDArray[np.float64]
    meta: Mapping[str, Any]
    flips: tuple[int, ...] = ()
    """Axes of `values` that still are the wrong way round."""
    is_ours: bool = False
    resampled: Resampled | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    """What transforms have put beside the image."""

    def settled(self) -> "_State":
        """Answers the same with memory of its own, the right way round."""
        if self.flips:
            axes = [axis + 1 for axis in self.flips]
            return replace(self, values=torch.flip(self.values, axes).contiguous(), flips=(), is_ours=True)
        if not self.is_ours:
            return replace(self, values=self.values.clone(memory_format=torch.contiguous_format), is_ours=True)
        return replace(self, values=self.values.contiguous())

    def as_data(self) -> dict[str, Any]:
        """Answers the image as transforms of MONAI take it."""
        image = MetaTensor(self.values, affine=torch.from_numpy(self.affine.copy()), meta=self._plain_meta())
        return {**self.others, self.key: image}

    def ghost(self) -> dict[str, Any]:
        """Answers an image of this shape and place without memory, to ask a transform what it would do."""
        image = MetaTensor(torch.zeros(1).expand(self.values.shape), affine=torch.from_numpy(self.affine.copy()), meta=self._plain_meta())
        return {self.key: image}

    def _plain_meta(self) -> dict[str, Any]:
        """Answers the metadata without the affine, which goes by itself: MONAI warns of two."""
        return {name: value for name, value in self.meta.items() if name != "affine"}


def prepare(images: Sequence[Volume], preprocessing: Callable[[dict[str, Any]], dict[str, Any]], key: str) -> Prepared:
    """Answers what the network sees of volumes that lie on one grid: each is a channel."""
    state = _as_read(images, key)
    if isinstance(preprocessing, Compose) and not preprocessing.lazy and preprocessing.map_items is True:
        for transform in _flat(preprocessing):
            state = _applied(state, transform)
    else:
        state = _by_monai(state, preprocessing)
    state = state.settled()
    image = state.values.float()
    return Prepared(image, RAS_FROM_LPS @ state.affine, state.resampled, state.meta.get(NEAREST_ALONG))


def as_meta_tensor(images: Sequence[Volume]) -> MetaTensor:
    """Answers volumes on one grid as MONAI reads them from NIfTI: (channels, columns, rows, slices), the affine in RAS millimetres."""
    tensor: MetaTensor = _as_read(images, "image").settled().as_data()["image"]
    return tensor


def _as_read(images: Sequence[Volume], key: str) -> _State:
    """As MONAI reads it from NIfTI: (channels, columns, rows, slices), the affine in RAS millimetres.

    `meta["modality"]` tells the bundle's own transforms what the values are (CT: Hounsfield units).
    """
    first = images[0]
    is_ours = len(images) > 1
    stored = np.stack([image.voxels for image in images]) if is_ours else first.voxels[None]
    values = torch.from_numpy(stored).permute(0, 3, 2, 1)
    affine = RAS_FROM_LPS @ first.geometry.patient_from_voxel[:, [2, 1, 0, 3]]
    meta = {
        "modality": first.modality,
        "original_affine": affine,
        "spatial_shape": np.asarray(values.shape[1:]),
        "original_channel_dim": "no_channel",
        "space": "RAS",
        "filename_or_obj": "",
    }
    return _State(key, values, affine, meta, is_ours=is_ours)


def _applied(state: _State, transform: Any) -> _State:
    if _is_on_image_alone(transform, state.key):
        if type(transform) is EnsureTyped and _changes_nothing(transform):
            return state
        if type(transform) is Orientationd and not transform.lazy:
            return _turned(state, transform)
        if type(transform) is Spacingd and not transform.lazy:
            return _resampled(state, transform) or _by_monai(state, transform)  # type: ignore[arg-type]
        change = rescaled(transform)
        if change is not None:
            settled = state.settled()
            change(settled.values)
            return settled
    return _by_monai(state, transform)


def _flat(compose: Compose) -> list[Any]:
    return list(compose.flatten().transforms)  # type: ignore[no-untyped-call]


def _is_on_image_alone(transform: Any, key: str) -> bool:
    return isinstance(transform, MapTransform) and tuple(transform.keys) == (key,)


def _changes_nothing(transform: EnsureTyped) -> bool:
    converter = transform.converter
    is_tensor = str(getattr(converter.data_type, "value", converter.data_type)) == "tensor"
    return is_tensor and transform.dtype in {(None,), (torch.float32,), (np.float32,)} and str(converter.device or "cpu") == "cpu"


def _by_monai(state: _State, transform: Callable[[dict[str, Any]], Any]) -> _State:
    data = transform(state.settled().as_data())
    image = data[state.key]
    others = {name: value for name, value in data.items() if name != state.key}
    if not isinstance(image, MetaTensor):
        return replace(state, values=torch.as_tensor(image), flips=(), is_ours=True, others=others)
    affine = np.asarray(image.affine, dtype=np.float64)
    known = None if type(transform) is Spacingd else state.resampled
    return replace(state, values=image.as_tensor(), affine=affine, meta=image.meta, flips=(), is_ours=True, resampled=known, others=others)


def _turned(state: _State, transform: Any) -> _State:
    """Turns the view, and notes which axes are to be flipped: nothing is moved yet."""
    if state.flips:
        state = state.settled()
    image = transform(state.ghost(), lazy=True)[state.key]
    matrix = np.asarray(image.pending_operations[-1]["lazy_affine"])[:3, :3]  # index before from index after
    order = np.abs(matrix).argmax(axis=0)
    flips = tuple(axis for axis in range(3) if matrix[order[axis], axis] < 0)
    values = state.values.permute(0, *(int(axis) + 1 for axis in order))
    return replace(state, values=values, flips=flips, affine=np.asarray(image.peek_pending_affine(), dtype=np.float64))


def _resampled(state: _State, transform: Any) -> _State | None:
    """Answers the image on the grid that `Spacingd` wants; None where we do not do that equally."""
    (mode,), (padding,) = transform.mode, transform.padding_mode
    mode, padding = str(getattr(mode, "value", mode)), str(getattr(padding, "value", padding))
    is_plain = transform.align_corners == (False,) and transform.dtype == (np.float64,) and transform.scale_extent == (False,)
    if mode != "bilinear" or padding not in _PADDINGS or not is_plain or transform.spacing_transform.recompute_affine or USE_COMPILED:
        return None
    if state.resampled is not None or state.values.dtype != torch.float32:
        return None
    size = tuple(state.values.shape[1:])
    image = transform(state.ghost(), lazy=True)[state.key]
    new_affine = np.asarray(image.peek_pending_affine(), dtype=np.float64)
    new_size = tuple(int(extent) for extent in image.peek_pending_shape())
    if new_size == size and (
        np.allclose(state.affine, new_affine, atol=AFFINE_TOL)
        or np.allclose(np.linalg.solve(state.affine, new_affine), np.eye(4), atol=AFFINE_TOL)
    ):
        return state  # MONAI leaves an image alone that has the spacing already
    resampling = Resampling(state.affine, size, new_affine, new_size)  # type: ignore[arg-type]
    axes = parallel_axes(resampling)
    if axes is None:
        return None
    taps = []
    for axis in range(3):
        along = taps_of(axes.coordinates[axis], size[axis], padding)
        taps.append(along.reversed(size[axis]) if axis in state.flips else along)
    values = interpolate(state.values, taps).permute(0, *(axes.axis_of.index(axis) + 1 for axis in range(3))).contiguous()
    return replace(
        state, values=values, affine=new_affine, flips=(), is_ours=True, resampled=Resampled(resampling, padding), meta=state.meta
    )
