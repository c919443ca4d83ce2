"""Synthetic DICOM series with known content: small, deterministic, without patient data.

Every series shows one scene in patient coordinates: a body, an organ that lies off centre (so that a flip shows) and a small
dense marker on the left, in front, above. Whatever the geometry of the slices is, `SyntheticSeries.organ` is the truth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from node.codes import IMPLEMENTATION_CLASS_UID
from node.domain.identifiers import derive_uid
from tests.scene import CENTRE_MM, Ellipsoid, Scene, Vector, make_scene

Orientation = tuple[float, float, float, float, float, float]

ORIENTATIONS: Final[Mapping[str, Orientation]] = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.9396926, 0.3420201, 0.0, -0.3213938, 0.8830222, -0.3420201),
}

NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


class SeriesOptions(TypedDict, total=False):
    """What a synthetic series may vary. The defaults are those of `SeriesPlan`."""

    slices: int
    rows: int
    columns: int
    spacing_mm: Vector
    orientation: str | Orientation
    gantry_tilt_deg: float
    gaps_mm: Sequence[float] | None
    descending: bool
    missing: Sequence[int]
    transfer_syntax: str
    headers: Mapping[str, Any]
    edit: Callable[[Dataset, int], None] | None
    study: str
    series: str


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """`spacing_mm` is (between slices along the table, between rows, between columns).

    `gaps_mm` replaces `slices` and the first spacing. `missing` counts from 0 in ascending position.
    `headers` maps keywords to values, None deletes; `edit(dataset, index)` has the last word.
    `study` and `series` seed the UIDs: the same words give the same UIDs.
    """

    slices: int = 24
    rows: int = 64
    columns: int = 64
    spacing_mm: Vector = (3.0, 2.0, 2.0)
    orientation: str | Orientation = "axial"
    gantry_tilt_deg: float = 0.0
    gaps_mm: Sequence[float] | None = None
    descending: bool = False
    missing: Sequence[int] = ()
    transfer_syntax: str = ExplicitVRLittleEndian
    headers: Mapping[str, Any] = field(default_factory=dict)
    edit: Callable[[Dataset, int], None] | None = None
    study: str = "study"
    series: str = "series"

    @property
    def image_orientation_patient(self) -> Orientation:
        """Row and column direction, with the tilt about the row direction."""
        base = ORIENTATIONS[self.orientation] if isinstance(self.orientation, str) else self.orientation
        row, column = np.asarray(base[:3]), np.asarray(base[3:])
        angle = math.radians(self.gantry_tilt_deg)
        tilted = math.cos(angle) * column - math.sin(angle) * np.cross(row, column)
        return tuple(float(value) for value in (*row, *tilted))  # type: ignore[return-value]

    @property
    def positions_mm(self) -> NDArray[np.float64]:
        """Image Position (Patient) of every slice, missing ones too, ascending, shape (slices, 3)."""
        base = ORIENTATIONS[self.orientation] if isinstance(self.orientation, str) else self.orientation
        table = np.cross(base[:3], base[3:])
        gaps = self.gaps_mm if self.gaps_mm is not None else [self.spacing_mm[0]] * (self.slices - 1)
        along = np.concatenate([[0.0], np.cumsum(gaps)])
        oriented = np.asarray(self.image_orientation_patient)
        half_row = (self.columns - 1) / 2 * self.spacing_mm[2] * oriented[:3]
        half_column = (self.rows - 1) / 2 * self.spacing_mm[1] * oriented[3:]
        centres = np.asarray(CENTRE_MM) + (along - along.mean())[:, None] * table
        return np.asarray(np.round(centres - half_row - half_column, 6))

    @property
    def extent_mm(self) -> float:
        """The shortest edge of the stack."""
        positions = self.positions_mm
        depth = float(np.linalg.norm(positions[-1] - positions[0]))
        return min(depth, self.rows * self.spacing_mm[1], self.columns * self.spacing_mm[2])


@dataclass(frozen=True, slots=True)
class SyntheticSeries:
    """What was written, and the truth about it. `paths` follow Instance Number."""

    folder: Path
    paths: tuple[Path, ...]
    scene: Scene
    plan: SeriesPlan
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...]

    @property
    def organ(self) -> Ellipsoid:
        """The truth: ask `contains(points_mm)` and `volume_mm3`."""
        return self.scene.organ


def make_ct_series(folder: Path, **options: Unpack[SeriesOptions]) -> SyntheticSeries:
    """Writes a CT series of single-frame instances into `folder`."""
    plan = SeriesPlan(**options)
    return _write_series(folder, plan, ct_scene(plan), _ct_image)


def make_mr_series(folder: Path, **options: Unpack[SeriesOptions]) -> SyntheticSeries:
    """Writes an MR series of single-frame instances into `folder`."""
    plan = SeriesPlan(**options)
    scene = make_scene(plan.extent_mm, air=0.0, body=300.0, organ=900.0, marker=2000.0)
    return _write_series(folder, plan, scene, _mr_image)


def make_enhanced_ct(folder: Path, **options: Unpack[SeriesOptions]) -> SyntheticSeries:
    """Writes one Enhanced CT instance with a frame per slice into `folder`; `edit` gets index 0."""
    plan = SeriesPlan(**options)
    scene = ct_scene(plan)
    order = [index for index in _writing_order(plan) if index not in plan.missing]
    dataset = _common_header(plan, 0, EnhancedCTImageStorage, "CT")
    dataset.update(_enhanced_header(plan, order))
    stored = np.stack([_stored(plan, scene, index, offset=1024.0) for index in order])
    _set_pixels(dataset, stored, bits_stored=12)
    _finish(dataset, plan, 0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "enhanced.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return _result(folder, (path,), plan, scene, [0])


def _write_series(folder: Path, plan: SeriesPlan, scene: Scene, make_image: Callable[[SeriesPlan, Scene, int], Dataset]) -> SyntheticSeries:
    folder.mkdir(parents=True, exist_ok=True)
    written = [(number, index) for number, index in enumerate(_writing_order(plan), start=1) if index not in plan.missing]
    paths = []
    for number, index in written:
        dataset = make_image(plan, scene, index)
        dataset.InstanceNumber = number
        _finish(dataset, plan, index)
        path = folder / f"{plan.series}-{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return _result(folder, tuple(paths), plan, scene, [index for _, index in written])


def _writing_order(plan: SeriesPlan) -> list[int]:
    indices = list(range(len(plan.positions_mm)))
    return indices[::-1] if plan.descending else indices


def _result(folder: Path, paths: tuple[Path, ...], plan: SeriesPlan, scene: Scene, instances: Sequence[int]) -> SyntheticSeries:
    return SyntheticSeries(
        folder=folder,
        paths=paths,
        scene=scene,
        plan=plan,
        study_instance_uid=derive_uid("test", plan.study),
        series_instance_uid=derive_uid("test", plan.study, plan.series),
        frame_of_reference_uid=derive_uid("test", plan.study, "frame of reference"),
        sop_instance_uids=tuple(_sop_instance_uid(plan, index) for index in instances),
    )


def _sop_instance_uid(plan: SeriesPlan, index: int) -> str:
    return derive_uid("test", plan.study, plan.series, str(index))


def ct_scene(plan: SeriesPlan) -> Scene:
    """Answers what a synthetic CT of that plan shows, in HU."""
    return make_scene(plan.extent_mm, air=-1000.0, body=40.0, organ=250.0, marker=1000.0)


def slice_values(plan: SeriesPlan, scene: Scene, index: int) -> NDArray[np.float64]:
    """Answers the values of one slice, shape (rows, columns)."""
    oriented = np.asarray(plan.image_orientation_patient)
    rows = np.arange(plan.rows)[:, None, None] * plan.spacing_mm[1] * oriented[3:]
    columns = np.arange(plan.columns)[None, :, None] * plan.spacing_mm[2] * oriented[:3]
    points = plan.positions_mm[index] + rows + columns
    return scene.values(points, edge_mm=plan.spacing_mm[1])


def _stored(plan: SeriesPlan, scene: Scene, index: int, *, offset: float) -> NDArray[np.int64]:
    return np.asarray(np.rint(slice_values(plan, scene, index) + offset).astype(np.int64))


def _ct_image(plan: SeriesPlan, scene: Scene, index: int) -> Dataset:
    dataset = _common_header(plan, index, CTImageStorage, "CT")
    _set_plane(dataset, plan, index)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP = "120"
    dataset.RescaleIntercept = "-1024"
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    _set_pixels(dataset, _stored(plan, scene, index, offset=1024.0)[None], bits_stored=12)
    return dataset


def _mr_image(plan: SeriesPlan, scene: Scene, index: int) -> Dataset:
    dataset = _common_header(plan, index, MRImageStorage, "MR")
    _set_plane(dataset, plan, index)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.ScanningSequence = "GR"
    dataset.SequenceVariant = "SP"
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "3D"
    dataset.EchoTime = "3"
    dataset.RepetitionTime = "2000"
    dataset.EchoTrainLength = "1"
    _set_pixels(dataset, _stored(plan, scene, index, offset=0.0)[None], bits_stored=12)
    return dataset


def _common_header(plan: SeriesPlan, index: int, sop_class_uid: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = _sop_instance_uid(plan, index)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20240229"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "101112"
    dataset.AccessionNumber = "RN0001"
    dataset.Modality = modality
    dataset.Manufacturer = "radnode"
    dataset.ManufacturerModelName = "radnode test factory"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = "1"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Synthetic study"
    dataset.SeriesDescription = f"Synthetic {modality}"
    dataset.PatientName = "RADNODE^SYNTHETIC"
    dataset.PatientID = "RADNODE-TEST"
    dataset.PatientBirthDate = "19700101"
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "HEAD"
    dataset.SliceThickness = f"{plan.spacing_mm[0]:g}"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = derive_uid("test", plan.study)
    dataset.SeriesInstanceUID = derive_uid("test", plan.study, plan.series)
    dataset.StudyID = "1"
    dataset.SeriesNumber = 1
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = 1
    dataset.FrameOfReferenceUID = derive_uid("test", plan.study, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    return dataset


def _set_plane(dataset: Dataset, plan: SeriesPlan, index: int) -> None:
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in plan.positions_mm[index]]
    dataset.ImageOrientationPatient = [f"{value:.9f}" for value in plan.image_orientation_patient]
    dataset.PixelSpacing = [f"{plan.spacing_mm[1]:.6f}", f"{plan.spacing_mm[2]:.6f}"]
    if plan.gantry_tilt_deg:
        dataset.GantryDetectorTilt = f"{plan.gantry_tilt_deg:g}"


def _set_pixels(dataset: Dataset, stored: NDArray[np.int64], bits_stored: int) -> None:
    """Fills the Image Pixel module; `stored` has shape (frames, rows, columns)."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits_stored
    dataset.HighBit = bits_stored - 1
    dataset.PixelRepresentation = 0
    limited = np.clip(stored, 0, 2**bits_stored - 1).astype("<u2")
    dataset.PixelData = limited.tobytes()
    dataset["PixelData"].VR = "OW"


