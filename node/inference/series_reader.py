"""Files of one series in, one volume out, or the reason why not.

Headers first, so that the geometry decides before a pixel is decoded; then each image goes straight to its place in the volume.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

from node.codes import UCUM_HOUNSFIELD, UCUM_NO_UNITS, Code
from node.domain.geometry import ImagePlane, order_planes, plan_volume
from node.domain.instance import InstanceHeader
from node.domain.volume import QualityNote, Volume
from node.errors import BrokenPixelData, MissingGeometry, NotAVolume
from node.inference.elements import decimals, integer, item, text, texts
from node.inference.pixels import PARSE_ERRORS, ModalityTransform, Rescale, StoredPixels, locate_pixels, modality_transform, read_frames
from node.inference.stack import sample_stack
from node.network.deflate import LONGEST_INFLATED_BYTES, deflated_from, inflates_beyond

AIR_HU: Final = -1024.0
"""What lies outside the images of a CT."""

LOCALIZERS_LEFT_OUT: Final = "LocalizersLeftOut"
REPEATED_INSTANCES_LEFT_OUT: Final = "RepeatedInstancesLeftOut"
VALUES_NOT_HOUNSFIELD: Final = "ValuesNotHounsfield"

_TRAITS: Final[Mapping[str, str]] = {
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "EchoNumbers": "echo number",
    "TemporalPositionIdentifier": "temporal position",
    "TemporalPositionIndex": "temporal position",
    "DiffusionBValue": "b-value",
    "InversionTime": "inversion time",
    "FlipAngle": "flip angle",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger time",
    "KVP": "tube voltage",
    "ConvolutionKernel": "convolution kernel",
    "StackID": "stack",
    "AcquisitionNumber": "acquisition number",
    "ImageType": "image type",
    "FrameType": "image type",
    "ComplexImageComponent": "image component",
    "AcquisitionTime": "acquisition time",
    "FrameAcquisitionDateTime": "acquisition time",
    "DimensionIndexValues": "dimension index",
}
"""What may tell apart images at one place, the telling ones first."""

_TRAIT_TAGS: Final = {Tag(keyword): (keyword, words) for keyword, words in _TRAITS.items()}

_FUNCTIONAL_GROUPS_WITH_TRAITS: Final = (
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "CardiacSynchronizationSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
)

_HEADER: Final = (
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "InstanceNumber",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *_TRAITS,
)


@dataclass(frozen=True, slots=True)
class Instance:
    """One file: its header, and where its pixels lie."""

    header: FileDataset
    pixels: StoredPixels

    @property
    def sop_instance_uid(self) -> str:
        """From the data set; some archives empty it there and keep it in the file meta information."""
        return text(self.header, "SOPInstanceUID") or text(self.header.file_meta, "MediaStorageSOPInstanceUID")

    @property
    def sop_class_uid(self) -> str:
        """As the instance UID."""
        return text(self.header, "SOPClassUID") or text(self.header.file_meta, "MediaStorageSOPClassUID")


@dataclass(frozen=True, slots=True)
class _Image:
    """One image or frame: its plane, its pixels, its scale."""

    plane: ImagePlane
    pixels: StoredPixels
    frame_index: int
    transform: ModalityTransform | None
    rescale_type: str


@dataclass(slots=True)
class Instances:
    """The instances that make the volume, and what was left out."""

    instances: list[Instance]
    notes: list[QualityNote] = field(default_factory=list)


class ImageFiles:
    """How the files of a job are read: header by header, image by image. What has some of it ready (`Prepared`) answers the same."""

    def header(self, path: Path) -> InstanceHeader | None:  # noqa: ARG002 - nothing is known of any
        """Answers what is known of a file for the rules that choose series, None where it must be read."""
        return None

    def instance(self, path: Path, number: int) -> Instance:
        """Answers as `read_instance`."""
        return read_instance(path, number)

    def frames(self, pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yields as `read_frames`."""
        return read_frames(pixels, indices)

    def series(self, files: Sequence[Path]) -> Volume:
        """Answers as `read_series`."""
        return read_series(files, self)


ON_DISK: Final = ImageFiles()
"""Nothing is ready: everything is read when it is asked for."""


