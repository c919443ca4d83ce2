"""The Parametric Map: how probable the model holds a structure at each pixel of the source (PS3.3 A.75, C.8.32).

Probabilities are stored in 16 bits, 10000 for certainty, with a Real World Value Mapping to their unit: float pixels are legal,
too, but few archives render them, and no network is sure of a fifth decimal.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ParametricMapStorage
from pydicom.valuerep import format_number_as_ds

from node.codes import PROBABILITY, UCUM_NO_UNITS, Code
from node.domain.modelcard import SegmentDefinition
from node.domain.result import Result
from node.domain.volume import Plane, SourceGrid
from node.errors import EvidenceError
from node.evidence.base import (
    NOT_VERIFIED,
    SOURCE_IMAGE,
    Role,
    begin,
    by_series,
    reference,
    reference_to_plane,
    tell_body_part,
    tell_losses,
)
from node.evidence.context import EvidenceContext
from node.evidence.segmentation import images_of_planes
from node.evidence.sop_common import code_item, finished, long_string

PARAMETRIC_MAP: Final = Role("pm", ParametricMapStorage, "OT", 8)
CERTAIN: Final = 10_000
"""The stored value of probability 1."""
_QUANTITY: Final = Code("246205007", "SCT", "Quantity")
_SEGMENTATION: Final = Code("113076", "DCM", "Segmentation")


def encode_parametric_map(
    result: Result,
    sources: Sequence[Dataset],
    probabilities: NDArray[np.float32],
    grid: SourceGrid,
    structure: SegmentDefinition,
    context: EvidenceContext,
) -> Dataset:
    """Answers the map of one channel of scores, sampled on the source grid: shape `grid.shape`, 0 to 1.

    `structure` is what the channel is about; UIDs derive from its label value, so a set can hold a map of each.

    Raises
    ------
    EvidenceError
        If the array has another shape than the grid or other values than probabilities, or a source image is missing.
    """
    if probabilities.shape != grid.shape:
        raise EvidenceError(f"probabilities of shape {probabilities.shape} do not lie on the source grid {grid.shape}")
    if not (np.isfinite(probabilities).all() and probabilities.min() >= 0.0 and probabilities.max() <= 1.0):
        raise EvidenceError("probabilities lie outside 0 to 1, or are no numbers")
    images = images_of_planes(sources, grid)
    made = begin(PARAMETRIC_MAP, images[0], result, context)
    made.SOPInstanceUID = context.uid("pm", "instance", str(structure.label_value))
    made.InstanceNumber = structure.label_value
    made.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    made.ContentLabel = "AI_PROBABILITY"
    made.ContentDescription = long_string(f"{NOT_VERIFIED}: probability of {structure.label}")
    made.ContentCreatorName = None
    made.BurnedInAnnotation = "NO"
    made.RecognizableVisualFeatures = "NO"
    made.AcquisitionContextSequence = []
    made.FrameOfReferenceUID = grid.frame_of_reference_uid
    made.PositionReferenceIndicator = images[0].get("PositionReferenceIndicator")
    tell_body_part(made, images[0])
    tell_losses(made, images)
    made.ReferencedSeriesSequence = _referenced_series(images)
    _add_dimensions(made, context)
    made.NumberOfFrames = len(grid.planes)
    made.SharedFunctionalGroupsSequence = [_shared_groups(images[0], grid)]
    made.PerFrameFunctionalGroupsSequence = [_frame_groups(place, plane) for place, plane in enumerate(grid.planes, 1)]
    _set_pixels(made, probabilities)
    return finished(made, images[0], result, context)


def _referenced_series(images: Sequence[Dataset]) -> list[Dataset]:
    items = []
    for uid, found in by_series(images).items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedInstanceSequence = [reference(image.SOPClassUID, image.SOPInstanceUID) for image in found]
        items.append(series)
    return items


def _add_dimensions(made: Dataset, context: EvidenceContext) -> None:
    """Orders the frames by where they lie (PS3.3 C.7.6.17)."""
    organization, index = Dataset(), Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = context.uid("pm", "dimensions")
    index.DimensionIndexPointer = Tag("ImagePositionPatient")
    index.FunctionalGroupPointer = Tag("PlanePositionSequence")
    index.DimensionDescriptionLabel = "Image Position (Patient)"
    made.DimensionOrganizationSequence = [organization]
    made.DimensionIndexSequence = [index]


def _shared_groups(image: Dataset, grid: SourceGrid) -> Dataset:
    """Answers what holds for all frames (PS3.3 A.75.4)."""
    measures, orientation, transformation, voi, kind = (Dataset() for _ in range(5))
    measures.PixelSpacing = [format_number_as_ds(grid.row_spacing_mm), format_number_as_ds(grid.column_spacing_mm)]
    measures.SliceThickness = _slice_thickness(image, grid)
    orientation.ImageOrientationPatient = [format_number_as_ds(float(one)) for one in grid.image_orientation_patient]
    transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = "0", "1", "US"
    voi.WindowCenter, voi.WindowWidth = str(CERTAIN // 2), str(CERTAIN)
    kind.FrameType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelValueTransformationSequence = [transformation]
    shared.FrameVOILUTSequence = [voi]
    shared.ParametricMapFrameTypeSequence = [kind]
    shared.RealWorldValueMappingSequence = [_mapping()]
    return shared


def _slice_thickness(image: Dataset, grid: SourceGrid) -> str:
    """Answers the thickness that the scanner states, or else the usual distance of the planes, or of the rows where there is one plane."""
    groups = image.get("SharedFunctionalGroupsSequence")
    holder = groups[0].PixelMeasuresSequence[0] if groups and groups[0].get("PixelMeasuresSequence") else image
    try:
        stated = float(holder.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        stated = 0.0
    slabs = grid.slab_thicknesses_mm()
    usual = float(np.median(slabs)) if len(slabs) else grid.row_spacing_mm
    return format_number_as_ds(stated if stated > 0 else usual)


def _mapping() -> Dataset:
    """Answers what a stored value means (PS3.3 C.7.6.16.2.11)."""
    quantity = Dataset()
    quantity.ValueType = "CODE"
    quantity.ConceptNameCodeSequence = [code_item(_QUANTITY)]
    quantity.ConceptCodeSequence = [code_item(PROBABILITY)]
    mapping = Dataset()
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, CERTAIN
    for keyword in ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"):
        mapping[keyword].VR = "US"
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, 1.0 / CERTAIN
    mapping.LUTExplanation, mapping.LUTLabel = "Probability by AI, 0 to 1", "PROBABILITY"
    mapping.MeasurementUnitsCodeSequence = [code_item(UCUM_NO_UNITS)]
    mapping.QuantityDefinitionSequence = [quantity]
    return mapping


def _frame_groups(place: int, plane: Plane) -> Dataset:
    content, position, source, derivation = (Dataset() for _ in range(4))
    content.DimensionIndexValues = [place]
    position.ImagePositionPatient = [format_number_as_ds(float(one)) for one in plane.image_position_patient]
    source = reference_to_plane(plane)
    source.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
    source.SpatialLocationsPreserved = "YES"
    derivation.SourceImageSequence = [source]
    derivation.DerivationCodeSequence = [code_item(_SEGMENTATION)]
    groups = Dataset()
    groups.FrameContentSequence = [content]
    groups.PlanePositionSequence = [position]
    groups.DerivationImageSequence = [derivation]
    return groups


def _set_pixels(made: Dataset, probabilities: NDArray[np.float32]) -> None:
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.PresentationLUTShape = "IDENTITY"
    made.Rows, made.Columns = probabilities.shape[1:]
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit = 15
    made.PixelRepresentation = 0
    stored = np.empty(probabilities.shape, dtype="<u2")
    for plane, target in zip(probabilities, stored, strict=True):
        target[...] = np.rint(plane * np.float32(CERTAIN))
    made.PixelData = stored.tobytes()
    made["PixelData"].VR = "OW"
