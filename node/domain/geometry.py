"""From scattered images to one volume: their order, whether they form a volume, and on which grid.

Decides, never touches a pixel: `node.inference.stack` carries a plan out. Positions are LPS millimetres (PS3.3 C.7.6.2.1.1).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.domain.spacing import Gap, Irregular, MissingSlicesPattern, Regular, Spacing, Uneven, classify_spacing
from node.domain.volume import Plane, QualityNote, SourceGrid, VolumeGeometry
from node.errors import (
    DuplicatePositions,
    IrregularSpacing,
    MissingGeometry,
    MissingSlices,
    MixedFrameOfReference,
    MixedGrid,
    MixedOrientation,
    TooFewSlices,
)

MIN_SLICES: Final = 2
"""Fewer images are no volume. A model card may ask for more."""

UNIT_VECTOR_TOLERANCE: Final = 2e-3
"""Direction cosines of length 1 and at right angles, up to rounding to three decimals; else the header is malformed."""

ORIENTATION_TOLERANCE_DEG: Final = 0.1
"""Slices are parallel up to this angle: 0.4 mm at the edge of a 500 mm image."""

PIXEL_SPACING_TOLERANCE: Final = 1e-3
"""Share by which the Pixel Spacing of two slices may differ: half a pixel over 500."""

DUPLICATE_TOLERANCE_MM: Final = 0.01
"""Slices nearer than this along the normal lie at one place."""

TILT_TOLERANCE_DEG: Final = 0.1
"""A smaller angle between normal and steps stays in the affine of the volume; above, the stack is resampled."""

MAX_TILT_DEG: Final = 45.0
"""Gantries tilt up to 30 degrees. A stack more slanted than this is no scan of one region."""

SIDEWAYS_TOLERANCE_PIXELS: Final = 0.25
"""How far a slice may lie sideways from the straight line of the others before the stack is resampled."""

MAX_MISSING_IN_ONE_GAP: Final = 1
"""Slices in a row that may be interpolated: a finding between two neighbours of one lost slice still touches one of them."""

MAX_MISSING_SHARE: Final = 0.05
"""Share of the expected slices that may be interpolated."""

MAX_SLICES_GROWTH: Final = 4
"""Resampling takes the finest spacing of a stack, but makes at most so many slices of one."""

UNSPOKEN_TRAITS: Final = frozenset({"acquisition time"})
"""Traits whose values stay out of messages: dates and times belong to the patient."""

VAGUE_TRAITS: Final = frozenset({"dimension index", "acquisition time", "acquisition number"})
"""Traits worth a word only where no other differs."""

GANTRY_TILT_RESAMPLED: Final = "GantryTiltResampled"
UNEVEN_SPACING_RESAMPLED: Final = "UnevenSpacingResampled"
SHIFTED_SLICES_RESAMPLED: Final = "ShiftedSlicesResampled"
MISSING_SLICE_INTERPOLATED: Final = "MissingSliceInterpolated"


@dataclass(frozen=True, slots=True)
class ImagePlane:
    """What the header of one image (or frame) says of its plane; None where it says nothing readable."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    rows: int
    columns: int
    image_position_patient: tuple[float, float, float] | None
    image_orientation_patient: tuple[float, float, float, float, float, float] | None
    pixel_spacing_mm: tuple[float, float] | None
    """(between rows, between columns)"""
    frame_of_reference_uid: str | None
    name: str
    """How messages call it, e.g. `image 12`."""
    traits: tuple[tuple[str, str], ...] = ()
    """What may tell images at one place apart, in words, e.g. (("echo time", "3.2"), ("b-value", "800"))."""


@dataclass(frozen=True, slots=True, eq=False)
class VolumePlan:
    """The grid of the volume, and what must be said about its making."""

    geometry: VolumeGeometry
    is_identity: bool
    """True when the source voxels, in order, are the voxels of the volume."""
    notes: tuple[QualityNote, ...] = ()


@dataclass(frozen=True, slots=True)
class _Placed:
    """An image whose header says all that a volume needs."""

    image: ImagePlane
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing_mm: tuple[float, float]
    frame_of_reference_uid: str