def _enhanced_header(plan: SeriesPlan, order: Sequence[int]) -> Dataset:
    """Answers the multi-frame part of an Enhanced CT instance (PS3.3 A.38.1)."""
    dataset = Dataset()
    dataset.NumberOfFrames = len(order)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    dataset.PixelPresentation = "MONOCHROME"
    dataset.VolumetricProperties = "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.AcquisitionDateTime = "20240229101112"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.AcquisitionContextSequence = []
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.ContentQualification = "RESEARCH"
    organisation_uid = derive_uid("test", plan.study, plan.series, "dimensions")
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organisation_uid)]
    dataset.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organisation_uid,
            DimensionIndexPointer=0x00209057,
            FunctionalGroupPointer=0x00209111,
        )
    ]
    spacing = [f"{plan.spacing_mm[1]:.6f}", f"{plan.spacing_mm[2]:.6f}"]
    shared = _item(
        PixelMeasuresSequence=[_item(PixelSpacing=spacing, SliceThickness=f"{plan.spacing_mm[0]:g}")],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=[f"{value:.9f}" for value in plan.image_orientation_patient])],
        PixelValueTransformationSequence=[_item(RescaleIntercept="-1024", RescaleSlope="1", RescaleType="HU")],
        CTImageFrameTypeSequence=[
            _item(
                FrameType=["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"],
                PixelPresentation="MONOCHROME",
                VolumetricProperties="VOLUME",
                VolumeBasedCalculationTechnique="NONE",
            )
        ],
        FrameAnatomySequence=[
            _item(
                FrameLaterality="U",
                AnatomicRegionSequence=[_item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")],
            )
        ],
        IrradiationEventIdentificationSequence=[_item(IrradiationEventUID=derive_uid("test", plan.study, "irradiation"))],
    )
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(
        _item(
            FrameContentSequence=[_item(StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[index + 1])],
            PlanePositionSequence=[_item(ImagePositionPatient=[f"{value:.6f}" for value in plan.positions_mm[index]])],
        )
        for index in order
    )
    return dataset


def _item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _finish(dataset: Dataset, plan: SeriesPlan, index: int) -> None:
    """Applies the caller's wishes and the transfer syntax."""
    for keyword, value in plan.headers.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    if plan.edit is not None:
        plan.edit(dataset, index)
    meta = dataset.file_meta
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", _sop_instance_uid(plan, index))
    if plan.transfer_syntax in NATIVE:
        meta.TransferSyntaxUID = UID(plan.transfer_syntax)
        if plan.transfer_syntax == ExplicitVRBigEndian and "PixelData" in dataset:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        return
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(plan.transfer_syntax, generate_instance_uid=False)
