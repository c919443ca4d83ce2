"""The Segmentation object: what was outlined, on the pixels of the source (PS3.3 A.51, C.8.20).

Segments are the structures that were found, numbered from 1 in the order of the model card. A structure that was not found
is no segment: an item without frames is drawn by some viewers as an empty outline, and the SR says "absent" in words.
"""

import re
from collections.abc import Sequence
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
from node.evidence.header import is_lossy, normalise_source
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
_LABELS: Final = 256


def encode_segmentation(result: Result, sources: Sequence[Dataset], context: EvidenceContext) -> Dataset:
    """Answers the BINARY Segmentation of a result, on the grid of its source.

    `sources` are the headers of the images of `result.label_map.source.planes`, in any order; others are passed over.

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
    made = Segmentation(
        source_images=_stand_ins(images, grid),
        pixel_array=_segment_numbers(result.label_map, segments),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, segment, result, context) for number, segment in enumerate(segments, 1)],
        series_instance_uid=context.uid("seg", "series"),
        series_number=series_number(images[0], 1),
        sop_instance_uid=context.uid("seg", "instance"),
        instance_number=1,
        content_label=CONTENT_LABEL,
        content_description=long_string(f"AI result, not verified: {result.card.title} {result.card.version}"),
        series_description=series_description(result.card, "SEG"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(context),
    )
    _name_dimensions(made, context)
    _number_frames(made, grid)
    _tell_losses(made, images)
    _tell_body_part(made, images[0])
    made.ContentCreatorName = None  # type 2, and no person made it
    _pad_with_zero(made)
    return finished(made, images[0], result, context)


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


def _segment_numbers(label_map: LabelMap, segments: Sequence[SegmentDefinition]) -> NDArray[np.uint8]:
    """Answers the labels as Segment Numbers."""
    voxels = np.bincount(label_map.labels.reshape(-1), minlength=_LABELS)
    found = {int(label) for label in np.flatnonzero(voxels[1:]) + 1}
    if found != {segment.label_value for segment in segments}:
        raise EvidenceError(f"the label map holds the labels {sorted(found)}, the result names others")
    if not found:
        raise EvidenceError("no voxel is segmented")
    number_of_label = np.zeros(_LABELS, dtype=np.uint8)
    for number, segment in enumerate(segments, start=1):
        number_of_label[segment.label_value] = number
    return number_of_label[label_map.labels]


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


def _stand_ins(images: Sequence[Dataset], grid: SourceGrid) -> list[Dataset]:
    """Answers headers that highdicom accepts, with the geometry of the grid: one an image, or one multi-frame header."""
    thickness = _slice_thickness_mm(images[0], grid)
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
        stand_in.FrameOfReferenceUID = grid.frame_of_reference_uid
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
    usual = float(np.median(grid.slab_thicknesses_mm()))
    return _decimal_strings([stated if stated > 0 else usual])[0]


def _decimal_strings(values: Sequence[float]) -> list[DSfloat]:
    return [DSfloat(format_number_as_ds(float(value))) for value in values]


# ── what highdicom leaves to us ─────────────────────────────────────────────


def _name_dimensions(made: Dataset, context: EvidenceContext) -> None:
    """Derives the UID of the dimensions from the job, as all others."""
    uid = context.uid("seg", "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _pad_with_zero(made: Dataset) -> None:
    """Ends Pixel Data on a zero byte where its length would be odd (PS3.5 8.1.1): highdicom writes the character 0."""
    size = -(-int(made.NumberOfFrames) * made.Rows * made.Columns // 8)
    made.PixelData = made.PixelData[:size] + b"\0" * (size % 2)
    made["PixelData"].VR = "OB"


def _number_frames(made: Dataset, grid: SourceGrid) -> None:
    """Cites the true frames of a multi-frame source: highdicom counts the frames of the stand-in."""
    numbers = [plane.frame_number for plane in grid.planes]
    if numbers[0] is None or numbers == list(range(1, len(numbers) + 1)):
        return
    images = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in made.PerFrameFunctionalGroupsSequence]
    for image in {id(image): image for image in images}.values():  # segments on one frame share one item
        image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1]


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