def read_series(files: Sequence[Path], images: ImageFiles = ON_DISK) -> Volume:
    """Answers the volume of a series: float32, (slices, rows, columns), after the modality LUT; CT in HU.

    The order of `files` does not matter. Raises InputError in one of its kinds (see node.errors) with the reason in words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom and the decoders warn of what real scanners write: data, not code
        selection = select_instances([images.instance(path, number) for number, path in enumerate(sorted(files), start=1)])
        instances = selection.instances
        modality = _one_value(instances, "Modality", "modalities") or "OT"
        _one_value(instances, "SeriesInstanceUID", "series")
        found = [image for instance in instances for image in _images(instance)]
        source, order = order_planes([image.plane for image in found])
        ordered = [found[index] for index in order]
        plan = plan_volume(source, [image.plane.name for image in ordered])
        units, unit_notes = _units(modality, ordered)
        voxels = np.empty(source.shape, np.float32)
        _fill(voxels, ordered, images)
    if not plan.is_identity:
        outside = AIR_HU if units == UCUM_HOUNSFIELD else float(voxels.min())
        voxels = sample_stack(voxels, source, plan.geometry, outside)
    notes = (*selection.notes, *unit_notes, *plan.notes)
    return Volume(voxels, plan.geometry, source, modality, units, notes)


# ── headers ─────────────────────────────────────────────────────────────────


def read_instance(path: Path, number: int) -> Instance:
    """Answers the header of a file and where its pixels lie; `number` names the file where the header does not."""
    with path.open("rb") as file:
        try:
            _refuse_bomb(file, number)
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
        except (*PARSE_ERRORS, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk; what pydicom raises over a broken file has no number
            raise BrokenPixelData(f"File {number} of the series cannot be parsed as DICOM ({type(error).__name__}).") from error
        return Instance(header, locate_pixels(header, file, path, name_of(header, number)))


def name_of(header: Dataset, number: int) -> str:
    """Answers how messages call an instance, which is the file `number` of those that are read."""
    instance_number = integer(header, "InstanceNumber")
    return f"file {number}" if instance_number is None else f"image {instance_number}"


def _refuse_bomb(file: BinaryIO, number: int) -> None:
    """Raises BrokenPixelData for a deflated file that would fill the memory; pydicom inflates the whole of one."""
    begin = deflated_from(file)
    if begin is None:
        return
    file.seek(begin)
    if inflates_beyond(file, LONGEST_INFLATED_BYTES):
        raise BrokenPixelData(f"File {number} of the series inflates to more than {LONGEST_INFLATED_BYTES >> 20} MiB.")
    file.seek(0)


def select_instances(instances: Sequence[Instance]) -> Instances:
    """Answers each instance once, without localizers."""
    unique: dict[str, Instance] = {}
    for instance in instances:
        uid = instance.sop_instance_uid
        if not uid or not instance.sop_class_uid:
            raise NotAVolume(f"SOP Class UID or SOP Instance UID is absent in {instance.pixels.name}: a result could not refer to it.")
        unique.setdefault(uid, instance)
    chosen = [unique[uid] for uid in sorted(unique) if "LOCALIZER" not in texts(unique[uid].header, "ImageType")]
    selection = Instances(chosen)
    if len(unique) < len(instances):
        count = len(instances) - len(unique)
        selection.notes.append(QualityNote(REPEATED_INSTANCES_LEFT_OUT, f"{count} repeated image(s) of the same UID left out."))
    if len(chosen) < len(unique):
        count = len(unique) - len(chosen)
        selection.notes.append(QualityNote(LOCALIZERS_LEFT_OUT, f"{count} localizer image(s) of the series left out."))
    if unique and not chosen:
        raise NotAVolume(f"The series has only localizer images ({len(unique)}).")
    return selection


def _one_value(instances: Sequence[Instance], keyword: str, what: str) -> str:
    """Answers the one value that all instances share, '' where none has any; raises NotAVolume where they differ."""
    values = sorted({text(instance.header, keyword) for instance in instances} - {""})
    if len(values) > 1:
        raise NotAVolume(f"The images belong to {len(values)} {what}, not to one.")
    return values[0] if values else ""


def _images(instance: Instance) -> Iterator[_Image]:
    """Yields the images of an instance: itself, or its frames (PS3.3 C.7.6.16)."""
    header = instance.header
    if "MOSAIC" in texts(header, "ImageType"):
        raise MissingGeometry(f"There is a mosaic of many slices in {instance.pixels.name}, whose places the header does not tell.")
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if instance.pixels.frames > 1:
            raise MissingGeometry(
                f"There are {instance.pixels.frames} frames in {instance.pixels.name}, but no header says where each lies."
            )
        yield _image(instance, (header, header, header), None, _traits([header]))
        return
    if len(per_frame) != instance.pixels.frames:
        raise MissingGeometry(f"There are {instance.pixels.frames} frames in {instance.pixels.name}, but the geometry of {len(per_frame)}.")
    shared = item(header, "SharedFunctionalGroupsSequence")
    for index, groups in enumerate(per_frame):

        def group(keyword: str, groups: Dataset = groups) -> Dataset:
            return item(groups, keyword) or item(shared, keyword) or Dataset()

        geometry = group("PlanePositionSequence"), group("PlaneOrientationSequence"), group("PixelMeasuresSequence")
        traits = _traits([group(keyword) for keyword in _FUNCTIONAL_GROUPS_WITH_TRAITS])
        yield _image(instance, geometry, index, traits, group("PixelValueTransformationSequence"))


def _image(
    instance: Instance,
    geometry: tuple[Dataset, Dataset, Dataset],
    frame_index: int | None,
    traits: tuple[tuple[str, str], ...],
    transformation: Dataset | None = None,
) -> _Image:
    """Answers one image; `geometry` holds position, orientation and spacing; frames count from 0, None in a single-frame instance."""
    name = instance.pixels.name if frame_index is None else f"frame {frame_index + 1} of {instance.pixels.name}"
    position, orientation, measures = geometry
    scale = transformation or instance.header
    plane = ImagePlane(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        frame_number=None if frame_index is None else frame_index + 1,
        rows=instance.pixels.rows,
        columns=instance.pixels.columns,
        image_position_patient=decimals(position, "ImagePositionPatient", 3),  # type: ignore[arg-type]
        image_orientation_patient=decimals(orientation, "ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing_mm=decimals(measures, "PixelSpacing", 2),  # type: ignore[arg-type]
        frame_of_reference_uid=text(instance.header, "FrameOfReferenceUID") or None,
        name=name,
        traits=traits,
    )
    transform = modality_transform(scale, name)
    return _Image(plane, instance.pixels, frame_index or 0, transform, text(scale, "RescaleType").upper())


def _traits(datasets: Sequence[Dataset]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    present = [(dataset, dataset.keys()) for dataset in datasets]
    for tag, (keyword, words) in _TRAIT_TAGS.items():
        for dataset, tags in present:
            values = texts(dataset, keyword) if tag in tags else ()
            if values:
                found.setdefault(words, "\\".join(values))
    return tuple(found.items())


# ── values ──────────────────────────────────────────────────────────────────


def _units(modality: str, images: Sequence[_Image]) -> tuple[Code, tuple[QualityNote, ...]]:
    """Answers HU for a CT whose header says so; Rescale Type may be left out for HU (PS3.3 C.8.2.1)."""
    if modality != "CT":
        return UCUM_NO_UNITS, ()
    unscaled = sum(image.transform is None for image in images)
    if unscaled:
        text_ = f"{unscaled} of {len(images)} CT images have no Rescale Slope and Intercept: their values may not be Hounsfield units."
        return UCUM_NO_UNITS, (QualityNote(VALUES_NOT_HOUNSFIELD, text_, degraded=True),)
    foreign = sorted({image.rescale_type for image in images} - {"", "HU"})
    if foreign:
        return UCUM_NO_UNITS, (QualityNote(VALUES_NOT_HOUNSFIELD, f"Rescale Type is {', '.join(foreign)}, not HU.", degraded=True),)
    return UCUM_HOUNSFIELD, ()


def _fill(voxels: NDArray[np.float32], images: Sequence[_Image], files: ImageFiles) -> None:
    """Decodes every image into its slice of `voxels`, file by file."""
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for index, image in enumerate(images):
        by_file.setdefault(image.pixels.path, []).append((image.frame_index, index))
    for places in by_file.values():
        places.sort()
        pixels = images[places[0][1]].pixels
        frames = files.frames(pixels, [frame for frame, _ in places])
        for (_, index), stored in zip(places, frames, strict=True):
            (images[index].transform or Rescale(1.0, 0.0)).apply(stored, voxels[index])
