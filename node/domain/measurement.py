"""What a label map measures: volumes, diameters, and the attenuation of what lies inside."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.codes import (
    AREA,
    ATTENUATION_COEFFICIENT,
    LONG_AXIS,
    MAXIMUM_3D_DIAMETER,
    MEAN,
    NINETIETH_PERCENTILE,
    STANDARD_DEVIATION,
    TENTH_PERCENTILE,
    UCUM_CUBIC_CENTIMETRE,
    UCUM_HOUNSFIELD,
    UCUM_MILLIMETRE,
    UCUM_SQUARE_MILLIMETRE,
    VOLUME,
    Code,
)
from node.domain.extent import measure_extent
from node.domain.modelcard import ModelCard, SegmentDefinition
from node.domain.result import Measurement, SegmentResult
from node.domain.volume import SPACING_UNKNOWN, LabelMap, SourceGrid, Volume

_MM3_PER_CM3: Final = 1000.0
_SIGNIFICANT_DIGITS: Final = 6


def measure(label_map: LabelMap, card: ModelCard, volume: Volume | None = None) -> tuple[SegmentResult, ...]:
    """Answers every structure of the card: present when a voxel bears its label, with what the card wants measured of it.

    A voxel is as thick as the slab its slice stands for, so the volume is right for uneven and for tilted slices. On a single image
    (a radiograph) areas stand where elsewhere volumes do; where it states no pixel spacing, nothing is measured. `volume` holds
    the images that were analysed: without it, or where its values are no Hounsfield units, no attenuation is told.
    """
    voxels_per_plane = label_map.pixels_of_planes()
    source = label_map.source
    pixel_area_mm2 = source.row_spacing_mm * source.column_spacing_mm
    voxel_mm3 = pixel_area_mm2 * source.slab_thicknesses_mm()
    volumes_cm3 = voxel_mm3 @ voxels_per_plane / _MM3_PER_CM3
    voxels = voxels_per_plane.sum(axis=0)
    results = []
    for segment in card.segments:
        count = int(voxels[segment.label_value])
        measured = _measurements(segment, label_map, float(volumes_cm3[segment.label_value]), volume) if count else ()
        results.append(SegmentResult(segment, present=bool(count), voxels=count, measurements=tuple(measured)))
    return tuple(results)


def _measurements(segment: SegmentDefinition, label_map: LabelMap, volume_cm3: float, volume: Volume | None) -> Iterator[Measurement]:
    if volume is not None and any(note.code == SPACING_UNKNOWN for note in volume.notes):
        return
    is_flat = len(label_map.source.planes) == 1
    if "volume" in segment.measure and is_flat:
        pixel_mm2 = label_map.source.row_spacing_mm * label_map.source.column_spacing_mm
        yield _number(AREA, int(np.count_nonzero(label_map.mask(segment.label_value))) * pixel_mm2, UCUM_SQUARE_MILLIMETRE)
    elif "volume" in segment.measure:
        yield _number(VOLUME, volume_cm3, UCUM_CUBIC_CENTIMETRE)
    wants_attenuation = "attenuation" in segment.measure and volume is not None and volume.units == UCUM_HOUNSFIELD
    if not (wants_attenuation or "diameter" in segment.measure):
        return
    mask = label_map.mask(segment.label_value)
    if "diameter" in segment.measure:
        extent = measure_extent(mask, label_map.source)
        yield _number(LONG_AXIS, extent.in_plane_mm, UCUM_MILLIMETRE)
        if not is_flat:
            yield _number(MAXIMUM_3D_DIAMETER, extent.in_space_mm, UCUM_MILLIMETRE)
    if wants_attenuation and volume is not None:
        inside = values_inside(mask, label_map.source, volume)
        for derivation, value in (
            (MEAN, inside.mean()),
            (STANDARD_DEVIATION, inside.std()),
            (TENTH_PERCENTILE, np.percentile(inside, 10)),
            (NINETIETH_PERCENTILE, np.percentile(inside, 90)),
        ):
            yield _number(ATTENUATION_COEFFICIENT, float(value), UCUM_HOUNSFIELD, derivation)


def values_inside(mask: NDArray[np.bool_], source: SourceGrid, volume: Volume) -> NDArray[np.float64]:
    """Answers the values of the images at the voxels of a mask on the source grid.

    Read off the volume at the place of each voxel: where the slices were even, these are the pixels themselves; where they were
    not, they are blended with those of the next slice.
    """
    voxel_from_patient = np.linalg.inv(volume.geometry.patient_from_voxel)
    values = []
    for plane in np.flatnonzero(mask.any(axis=(1, 2))):
        pixels = np.argwhere(mask[plane])
        patient = source.patient_from_pixel(int(plane)) @ np.column_stack([pixels, np.ones(len(pixels))]).T
        places = (voxel_from_patient @ patient)[:3]
        last = np.array(volume.geometry.shape)[:, None] - 1
        row_column = np.clip(np.rint(places[1:]).astype(np.intp), 0, last[1:])
        height = np.clip(places[0], 0, last[0])
        below = np.minimum(np.floor(height + 1e-4).astype(np.intp), last[0])
        share = np.where(np.abs(height - below) < 1e-3, 0.0, height - below)
        above = np.minimum(below + 1, last[0])
        values.append((1 - share) * volume.voxels[below, *row_column] + share * volume.voxels[above, *row_column])
    return np.concatenate(values).astype(np.float64)


def _number(concept: Code, value: float, unit: Code, derivation: Code | None = None) -> Measurement:
    return Measurement(concept=concept, value=float(f"{value:.{_SIGNIFICANT_DIGITS}g}"), unit=unit, derivation=derivation)