def order_planes(images: Sequence[ImagePlane]) -> tuple[SourceGrid, tuple[int, ...]]:
    """Answers the grid of the images, ascending along the normal, and the order: `images[order[k]]` is plane k.

    The answer does not depend on the order of `images`. Raises NotAVolume in one of its kinds.
    """
    if len(images) < MIN_SLICES:
        raise TooFewSlices(f"The series has {len(images)} image(s); a volume needs at least {MIN_SLICES}.")
    placed = _placed(images)
    _require_one_frame_of_reference(placed)
    normal = _common_normal(placed)
    _require_one_grid(placed)
    distances = np.array([image.position for image in placed]) @ normal
    order = tuple(int(index) for index in np.argsort(distances, kind="stable"))
    ordered = [placed[index] for index in order]
    _require_distinct_places([image.image for image in ordered], distances[list(order)])
    first = ordered[0]
    planes = (Plane(p.image.sop_class_uid, p.image.sop_instance_uid, p.position, p.image.frame_number) for p in ordered)
    grid = SourceGrid(
        rows=first.image.rows,
        columns=first.image.columns,
        row_spacing_mm=first.pixel_spacing_mm[0],
        column_spacing_mm=first.pixel_spacing_mm[1],
        image_orientation_patient=first.orientation,
        planes=tuple(planes),
        frame_of_reference_uid=first.frame_of_reference_uid,
    )
    return grid, order


def plan_volume(source: SourceGrid, names: Sequence[str] = ()) -> VolumePlan:
    """Answers the grid of the volume that `source` becomes.

    Equal steps without tilt: the source itself. Tilt, sideways shifts, zones of different spacing, or a missing slice here and
    there: a grid at right angles that keeps the in-plane spacing and orientation and covers the whole stack, with notes.
    `names` are the images in the order of `source.planes`, for messages. Raises MissingSlices or IrregularSpacing.
    """
    names = names or [f"slice {index + 1}" for index in range(len(source.planes))]
    spacing = classify_spacing(source.distances_mm)
    notes = _spacing_notes(spacing, source, names)
    tilt_deg = gantry_tilt_deg(source)
    if tilt_deg > MAX_TILT_DEG:
        raise IrregularSpacing(
            f"Each slice is shifted sideways against the last, by {tilt_deg:.0f} degrees overall; up to {MAX_TILT_DEG:.0f} "
            "degrees can be a gantry tilt."
        )
    is_tilted = tilt_deg > TILT_TOLERANCE_DEG
    sideways = _sideways_from_line_pixels(source)
    is_shifted = sideways > SIDEWAYS_TOLERANCE_PIXELS
    if isinstance(spacing, Regular) and not is_tilted and not is_shifted:
        return VolumePlan(_regular_geometry(source), is_identity=True)
    geometry = _covering_geometry(source, spacing, upright=is_tilted or is_shifted)
    grid_words = f"Resampled by linear interpolation to slices every {geometry.spacing_mm[0]:.2f} mm at right angles."
    if is_tilted:
        notes += (QualityNote(GANTRY_TILT_RESAMPLED, f"The slices are tilted by {tilt_deg:.1f} degrees (gantry tilt). {grid_words}"),)
    if is_shifted:
        text = f"Slices are shifted sideways against each other by up to {sideways:.1f} pixels. {grid_words}"
        notes += (QualityNote(SHIFTED_SLICES_RESAMPLED, text),)
    return VolumePlan(geometry, is_identity=False, notes=notes)


def gantry_tilt_deg(source: SourceGrid) -> float:
    """Answers the angle between the slice normal and the way from the first to the last Image Position (Patient), in degrees."""
    way = source.positions_mm[-1] - source.positions_mm[0]
    along = float(way @ source.normal)
    return math.degrees(math.atan2(float(np.linalg.norm(way - along * source.normal)), along))


# ── checks ──────────────────────────────────────────────────────────────────


def _placed(images: Sequence[ImagePlane]) -> list[_Placed]:
    """Answers the images with whole geometry; raises MissingGeometry where one lacks a part."""
    result = []
    faults: dict[str, list[str]] = {}
    for image in images:
        position, orientation = image.image_position_patient, image.image_orientation_patient
        spacing, frame_of_reference_uid = image.pixel_spacing_mm, image.frame_of_reference_uid
        if position is None:
            faults.setdefault("Image Position (Patient)", []).append(image.name)
        elif orientation is None or not _is_orientation(orientation):
            faults.setdefault("Image Orientation (Patient)", []).append(image.name)
        elif spacing is None or min(spacing) <= 0:
            faults.setdefault("Pixel Spacing", []).append(image.name)
        elif not frame_of_reference_uid:
            faults.setdefault("Frame of Reference UID", []).append(image.name)
        else:
            result.append(_Placed(image, position, orientation, spacing, frame_of_reference_uid))
    if faults:
        attribute, bad = next(iter(faults.items()))
        raise MissingGeometry(f"{attribute} is absent or malformed in {len(bad)} of {len(images)} images (for instance {bad[0]}).")
    return result


