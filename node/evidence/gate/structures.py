"""What an RT Structure Set must say: structures that belong together, contours that are closed and lie on their images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.evidence.gate.decimals import decimals_in
from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.frames import FrameFacts, planes_of
from node.evidence.gate.view import View

PLANE_TOLERANCE_MM: Final = 0.01
_CONTOUR_TYPES: Final = frozenset({"POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_FEW: Final = 3
_EDGE: Final = 0.51
"""How far from the middle of an outermost pixel, in pixels, a contour may run."""


@dataclass(frozen=True, slots=True)
class _Roi:
    """The contours of a structure."""

    name: str
    contours: list[View]
    values: list[int]
    """Of each contour, how many numbers it has."""
    points: NDArray[np.float64] | None
    """Of all contours; None where one has none, or half a one."""


def structure_faults(structures: View) -> Iterator[Fault]:
    """Answers what is wrong with a structure set by itself."""
    rois = structures.items("StructureSetROISequence")
    numbers = [roi.get("ROINumber") for roi in rois]
    known_frames = {str(one.get("FrameOfReferenceUID")) for one in structures.items("ReferencedFrameOfReferenceSequence")}
    if len(set(numbers)) != len(numbers):
        yield Fault("header", "two structures have one ROI Number", "PS3.3 C.8.8.5")
    for roi in rois:
        where = f"ROI {roi.get('ROINumber')}"
        if str(roi.get("ROIGenerationAlgorithm") or "") not in {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}:
            yield Fault(where, "how it was made is not said (AUTOMATIC, ...)", "PS3.3 C.8.8.5", Severity.WARNING)
        if str(roi.get("ReferencedFrameOfReferenceUID") or "") not in known_frames:
            yield Fault(where, "its frame of reference is not among those of the structure set", "PS3.3 C.8.8.5")
    for keyword in ("ROIContourSequence", "RTROIObservationsSequence"):
        named = [item.get("ReferencedROINumber") for item in structures.items(keyword)]
        for number in sorted({str(one) for one in named} ^ {str(one) for one in numbers}):
            yield Fault(f"ROI {number}", f"it is in one of Structure Set ROI Sequence and {keyword}, not in both", "PS3.3 C.8.8.6")
    for outlined in structures.once(_rois):
        for place, (contour, values) in enumerate(zip(outlined.contours, outlined.values, strict=True), 1):
            for text, clause in _contour_faults(contour, values):
                yield Fault(f"{outlined.name} contour {place}", text, clause)


def _contour_faults(contour: View, values: int) -> Iterator[tuple[str, str]]:
    kind = str(contour.get("ContourGeometricType") or "")
    if kind not in _CONTOUR_TYPES:
        yield f"Contour Geometric Type is {kind or 'absent'}", "PS3.3 C.8.8.6.1"
    if not values or values != 3 * int(contour.get("NumberOfContourPoints") or 0):
        yield "Contour Data has not the points that are stated", "PS3.3 C.8.8.6"
    elif kind.startswith("CLOSED") and values < 9:
        yield f"a closed contour of {values // 3} points holds nothing", "PS3.3 C.8.8.6.1"


def _rois(structures: View) -> list[_Roi]:
    """Reads the contours, all numbers of a structure at once; raises ValueError where one is no number."""
    found = []
    for roi in structures.items("ROIContourSequence"):
        contours = roi.items("ContourSequence")
        data = [_data_of(contour) for contour in contours]
        values = [one.count(b"\\") + 1 if one else 0 for one in data]
        numbers = decimals_in(b"\\".join(one for one in data if one)) if any(data) else np.empty(0)
        points = numbers.reshape(-1, 3) if values and all(one and one % 3 == 0 for one in values) else None
        found.append(_Roi(f"ROI {roi.get('ReferencedROINumber')}", contours, values, points))
    return found


def _data_of(contour: View) -> bytes:
    """Answers the text of the points, with a backslash between the numbers."""
    raw = contour.raw("ContourData")
    if raw is None:
        raw = "\\".join(str(one) for one in contour.get("ContourData") or []).encode()
    return raw.strip(b" \0")


# ── on the images ───────────────────────────────────────────────────────────


def contour_places(structures: View, sources: Mapping[str, View]) -> Iterator[Fault]:
    """Answers contours that do not lie on the plane, or not within the pixels, of the image that they name."""
    frames_of_reference = {str(source.get("FrameOfReferenceUID") or "") for source in sources.values()}
    for item in structures.items("ReferencedFrameOfReferenceSequence"):
        if str(item.get("FrameOfReferenceUID") or "") not in frames_of_reference:
            yield Fault("header", "the frame of reference is not that of the source images", "PS3.3 C.8.8.5")
    told = 0
    for roi in structures.once(_rois):
        if roi.points is None:
            continue  # told elsewhere
        for place, text in _misplaced(roi, roi.points, sources):
            told += 1
            if told <= _FEW:
                yield Fault(f"{roi.name} contour {place}", text, "PS3.3 C.8.8.6")


def _misplaced(roi: _Roi, points: NDArray[np.float64], sources: Mapping[str, View]) -> Iterator[tuple[int, str]]:
    """Answers which contours of a structure lie elsewhere than on their image, and how."""
    planes = [_plane_of(contour, sources) for contour in roi.contours]
    lasts = np.cumsum(roi.values) // 3
    known = [(place, plane) for place, plane in enumerate(planes) if plane is not None]
    if not known:
        return
    rows = np.concatenate([np.arange(lasts[place] - roi.values[place] // 3, lasts[place]) for place, _ in known])
    counts = np.array([roi.values[place] // 3 for place, _ in known])
    firsts = np.cumsum(counts) - counts
    frame = np.repeat(np.stack([plane for _, plane in known]), counts, axis=0)
    offset = points[rows] - frame[:, :3]
    above = np.abs((offset * frame[:, 3:6]).sum(axis=1))
    across, down = (offset * frame[:, 6:9]).sum(axis=1), (offset * frame[:, 9:12]).sum(axis=1)
    beyond = np.maximum.reduce([-across, -down, across - frame[:, 12], down - frame[:, 13]])
    too_high, too_far = np.maximum.reduceat(above, firsts), np.maximum.reduceat(beyond, firsts)
    for (place, _), height_mm, pixels in zip(known, too_high, too_far, strict=True):
        if height_mm > PLANE_TOLERANCE_MM:
            yield place + 1, "it does not lie on the plane of its image"
        elif pixels > _EDGE:
            yield place + 1, "it reaches beyond the pixels of its image"


def _plane_of(contour: View, sources: Mapping[str, View]) -> NDArray[np.float64] | None:
    """Answers the plane of the first image of a contour that is known."""
    for image in contour.items("ContourImageSequence"):
        source = sources.get(str(image.get("ReferencedSOPInstanceUID")))
        plane = source.once(_pixel_planes).get(int(image.get("ReferencedFrameNumber") or 1)) if source else None
        if plane is not None:
            return plane
    return None


def _pixel_planes(image: View) -> dict[int, NDArray[np.float64]]:
    size = (float(image.get("Columns") or 0) - 1, float(image.get("Rows") or 0) - 1)
    planes = {number: _pixel_plane(plane, size) for number, plane in planes_of(image).items()}
    return {number: plane for number, plane in planes.items() if plane is not None}


def _pixel_plane(plane: FrameFacts, size: tuple[float, float]) -> NDArray[np.float64] | None:
    """Answers position, normal, the two directions in pixels, and the last column and row; None where the plane is not told."""
    if (len(plane.position_mm), len(plane.orientation), len(plane.pixel_spacing_mm)) != (3, 6, 2) or 0.0 in plane.pixel_spacing_mm:
        return None
    along_row, along_column = np.array(plane.orientation).reshape(2, 3)
    across, down = along_row / plane.pixel_spacing_mm[1], along_column / plane.pixel_spacing_mm[0]
    return np.concatenate([plane.position_mm, np.cross(along_row, along_column), across, down, size])
