"""The Segmentation object: what was outlined, on the pixels of the source (PS3.3 A.51, C.8.20).

Segments are the structures that were found, numbered from 1 in the order of the model card. A structure that was not found
is no segment: an item without frames is drawn by some viewers as an empty outline, and the SR says "absent" in words.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat, format_number_as_ds

from node.domain.modelcard import SegmentDefinition
from node.domain.result import Result
from node.domain.volume import LabelMap, SourceGrid
from node.errors import EvidenceError
from node.evidence.context import EvidenceContext
from node.evidence.frames import (
    LABELS,
    PER_FRAME_FUNCTIONAL_GROUPS,
    Frame,
    frames_of,
    functional_groups,
    labels_of_planes,
    overlaps,
    pack_frames,
)
from node.evidence.header import is_lossy, normalise_source
from node.evidence.projection import STAND_IN, leave_out_place
from node.evidence.sop_common import (
    algorithm_parameters,
    code_item,
    coded,
    equipment,
    finished,
    long_string,
    series_description,
    series_number,
)

CONTENT_LABEL: Final = "AI_SEGMENTATION"
_EVEN: Final = 0.01
"""Planes are evenly spaced when no step differs from the others by more than this part of it."""

SERIES_OFFSETS: Final = {"seg": 1, "labelmap": 9}
"""Role → where its series sorts behind the source."""

_SMALL: Final = 16
"""Rows and columns of the plane of which the header is made: a pixel for each of 255 segments."""


def encode_segmentation(result: Result, sources: Sequence[Dataset], context: EvidenceContext, role: str = "seg") -> Dataset:
    """Answers the BINARY Segmentation of a result, on the grid of its source.

    `sources` are the headers of the images of `result.label_map.source.planes`, in any order; others are passed over. One that
    stands in the place of a label map has another `role`, from which its UIDs derive.

    Raises
    ------
    EvidenceError
        If no voxel is segmented (send no SEG then), a label is not on the card, or a source image is missing.
    """
    if result.label_map is None:
        raise EvidenceError("a result without a label map has no segmentation")
    grid = result.label_map.source
    images = images_of_planes(sources, grid)
    segments = segments_of(result)
    found = labels_of_planes(result.label_map)
    _require_named(found, segments)
    frames = frames_of(found, [segment.label_value for segment in segments])
    kind = _Kind(SegmentationTypeValues.BINARY, role, "SEG", SERIES_OFFSETS[role])
    made = _header(kind, images, grid, result, context)
    made.SegmentsOverlap = "YES" if overlaps(result.label_map) else "NO"
    made.NumberOfFrames = len(frames)
    made.Rows, made.Columns = grid.rows, grid.columns
    _cite(made, images)
    made[PER_FRAME_FUNCTIONAL_GROUPS] = functional_groups(frames, grid, _derivations(made, grid))
    made.PixelData = pack_frames(result.label_map, frames)
    made["PixelData"].VR = "OB"
    _space_planes(made, frames, grid)
    _name_dimensions(made, context, role)
    if not grid.frame_of_reference_uid:
        leave_out_place(made, images[0])
    _tell_losses(made, images)
    _tell_body_part(made, images[0])
    made.ContentCreatorName = None  # type 2, and no person made it
    return finished(made, images[0], result, context)


def encode_label_map(result: Result, sources: Sequence[Dataset], context: EvidenceContext) -> Dataset:
    """Answers the LABELMAP Segmentation of a result (PS3.3 A.51, Sup 243): a pixel holds a Segment Number, 0 is the background.

    Segments, colours and Tracking UIDs are those of `encode_segmentation`; it raises the same, and where structures overlap.
    """
    if result.label_map is None:
        raise EvidenceError("a result without a label map has no segmentation")
    if overlaps(result.label_map):
        raise EvidenceError("structures overlap: a pixel of a label map belongs to one of them alone")
    grid = result.label_map.source
    images = images_of_planes(sources, grid)
    segments = segments_of(result)
    _require_named(labels_of_planes(result.label_map), segments)
    numbers = _segment_numbers(result.label_map, segments)
    kind = _Kind(SegmentationTypeValues.LABELMAP, "labelmap", "LABELMAP", SERIES_OFFSETS["labelmap"])
    made = _by_highdicom(kind, _stand_ins(images, grid, _slice_thickness_mm(images[0], grid)), numbers, result, context, images[0])
    background, *described = made.SegmentSequence
    made.SegmentSequence = [*described, background]  # last: OHIF takes names and colours by place, not by number
    made["PixelPaddingValue"].VR = "US"  # highdicom leaves it open
    size = int(made.NumberOfFrames) * grid.rows * grid.columns
    made.PixelData = made.PixelData[:size] + b"\0" * (size % 2)  # it pads with the character 0
    made["PixelData"].VR = "OB"
    _number_frames(made, grid)
    _name_dimensions(made, context, "labelmap")
    if not grid.frame_of_reference_uid:
        leave_out_place(made, images[0])
    _tell_losses(made, images)
    _tell_body_part(made, images[0])
    made.ContentCreatorName = None  # type 2, and no person made it
    return finished(made, images[0], result, context)


def _segment_numbers(label_map: LabelMap, segments: Sequence[SegmentDefinition]) -> NDArray[np.uint8]:
    """Answers the Segment Number of each pixel; no two structures share one."""
    number_of_value = np.zeros(LABELS, dtype=np.uint8)
    for number, segment in enumerate(segments, 1):
        number_of_value[label_map.values_of(segment.label_value)] = number
    return number_of_value[label_map.labels]


def _number_frames(made: Dataset, grid: SourceGrid) -> None:
    """Cites the true frames of a multi-frame source: highdicom counts the frames of the stand-in."""
    numbers = [plane.frame_number for plane in grid.planes]
    if numbers[0] is None:
        return
    for frame in made.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1]


def _header(kind: "_Kind", images: Sequence[Dataset], grid: SourceGrid, result: Result, context: EvidenceContext) -> Dataset:
    """Answers everything but the frames: the Segmentation of one small plane that holds a pixel of each segment."""
    plane = replace(grid, planes=grid.planes[:1], rows=_SMALL, columns=_SMALL)
    pixels = np.zeros((1, _SMALL, _SMALL), dtype=np.uint8)
    segments = len(segments_of(result))
    pixels.reshape(-1)[:segments] = np.arange(1, segments + 1)
    return _by_highdicom(kind, _stand_ins(images[:1], plane, _slice_thickness_mm(images[0], grid)), pixels, result, context, images[0])


@dataclass(frozen=True, slots=True)
class _Kind:
    """What tells the two kinds of Segmentation apart."""

    type: SegmentationTypeValues
    role: str
    word: str
    series_offset: int


def _by_highdicom(
    kind: _Kind, stand_ins: Sequence[Dataset], pixels: NDArray[np.uint8], result: Result, context: EvidenceContext, source: Dataset
) -> Dataset:
    made = Dataset()
    made.update(
        Segmentation(
            source_images=stand_ins,
            pixel_array=pixels,
            segmentation_type=kind.type,
            segment_descriptions=[_description(number, one, result, context) for number, one in enumerate(segments_of(result), 1)],
            series_instance_uid=context.uid(kind.role, "series"),
            series_number=series_number(source, kind.series_offset),
            sop_instance_uid=context.uid(kind.role, "instance"),
            instance_number=1,
            content_label=CONTENT_LABEL,
            content_description=long_string(f"AI result, not verified: {result.card.title} {result.card.version}"),
            series_description=series_description(result.card, kind.word),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **equipment(context),
        )
    )
    return made


def _cite(made: Dataset, images: Sequence[Dataset]) -> None:
    """Names every image of the grid as source: the header was made of the first alone."""
    for holder, keyword in ((made.ReferencedSeriesSequence[0], "ReferencedInstanceSequence"), (made, "SourceImageSequence")):
        (first,) = holder[keyword].value
        items = []
        for image in images:
            item = deepcopy(first)
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = str(image.SOPClassUID), str(image.SOPInstanceUID)
            items.append(item)
        setattr(holder, keyword, items)


def _derivations(made: Dataset, grid: SourceGrid) -> list[Dataset]:
    """Answers of each plane from which image, or frame of it, its segments are derived."""
    first = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    derivations = []
    for plane in grid.planes:
        derivation = deepcopy(first)
        source = derivation.SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = plane.sop_instance_uid
        if plane.frame_number is not None:
            source.ReferencedFrameNumber = plane.frame_number
        derivations.append(derivation)
    return derivations


def segments_of(result: Result) -> tuple[SegmentDefinition, ...]:
    """Answers the structures that were found: Segment Number n is the n-th of them."""
    return tuple(segment.definition for segment in result.segments if segment.present)


def tracking_of(segment: SegmentDefinition, result: Result, context: EvidenceContext) -> tuple[str, str]:
    """Answers Tracking ID and Tracking UID of a structure: the same in SEG and SR."""
    return f"{result.card.name} {segment.label}", context.uid("tracking", str(segment.label_value))


def images_of_planes(sources: Sequence[Dataset], grid: SourceGrid) -> list[Dataset]:
    """Answers the source images in the order of the planes, each once."""
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    missing = {plane.sop_instance_uid for plane in grid.planes} - set(by_uid)
    if missing:
        raise EvidenceError(f"the headers of {len(missing)} source images are missing, first {min(missing)}")
    return [by_uid[uid] for uid in dict.fromkeys(plane.sop_instance_uid for plane in grid.planes)]


def _require_named(found: NDArray[np.bool_], segments: Sequence[SegmentDefinition]) -> None:
    """Refuses a label map that holds other labels than the result names, or none."""
    held = {int(label) for label in np.flatnonzero(found.any(axis=0)) if label}
    if held != {segment.label_value for segment in segments}:
        raise EvidenceError(f"the label map holds the labels {sorted(held)}, the result names others")
    if not held:
        raise EvidenceError("no voxel is segmented")


def _description(number: int, segment: SegmentDefinition, result: Result, context: EvidenceContext) -> SegmentDescription:
    card = result.card
    tracking_id, tracking_uid = tracking_of(segment, result, context)
    algorithm = AlgorithmIdentificationSequence(
        name=long_string(card.name),
        family=coded(card.family),
        version=long_string(card.version),
        source=long_string(card.manufacturer),
    )
    if parameters := algorithm_parameters(result):
        algorithm[0].AlgorithmParameters = parameters
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=tracking_id,
        tracking_uid=tracking_uid,
        anatomic_regions=[coded(segment.anatomic_region)] if segment.anatomic_region else None,
        display_color=CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.laterality:
        modifier = [code_item(segment.laterality)]
        if segment.anatomic_region:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = modifier
        else:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return description


# ── stand-ins for the source images ─────────────────────────────────────────


def _stand_ins(images: Sequence[Dataset], grid: SourceGrid, thickness: DSfloat) -> list[Dataset]:
    """Answers headers that highdicom accepts, with the geometry of the grid: one an image, or one multi-frame header."""
    if grid.planes[0].frame_number is None:
        stand_ins = [normalise_source(image) for image in images]
        for stand_in, plane in zip(stand_ins, grid.planes, strict=True):
            stand_in.ImagePositionPatient = _decimal_strings(plane.image_position_patient)
            stand_in.ImageOrientationPatient = _decimal_strings(grid.image_orientation_patient)
            stand_in.PixelSpacing = _decimal_strings((grid.row_spacing_mm, grid.column_spacing_mm))
            stand_in.SliceThickness = thickness
    else:
        if len(images) != 1:
            raise EvidenceError("frames of several multi-frame images form no single source")
        stand_ins = [normalise_source(images[0])]
        stand_ins[0].update(_functional_groups(grid, thickness))
    for stand_in in stand_ins:
        stand_in.Rows, stand_in.Columns = grid.rows, grid.columns
        stand_in.FrameOfReferenceUID = grid.frame_of_reference_uid or STAND_IN
        stand_in.PositionReferenceIndicator = images[0].get("PositionReferenceIndicator")
    return stand_ins


def _functional_groups(grid: SourceGrid, thickness: DSfloat) -> Dataset:
    """Answers a multi-frame header with the frames of the planes, and no others."""
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = _decimal_strings((grid.row_spacing_mm, grid.column_spacing_mm))
    measures.SliceThickness = thickness
    orientation.ImageOrientationPatient = _decimal_strings(grid.image_orientation_patient)
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    frames = []
    for plane in grid.planes:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = _decimal_strings(plane.image_position_patient)
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    header = Dataset()
    header.NumberOfFrames = len(frames)
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = frames
    return header


def _slice_thickness_mm(image: Dataset, grid: SourceGrid) -> DSfloat:
    """Answers the thickness that the scanner states, or else the usual distance of the planes."""
    holder = image
    groups = image.get("SharedFunctionalGroupsSequence")
    if groups and groups[0].get("PixelMeasuresSequence"):
        holder = groups[0].PixelMeasuresSequence[0]
    try:
        stated = float(holder.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        stated = 0.0
    usual = float(np.median(grid.slab_thicknesses_mm())) if len(grid.planes) > 1 else grid.row_spacing_mm
    return _decimal_strings([stated if stated > 0 else usual])[0]


def _decimal_strings(values: Sequence[float]) -> list[DSfloat]:
    return [DSfloat(format_number_as_ds(float(value))) for value in values]


# ── what highdicom leaves to us ─────────────────────────────────────────────


def _name_dimensions(made: Dataset, context: EvidenceContext, role: str) -> None:
    """Derives the UID of the dimensions from the job, as all others."""
    uid = context.uid(role, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _space_planes(made: Dataset, frames: Sequence[Frame], grid: SourceGrid) -> None:
    """States the distance of the planes where they have one, and that the frames are a grid where they are."""
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices  # of the one plane of the header
    if "DimensionOrganizationType" in made:
        del made.DimensionOrganizationType
    spacing_mm = _even_spacing_mm(grid)
    if spacing_mm is None:
        return
    measures.SpacingBetweenSlices = _decimal_strings([spacing_mm])[0]
    planes = [frame.plane for frame in frames]
    if len(set(planes)) == len(planes) > 1 and max(planes) - min(planes) == len(planes) - 1:
        made.DimensionOrganizationType = "3D"  # one segment without a gap (PS3.3 C.7.6.17.3)


def _even_spacing_mm(grid: SourceGrid) -> float | None:
    """Answers the distance of the planes; None where they are unevenly spaced, or shifted against each other (tilt)."""
    steps = np.diff(grid.positions_mm, axis=0)
    if not len(steps):
        return None
    mean = steps.mean(axis=0)
    length, along = float(np.linalg.norm(mean)), float(mean @ grid.normal)
    is_even = np.abs(steps - mean).max() <= _EVEN * length and length - along <= _EVEN * length
    return along if is_even else None


def _tell_losses(made: Dataset, images: Sequence[Dataset]) -> None:
    """Says of the SEG that it comes from lossy images when any was (PS3.3 C.8.20.2.2)."""
    lossy = [image for image in images if is_lossy(image)]
    made.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        stated: list[Any] = [image[keyword].value for image in lossy if image.get(keyword)]
        if stated:
            setattr(made, keyword, stated[0])


def _tell_body_part(made: Dataset, image: Dataset) -> None:
    """States the body part, where it is a code string that a reader can take."""
    body_part = str(image.get("BodyPartExamined") or "").strip().upper()
    if re.fullmatch(r"[A-Z0-9_ ]{1,16}", body_part):
        made.BodyPartExamined = body_part
