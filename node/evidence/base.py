"""What the further result objects have in common: their series and equipment, their sources, and the slices that tell most."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import Code
from node.domain.findings import Detection, Landmark
from node.domain.result import Result, SegmentResult
from node.domain.volume import LabelMap, Plane
from node.errors import EvidenceError
from node.evidence.context import EvidenceContext
from node.evidence.header import is_lossy
from node.evidence.places import Place, grids_of, ordered_detections, place_of_finding
from node.evidence.sop_common import code_item, equipment, series_description, series_number

SOURCE_IMAGE: Code = Code("121322", "DCM", "Source image for image processing operation")
NOT_VERIFIED = "AI result, not verified"
CODE_STRING = r"[A-Z0-9_ ]{1,16}"


@dataclass(frozen=True, slots=True)
class Role:
    """What an object is in a set of results: its name in files and configuration, its SOP class, and where its series sorts."""

    name: str
    sop_class_uid: str
    modality: str
    series_offset: int


@dataclass(slots=True)
class KeySlice:
    """A plane of the source: the structures whose largest cut it shows, the boxes and the points that it is nearest to."""

    place: Place
    segments: list[SegmentResult] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)
    landmarks: list[Landmark] = field(default_factory=list)

    @property
    def plane(self) -> Plane:
        """The image, or the frame of one."""
        return self.place.plane

    @property
    def labels(self) -> list[str]:
        """What is found here, for a person."""
        structures = [one.definition.label for one in self.segments]
        return [*structures, *(one.definition.label for one in self.detections), *(one.definition.label for one in self.landmarks)]


def begin(role: Role, source: Dataset, result: Result, context: EvidenceContext) -> Dataset:
    """Answers an object of the role with its UIDs, its series and its equipment; `finished` gives it the rest."""
    made = Dataset()
    made.SOPClassUID = role.sop_class_uid
    made.SOPInstanceUID = context.uid(role.name, "instance")
    made.SeriesInstanceUID = context.uid(role.name, "series")
    made.Modality = role.modality
    made.SeriesNumber = series_number(source, role.series_offset)
    made.SeriesDescription = series_description(result.card, role.name.upper())
    made.InstanceNumber = 1
    ours = equipment(context)
    made.Manufacturer = ours["manufacturer"]
    made.ManufacturerModelName = ours["manufacturer_model_name"]
    made.SoftwareVersions = ours["software_versions"]
    made.DeviceSerialNumber = ours["device_serial_number"]
    return made


def tell_body_part(made: Dataset, source: Dataset) -> None:
    """States body part and side, where they are code strings that a reader can take; where neither is known, that so it is.

    Laterality is type 2C of General Series: empty only when nothing is known.
    """
    body_part = str(source.get("BodyPartExamined") or "").strip().upper()
    side = str(source.get("Laterality") or "").strip()
    if re.fullmatch(CODE_STRING, body_part):
        made.BodyPartExamined = body_part
    if side in {"L", "R"}:
        made.Laterality = side
    elif "BodyPartExamined" not in made:
        made.Laterality = None


def tell_losses(made: Dataset, images: Sequence[Dataset]) -> None:
    """Says of an image that it comes from lossy images when any was (PS3.3 C.7.6.1.1.5)."""
    lossy = [image for image in images if is_lossy(image)]
    made.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        stated = [image[keyword].value for image in lossy if image.get(keyword)]
        if stated:
            setattr(made, keyword, stated[0])


def images_used(result: Result, sources: Sequence[Dataset]) -> list[Dataset]:
    """Answers the headers of the images that were analysed: those of the label map first, in its order; all where it is not known which.

    Raises
    ------
    EvidenceError
        If there is none, or the header of an image is missing.
    """
    if not sources:
        raise EvidenceError("a result needs the headers of its source images: without one there is no patient and no study")
    wanted = dict.fromkeys(plane.sop_instance_uid for grid in grids_of(result) for plane in grid.planes)
    if not wanted:
        study = sources[0].StudyInstanceUID
        return sorted(sources, key=lambda s: (s.StudyInstanceUID != study, str(s.SeriesInstanceUID), str(s.SOPInstanceUID)))
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    if missing := set(wanted) - set(by_uid):
        raise EvidenceError(f"the headers of {len(missing)} source images are missing, first {min(missing)}")
    return [by_uid[uid] for uid in wanted]


def label_map_of(result: Result) -> LabelMap:
    """Answers the label map of a result; raises EvidenceError where nothing is outlined."""
    if result.label_map is None or not any(segment.present for segment in result.segments):
        raise EvidenceError("a result without an outlined structure has no such object: do not make one")
    return result.label_map


def is_placed(result: Result) -> bool:
    """Answers whether anything was found that has a place on an image: a structure, a box or a point."""
    return any(segment.present for segment in result.segments) or bool(result.detections or result.landmarks)


def key_slices(result: Result) -> list[KeySlice]:
    """Answers for each structure the plane with its largest area, for boxes and points the nearest one; planes ascend, each stands once.

    Raises
    ------
    EvidenceError
        If nothing was found that has a place.
    """
    if not is_placed(result):
        raise EvidenceError("a result without an outline, a box or a point has no such object: do not make one")
    shown: dict[tuple[int, int], KeySlice] = {}
    numbers = {id(grid): number for number, grid in enumerate(grids_of(result))}

    def slice_at(place: Place) -> KeySlice:
        return shown.setdefault((numbers[id(place.grid)], place.plane_index), KeySlice(place))

    found = [segment for segment in result.segments if segment.present]
    if found:
        label_map = label_map_of(result)
        areas = label_map.pixels_of_planes()
        for segment in found:
            slice_at(Place(label_map.source, _middle_of_largest(areas[:, segment.definition.label_value]))).segments.append(segment)
    for detection in ordered_detections(result):
        slice_at(place_of_finding(result, detection)).detections.append(detection)
    for landmark in result.landmarks:
        slice_at(place_of_finding(result, landmark)).landmarks.append(landmark)
    return [shown[key] for key in sorted(shown)]


def reference(sop_class_uid: str, sop_instance_uid: str, frame_number: int | None = None) -> Dataset:
    """Answers a reference to an image, or to a frame of one (PS3.3 Table 10-3)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = str(sop_class_uid), str(sop_instance_uid)
    if frame_number is not None:
        item.ReferencedFrameNumber = frame_number
    return item


def reference_to_plane(plane: Plane) -> Dataset:
    """Answers a reference to the image, or the frame, of a plane."""
    return reference(plane.sop_class_uid, plane.sop_instance_uid, plane.frame_number)


def source_references(images: Iterable[Dataset]) -> list[Dataset]:
    """Answers references to the images as what the result was computed from."""
    items = []
    for image in images:
        item = reference(image.SOPClassUID, image.SOPInstanceUID)
        item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
        items.append(item)
    return items


def by_series(images: Iterable[Dataset]) -> dict[str, list[Dataset]]:
    """Answers the images of each series, by Series Instance UID, each image once."""
    series: dict[str, dict[str, Dataset]] = {}
    for image in images:
        series.setdefault(str(image.SeriesInstanceUID), {})[str(image.SOPInstanceUID)] = image
    return {uid: list(found.values()) for uid, found in series.items()}


def moment_text(finished: Dataset) -> str:
    """Answers when a finished object was made, on the clock of its source: `2026-03-04 05:06`."""
    date, time = str(finished.ContentDate), str(finished.ContentTime)
    return f"{date[:4]}-{date[4:6]}-{date[6:]} {time[:2]}:{time[2:4]}"


def _middle_of_largest(areas: NDArray[np.int64]) -> int:
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[len(largest) // 2])