def _is_orientation(cosines: tuple[float, ...]) -> bool:
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    faults = (abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column))
    return bool(max(faults) <= UNIT_VECTOR_TOLERANCE)


def _require_one_frame_of_reference(images: Sequence[_Placed]) -> None:
    count = len({image.frame_of_reference_uid for image in images})
    if count > 1:
        raise MixedFrameOfReference(f"The {len(images)} images belong to {count} frames of reference: their positions cannot be compared.")


def _common_normal(images: Sequence[_Placed]) -> NDArray[np.float64]:
    """Answers the unit normal of the commonest orientation; raises MixedOrientation unless all images share it."""
    orientations = np.array([image.orientation for image in images])
    counts = Counter(tuple(row) for row in np.round(orientations, 3).tolist())
    commonest = max(sorted(counts), key=counts.__getitem__)
    reference = np.array(min(row for row in orientations.tolist() if tuple(np.round(row, 3).tolist()) == commonest))
    angles = np.maximum(_angles_deg(orientations[:, :3], reference[:3]), _angles_deg(orientations[:, 3:], reference[3:]))
    crooked = int(np.count_nonzero(angles > ORIENTATION_TOLERANCE_DEG))
    if crooked:
        raise MixedOrientation(
            f"The slices are not parallel: {crooked} of {len(images)} images are turned by up to {angles.max():.1f} degrees "
            f"against the others (for instance {images[int(angles.argmax())].image.name})."
        )
    normal = np.cross(reference[:3], reference[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def _angles_deg(vectors: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    chord = np.linalg.norm(unit - reference / np.linalg.norm(reference), axis=1)
    return np.asarray(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))


def _require_one_grid(images: Sequence[_Placed]) -> None:
    sizes = Counter((image.image.rows, image.image.columns) for image in images)
    if len(sizes) > 1:
        words = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common(3))
        raise MixedGrid(f"The images differ in size (rows x columns): {words}.")
    spacings = np.array([image.pixel_spacing_mm for image in images])
    smallest, largest = spacings.min(axis=0), spacings.max(axis=0)
    if np.any(largest - smallest > PIXEL_SPACING_TOLERANCE * smallest):
        raise MixedGrid(
            f"The images differ in Pixel Spacing: {smallest[0]:.4f} x {smallest[1]:.4f} mm to {largest[0]:.4f} x {largest[1]:.4f} mm."
        )


def _require_distinct_places(ordered: Sequence[ImagePlane], distances: NDArray[np.float64]) -> None:
    same = np.flatnonzero(np.diff(distances) < DUPLICATE_TOLERANCE_MM)
    if len(same) == 0:
        return
    place = distances[same[0]]
    crowd = [image for image, distance in zip(ordered, distances, strict=True) if abs(distance - place) < DUPLICATE_TOLERANCE_MM]
    places = len(ordered) - len(same)
    raise DuplicatePositions(
        f"{len(ordered)} images lie at only {places} places: {len(crowd)} images at one place (for instance {crowd[0].name} and "
        f"{crowd[1].name}). {_difference(crowd)}"
    )


def _difference(crowd: Sequence[ImagePlane]) -> str:
    """Answers in words what tells images at one place apart."""
    values: dict[str, set[str]] = {}
    for image in crowd:
        for trait, value in image.traits:
            values.setdefault(trait, set()).add(value)
    differing = [trait for trait, found in values.items() if len(found) > 1]
    telling = [trait for trait in differing if trait not in VAGUE_TRAITS] or differing
    if not differing:
        return "Nothing in their headers tells them apart."
    words = [trait if trait in UNSPOKEN_TRAITS else f"{trait} ({', '.join(sorted(values[trait])[:4])})" for trait in telling[:3]]
    return f"They differ in {' and '.join(words)}: send one stack per series."


# ── plans ───────────────────────────────────────────────────────────────────


def _spacing_notes(spacing: Spacing, source: SourceGrid, names: Sequence[str]) -> tuple[QualityNote, ...]:
    """Answers what to say about a pattern of steps; raises where it is no volume."""
    match spacing:
        case Regular():
            return ()
        case Irregular(smallest, largest):
            raise IrregularSpacing(
                f"The distances between the slices follow no pattern: {smallest:.2f} mm to {largest:.2f} mm over "
                f"{len(source.planes)} slices."
            )
        case MissingSlicesPattern(spacing_mm, gaps):
            return _missing_notes(gaps, source, names, f"a slice every {spacing_mm:.2f} mm")
        case Uneven(zones, gaps):
            words = ", ".join(f"{names[z.first]} to {names[z.last]} every {z.spacing_mm:.2f} mm" for z in zones[:4])
            text = f"The slice spacing is uneven ({words}). Resampled by linear interpolation to equal steps."
            note = QualityNote(UNEVEN_SPACING_RESAMPLED, text)
            return (note, *(_missing_notes(gaps, source, names, "slices as evenly spaced as their neighbours")))


def _missing_notes(gaps: Sequence[Gap], source: SourceGrid, names: Sequence[str], pattern: str) -> tuple[QualityNote, ...]:
    if not gaps:
        return ()
    missing = sum(gap.missing for gap in gaps)
    found = len(source.planes)
    where = ", ".join(f"between {names[gap.after]} and {names[gap.after + 1]}" for gap in gaps[:3])
    where += f" and {len(gaps) - 3} more gaps" if len(gaps) > 3 else ""
    facts = f"{missing} slice(s) missing: {found + missing} expected ({pattern}), {found} found; {where}."
    widest = max(gap.missing for gap in gaps)
    if widest > MAX_MISSING_IN_ONE_GAP or missing > MAX_MISSING_SHARE * (found + missing):
        raise MissingSlices(
            f"{facts} At most {MAX_MISSING_IN_ONE_GAP} in a row and {MAX_MISSING_SHARE:.0%} of the stack are interpolated: "
            "send the series again, complete."
        )
    return (QualityNote(MISSING_SLICE_INTERPOLATED, f"{facts} Interpolated from the neighbours.", degraded=True),)


def _sideways_from_line_pixels(source: SourceGrid) -> float:
    """Answers how far a slice lies from the straight line through the first and the last, within the plane, in pixels."""
    positions, distances = source.positions_mm, source.distances_mm
    share = (distances - distances[0]) / (distances[-1] - distances[0])
    offsets = positions - (positions[0] + share[:, None] * (positions[-1] - positions[0]))
    rows = offsets @ source.column_cosine / source.row_spacing_mm
    columns = offsets @ source.row_cosine / source.column_spacing_mm
    return float(max(np.abs(rows).max(), np.abs(columns).max()))


def _regular_geometry(source: SourceGrid) -> VolumeGeometry:
    step = (source.positions_mm[-1] - source.positions_mm[0]) / (len(source.planes) - 1)
    return VolumeGeometry(source.shape, _affine(source, step, source.positions_mm[0]))


def _covering_geometry(source: SourceGrid, spacing: Spacing, *, upright: bool) -> VolumeGeometry:
    """Answers a regular grid from the first to the last slice.

    `upright` grids ascend along the normal and grow in the plane until every slice fits; others follow the positions.
    """
    positions = source.positions_mm
    distances = source.distances_mm
    extent = float(distances[-1] - distances[0])
    slices = _slices_to_cover(extent, spacing, len(positions))
    if not upright:
        step = (positions[-1] - positions[0]) / (slices - 1)
        return VolumeGeometry((slices, source.rows, source.columns), _affine(source, step, positions[0]))
    offsets = positions - positions[0]
    rows = offsets @ source.column_cosine / source.row_spacing_mm
    columns = offsets @ source.row_cosine / source.column_spacing_mm
    origin = (
        positions[0]
        + rows.min() * source.row_spacing_mm * source.column_cosine
        + columns.min() * source.column_spacing_mm * source.row_cosine
    )
    rows_needed = source.rows + math.ceil(float(np.ptp(rows)) - SIDEWAYS_TOLERANCE_PIXELS)
    columns_needed = source.columns + math.ceil(float(np.ptp(columns)) - SIDEWAYS_TOLERANCE_PIXELS)
    step = source.normal / np.linalg.norm(source.normal) * extent / (slices - 1)
    return VolumeGeometry((slices, rows_needed, columns_needed), _affine(source, step, origin))


def _slices_to_cover(extent_mm: float, spacing: Spacing, found: int) -> int:
    match spacing:
        case MissingSlicesPattern(_, gaps):
            return found + sum(gap.missing for gap in gaps)
        case Uneven(zones, _):
            finest = min(zone.spacing_mm for zone in zones)
            return min(math.ceil(extent_mm / finest - 1e-3) + 1, MAX_SLICES_GROWTH * found)
        case _:
            return found


def _affine(source: SourceGrid, step: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers `patient_from_voxel` for (slice, row, column, 1)."""
    matrix = np.eye(4)
    matrix[:3, 0] = step
    matrix[:3, 1] = source.column_cosine * source.row_spacing_mm
    matrix[:3, 2] = source.row_cosine * source.column_spacing_mm
    matrix[:3, 3] = origin
    return matrix
