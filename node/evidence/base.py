"""What the further result objects have in common: their series and equipment, their sources, and the slices that tell most."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import Code
from node.domain.result import Result, SegmentResult
from node.domain.volume import LabelMap, Plane
from node.errors import EvidenceError
from node.evidence.context import EvidenceContext
from node.evidence.frames import labels_of_planes
from node.evidence.header import is_lossy
from node.evidence.segmentation import images_of_planes
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


@dataclass(frozen=True, slots=True)
class KeySlice:
    """A plane of the source, and the structures whose largest cut it shows."""

    plane_index: int
    plane: Plane
    segments: tuple[SegmentResult, ...]


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
    """Answers the headers of the images of the label map in its order, or all sources where there is none."""
    images = list(sources) if result.label_map is None else images_of_planes(sources, result.label_map.source)
    if not images:
        raise EvidenceError("without a source image there is no patient and no study")
    return images


def label_map_of(result: Result) -> LabelMap:
    """Answers the label map of a result; raises EvidenceError where nothing is outlined."""
    if result.label_map is None or not any(segment.present for segment in result.segments):
        raise EvidenceError("a result without an outlined structure has no such object: do not make one")
    return result.label_map


def key_slices(result: Result) -> list[KeySlice]:
    """Answers for each structure that was found the plane with its largest area; planes ascend, each stands once."""
    label_map = label_map_of(result)
    areas = np.stack([np.bincount(plane.reshape(-1), minlength=256) for plane in label_map.labels])
    shown: dict[int, list[SegmentResult]] = {}
    for segment in result.segments:
        if segment.present:
            shown.setdefault(_middle_of_largest(areas[:, segment.definition.label_value]), []).append(segment)
    return [KeySlice(index, label_map.source.planes[index], tuple(segments)) for index, segments in sorted(shown.items())]


def segments_on(label_map: LabelMap, result: Result) -> list[tuple[SegmentResult, ...]]:
    """Answers of each plane the structures that it cuts."""
    found = labels_of_planes(label_map.labels)
    present = [segment for segment in result.segments if segment.present]
    return [tuple(segment for segment in present if on_plane[segment.definition.label_value]) for on_plane in found]


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
