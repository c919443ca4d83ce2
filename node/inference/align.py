"""Volumes of one frame of reference laid on one grid: what a network with several input channels needs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.domain.volume import QualityNote, Volume
from node.errors import MixedFrameOfReference, NotAVolume

RESAMPLED_ON_FIRST: Final = "ResampledOnFirstChannel"
BEYOND_THE_IMAGES: Final = "ChannelsDoNotCover"

_COVERED_ENOUGH: Final = 0.5


def align(volumes: Sequence[Volume], names: Sequence[str]) -> tuple[Volume, ...]:
    """Answers `volumes` on the grid of the first: those that lie elsewhere are sampled there, linearly; 0 beyond their images.

    Raises
    ------
    MixedFrameOfReference
        When one has another frame of reference, or none: nothing then says how they lie to each other.
    NotAVolume
        When the images of one cover less than half of the first.
    """
    first = volumes[0]
    frame_of_reference = first.source.frame_of_reference_uid
    aligned = [first]
    for name, volume in zip(names[1:], volumes[1:], strict=True):
        if not frame_of_reference or volume.source.frame_of_reference_uid != frame_of_reference:
            raise MixedFrameOfReference(
                f"{names[0]} and {name} do not share a frame of reference: nothing says how they lie to each other."
            )
        aligned.append(volume if volume.geometry.is_close_to(first.geometry) else _sampled(volume, first, name))
    return tuple(aligned)


def _sampled(volume: Volume, first: Volume, name: str) -> Volume:
    voxels, covered = resample(volume, first)
    if covered < _COVERED_ENOUGH:
        raise NotAVolume(f"{name} covers only {100 * covered:.0f} % of the images that the others are laid on.")
    notes = [QualityNote(RESAMPLED_ON_FIRST, f"{name} was resampled on the grid of the first channel.")]
    if covered < 1:
        notes.append(QualityNote(BEYOND_THE_IMAGES, f"{name} covers {100 * covered:.0f} % of the grid; 0 was taken beyond it."))
    return replace(volume, voxels=voxels, geometry=first.geometry, source=first.source, notes=(*volume.notes, *notes))


def resample(volume: Volume, onto: Volume) -> tuple[NDArray[np.float32], float]:
    """Answers the values of `volume` at the voxels of `onto`, and which share of them lies inside its images."""
    index_from_index = np.linalg.inv(volume.geometry.patient_from_voxel) @ onto.geometry.patient_from_voxel
    matrix = torch.from_numpy(index_from_index)
    source = torch.from_numpy(volume.voxels)[None, None]
    slices, rows, columns = onto.geometry.shape
    row, column = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    result = np.empty(onto.geometry.shape, np.float32)
    inside_count = 0
    for index in range(slices):
        place = [matrix[axis, 0] * index + matrix[axis, 1] * row + matrix[axis, 2] * column + matrix[axis, 3] for axis in range(3)]
        inside = torch.ones((rows, columns), dtype=torch.bool)
        for along, size in zip(place, volume.voxels.shape, strict=True):
            inside &= (along >= -0.5) & (along <= size - 0.5)
        inside_count += int(inside.sum())
        scaled = [2 * along / max(size - 1, 1) - 1 for along, size in zip(place, volume.voxels.shape, strict=True)]
        grid = torch.stack(scaled[::-1], dim=-1).float()[None, None]
        sampled = torch.nn.functional.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)
        result[index] = (sampled[0, 0, 0] * inside).numpy()
    return result, inside_count / (slices * rows * columns)
