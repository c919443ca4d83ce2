"""What a label map measures."""

import numpy as np

from node.codes import UCUM_CUBIC_CENTIMETRE, VOLUME
from node.domain.modelcard import ModelCard
from node.domain.result import Measurement, SegmentResult
from node.domain.volume import LabelMap

_MM3_PER_CM3 = 1000.0
_SIGNIFICANT_DIGITS = 6


def measure(label_map: LabelMap, card: ModelCard) -> tuple[SegmentResult, ...]:
    """Answers every structure of the card: present when a voxel bears its label, with its volume in cm3.

    A voxel is as thick as the slab its slice stands for, so the volume is right for uneven and for tilted slices.
    """
    voxels_per_plane = np.stack([np.bincount(plane.reshape(-1), minlength=256) for plane in label_map.labels])
    source = label_map.source
    pixel_area_mm2 = source.row_spacing_mm * source.column_spacing_mm
    voxel_mm3 = pixel_area_mm2 * source.slab_thicknesses_mm()
    volumes_cm3 = voxel_mm3 @ voxels_per_plane / _MM3_PER_CM3
    voxels = voxels_per_plane.sum(axis=0)
    return tuple(
        SegmentResult(
            definition=segment,
            present=bool(voxels[segment.label_value]),
            voxels=int(voxels[segment.label_value]),
            measurements=_volume(float(volumes_cm3[segment.label_value])) if voxels[segment.label_value] else (),
        )
        for segment in card.segments
    )


def _volume(volume_cm3: float) -> tuple[Measurement]:
    rounded = float(f"{volume_cm3:.{_SIGNIFICANT_DIGITS}g}")
    return (Measurement(concept=VOLUME, value=rounded, unit=UCUM_CUBIC_CENTIMETRE),)
