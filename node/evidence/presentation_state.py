"""The Grayscale Softcopy Presentation State: the outlines as lines over the key slices, for archives without SEG (PS3.3 A.33.1).

One layer of its own, "AI", that a reader can switch off; its own series, so that no viewer takes it for the state in which the
images are to be read. The window is that of the images, where they state one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import format_number_as_ds

from node.domain.modelcard import DetectionDefinition, LandmarkDefinition, SegmentDefinition
from node.domain.result import Result
from node.domain.volume import LabelMap
from node.evidence.base import (
    NOT_VERIFIED,
    KeySlice,
    Role,
    begin,
    by_series,
    images_used,
    key_slices,
    reference_to_plane,
    tell_body_part,
)
from node.evidence.context import EvidenceContext
from node.evidence.contours import rings_of
from node.evidence.exact import exact_bytes
from node.evidence.places import outline_of, pixel_of
from node.evidence.sop_common import finished, long_string

PRESENTATION_STATE: Final = Role("gsps", GrayscaleSoftcopyPresentationStateStorage, "PR", 5)
LAYER: Final = "AI"
_LAYER_COLOR: Final = (255, 190, 80)
_LABEL: Final = 64
_ARM: Final = 6.0
"""Pixels from the middle of a cross to its ends."""
Window = tuple[float, float]
_Drawn = tuple[SegmentDefinition | DetectionDefinition | LandmarkDefinition, list[NDArray[np.float64]]]
"""What is drawn on a slice, with its lines in pixels."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """How the values of an image, or of a frame of one, become gray."""

    slope: float
    intercept: float
    type: str
    window: Window | None
    """Center and width, after slope and intercept."""


def encode_presentation_state(
    result: Result, sources: Sequence[Dataset], context: EvidenceContext, window: Window | None = None
) -> Dataset:
    """Answers the outlines of every structure, box and point on the key slices.

    `window` (center, width) is in the values after the modality LUT, and is used where an image states none.

    Raises
    ------
    EvidenceError
        If nothing found has a place (make none then), or a source image is missing.
    """
    images = images_used(result, sources)
    slices = key_slices(result)
    by_uid = {str(image.SOPInstanceUID): image for image in images}
    shown = [_shown(by_uid[one.plane.sop_instance_uid], one.plane.frame_number, window) for one in slices]
    made = begin(PRESENTATION_STATE, images[0], result, context)
    made.ContentLabel = "AI_OUTLINES"
    made.ContentDescription = long_string(f"{NOT_VERIFIED}: {result.card.title} {result.card.version}")
    made.ContentCreatorName = None
    tell_body_part(made, images[0])
    references = [reference_to_plane(one.plane) for one in slices]
    made.ReferencedSeriesSequence = _referenced_series(images, slices)
    made.DisplayedAreaSelectionSequence = _displayed_areas(by_uid, slices)
    made.GraphicAnnotationSequence = [_annotation(one, result) for one in slices]
    made.GraphicLayerSequence = [_layer()]
    _add_lookups(made, shown, references)
    inverse = str(images[0].get("PhotometricInterpretation") or "") == "MONOCHROME1"
    made.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    state = finished(made, images[0], result, context)
    state.PresentationCreationDate, state.PresentationCreationTime = state.ContentDate, state.ContentTime
    del state.ContentDate, state.ContentTime  # a presentation state has them under its own names
    return state


def _referenced_series(images: Sequence[Dataset], slices: Sequence[KeySlice]) -> list[Dataset]:
    """Answers the images of the key slices, each once with all its frames, by series."""
    frames: dict[str, list[int]] = {}
    for one in slices:
        numbers = frames.setdefault(one.plane.sop_instance_uid, [])
        if one.plane.frame_number is not None:
            numbers.append(one.plane.frame_number)
    items = []
    for uid, found in by_series(image for image in images if str(image.SOPInstanceUID) in frames).items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedImageSequence = []
        for image in found:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = str(image.SOPClassUID), str(image.SOPInstanceUID)
            if numbers := frames[item.ReferencedSOPInstanceUID]:
                item.ReferencedFrameNumber = numbers
            series.ReferencedImageSequence.append(item)
        items.append(series)
    return items


def _displayed_areas(by_uid: Mapping[str, Dataset], slices: Sequence[KeySlice]) -> list[Dataset]:
    """Answers for the slices of each grid that the whole image is shown, in its true shape (PS3.3 C.10.4)."""
    of_grids: dict[int, list[KeySlice]] = {}
    for one in slices:
        of_grids.setdefault(id(one.place.grid), []).append(one)
    return [_displayed_area(by_uid[some[0].plane.sop_instance_uid], some) for some in of_grids.values()]


def _displayed_area(image: Dataset, slices: Sequence[KeySlice]) -> Dataset:
    grid = slices[0].place.grid
    area = Dataset()
    area.ReferencedImageSequence = [reference_to_plane(one.plane) for one in slices]
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [grid.columns, grid.rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    if _has_spacing(image):
        area.PresentationPixelSpacing = [format_number_as_ds(grid.row_spacing_mm), format_number_as_ds(grid.column_spacing_mm)]
    else:
        area.PresentationPixelAspectRatio = [1, 1]
    return area


def _has_spacing(image: Dataset) -> bool:
    keywords = ("PixelSpacing", "ImagerPixelSpacing", "SharedFunctionalGroupsSequence")
    return any(image.get(keyword) for keyword in keywords)


# ── graphics ────────────────────────────────────────────────────────────────


def _annotation(one: KeySlice, result: Result) -> Dataset:
    """Answers the outlines, names and the warning on one slice: all structures that it cuts, not those alone that are largest here."""
    grid = one.place.grid
    shape = (grid.rows, grid.columns)
    objects, texts = [], [_warning(result)]
    drawn = [*_drawn_findings(one, shape)]
    if result.label_map is not None and result.label_map.source is grid:
        drawn = [*_drawn_segments(result, result.label_map, one.place.plane_index), *drawn]
    for definition, rings in drawn:
        objects += [_line(ring) for ring in rings]
        longest = max(rings, key=len)
        texts.append(_name(definition.label, (longest[:, 0].max() + 1.5, longest[:, 1].min() + 0.5), shape))
    annotation = Dataset()
    annotation.ReferencedImageSequence = [reference_to_plane(one.plane)]
    annotation.GraphicLayer = LAYER
    annotation.TextObjectSequence = texts
    annotation.GraphicObjectSequence = objects
    return annotation


def _drawn_segments(result: Result, label_map: LabelMap, plane_index: int) -> Iterator[_Drawn]:
    for segment in result.segments:
        rings = rings_of(label_map.mask(segment.definition.label_value, plane_index))
        if rings:
            yield segment.definition, [np.concatenate([ring, ring[:1]]) for ring in rings]


def _drawn_findings(one: KeySlice, shape: tuple[int, int]) -> Iterator[_Drawn]:
    """Answers the cuts of boxes, and points as crosses."""
    for detection in one.detections:
        ring = outline_of(detection, one.place)
        yield detection.definition, [np.concatenate([ring, ring[:1]])]
    upper = np.array([shape[1] - 0.5, shape[0] - 0.5])
    for landmark in one.landmarks:
        middle = pixel_of(landmark, one.place)
        arms = (np.array([[-_ARM, 0.0], [_ARM, 0.0]]), np.array([[0.0, -_ARM], [0.0, _ARM]]))
        yield landmark.definition, [np.clip(middle + arm, -0.5, upper) for arm in arms]


def _line(ring: NDArray[np.float64]) -> Dataset:
    graphic = Dataset()
    graphic.GraphicAnnotationUnits = "PIXEL"
    graphic.GraphicDimensions = 2
    points = (ring + 0.5).tolist()  # a pixel begins at its corner (PS3.3 C.10.5.1.2)
    graphic.NumberOfGraphicPoints = len(points)
    graphic.GraphicData = [value for point in points for value in point]
    graphic.GraphicType = "POLYLINE"
    graphic.GraphicFilled = "N"
    return graphic


def _warning(result: Result) -> Dataset:
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "DISPLAY"
    text.UnformattedTextValue = f"{NOT_VERIFIED}: {result.card.name} {result.card.version}"
    text.BoundingBoxTopLeftHandCorner = [0.02, 0.93]
    text.BoundingBoxBottomRightHandCorner = [0.75, 0.98]
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    return text


def _name(label: str, place: tuple[float, float], shape: tuple[int, int]) -> Dataset:
    """Answers a name beside its outline, within the image."""
    text = Dataset()
    text.AnchorPointAnnotationUnits = "PIXEL"
    text.UnformattedTextValue = label[:_LABEL]
    text.AnchorPoint = [float(min(place[0], shape[1])), float(max(place[1], 0.0))]
    text.AnchorPointVisibility = "N"
    return text


def _layer() -> Dataset:
    layer = Dataset()
    layer.GraphicLayer = LAYER
    layer.GraphicLayerOrder = 1
    layer.GraphicLayerDescription = "Outlines by AI, not verified"
    layer.GraphicLayerRecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*_LAYER_COLOR).value)
    return layer


# ── lookups ─────────────────────────────────────────────────────────────────


def _add_lookups(made: Dataset, shown: Sequence[_Shown], references: Sequence[Dataset]) -> None:
    """States how values become gray: a presentation state does not fall back on what the images say (PS3.4 N.2).

    It has one modality LUT for all its images. Where they have different ones (PET), each window is given in stored values.
    """
    lines = {(one.slope, one.intercept, one.type) for one in shown}
    is_common = len(lines) == 1
    first = shown[0]
    if is_common and (first.slope, first.intercept) != (1.0, 0.0):
        made.RescaleIntercept = format_number_as_ds(first.intercept)
        made.RescaleSlope = format_number_as_ds(first.slope)
        made.RescaleType = first.type or "US"
    windows: dict[Window, list[Dataset]] = {}
    for one, referenced in zip(shown, references, strict=True):
        if one.window is not None:
            center, width = one.window
            key = (center, width) if is_common else ((center - one.intercept) / one.slope, width / abs(one.slope))
            windows.setdefault(key, []).append(referenced)
    items = []
    for (center, width), images in windows.items():
        item = Dataset()
        item.ReferencedImageSequence = images
        item.WindowCenter, item.WindowWidth = format_number_as_ds(float(center)), format_number_as_ds(float(width))
        items.append(item)
    if items:
        made.SoftcopyVOILUTSequence = items


def _shown(image: Dataset, frame_number: int | None, window: Window | None) -> _Shown:
    """Answers what the header of an image, or of a frame of it, says of its values; nonsense counts as not said."""
    lut = _macro(image, frame_number, "PixelValueTransformationSequence")
    voi = _macro(image, frame_number, "FrameVOILUTSequence")
    slope = _number(lut, "RescaleSlope")
    intercept = _number(lut, "RescaleIntercept")
    center, width = _number(voi, "WindowCenter"), _number(voi, "WindowWidth")
    stated = (center, width) if center is not None and width is not None and width >= 1 else window
    if not slope or intercept is None:
        return _Shown(1.0, 0.0, "", stated)
    kind = (exact_bytes(lut, "RescaleType") or b"").decode("ascii", "replace").strip(" \0")
    return _Shown(slope, intercept, kind, stated)


def _macro(image: Dataset, frame_number: int | None, keyword: str) -> Dataset:
    """Answers the item of a functional group that holds for a frame, or the image itself."""
    if frame_number is None:
        return image
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame_number - 1), ("SharedFunctionalGroupsSequence", 0)):
        items = image.get(groups) or []
        found = items[index].get(keyword) if index < len(items) else None
        if found:
            item: Dataset = found[0]
            return item
    return image


def _number(holder: Dataset, keyword: str) -> float | None:
    """Answers the first value of a numeric attribute; None where it is absent or no number."""
    raw: Any = exact_bytes(holder, keyword)
    try:
        return float((raw or b"").split(b"\\")[0])
    except ValueError:
        return None
