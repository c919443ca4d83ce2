"""Turns a volume that is no DICOM (an InVesalius project, a NIfTI file) into a DICOM study to try radnode with.

The identity is plainly fake and every UID derives from the content of the source: the same source gives the same study.
"""

import hashlib
import math
import plistlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from node.codes import IMPLEMENTATION_CLASS_UID, MANUFACTURER
from node.domain.identifiers import derive_uid
from node.errors import UsageError

DEMO_PACKAGE: Final = "invesalius-examples"
DEMO_SOURCE: Final = Path("usr/share/doc/invesalius-examples/examples/Cranium.inv3")
"""Where the Debian package puts its head CT, below / or below an unpacked copy."""

DEMO_PATIENT_NAME: Final = "RADNODE^DEMO"
DEMO_PATIENT_ID: Final = "RADNODE-DEMO"
DEMO_DATE: Final = "20240101"
DEMO_TIME: Final = "120000"

_ORTHOGONAL_TOLERANCE: Final = 1e-3
_APT_TIMEOUT_S: Final = 300.0
_MR_LARGEST: Final = 4095

Progress = Callable[[int, int], None]
"""Called with (images written, images in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """Voxels (slices, rows, columns) and their place: `patient_from_voxel` maps (slice, row, column, 1) to LPS mm."""

    voxels: NDArray[Any]
    patient_from_voxel: NDArray[np.float64]
    description: str


def find_demo_source(cache: Path) -> Path:
    """Answers the demo head CT: installed, or in `cache`, or fetched there with apt (needs no root). Raises UsageError."""
    for root in (Path("/"), cache / DEMO_PACKAGE):
        if (root / DEMO_SOURCE).is_file():
            return root / DEMO_SOURCE
    return _fetch_demo_source(cache)


def make_study(source: Path, output: Path, *, modality: str, progress: Progress | None = None, body_part: str = "HEAD") -> list[Path]:
    """Writes `source` (.inv3, .nii, .nii.gz) as one CT or MR series of a new study into `output` and answers the files.

    Raises UsageError where the source cannot be read or the modality is neither CT nor MR.
    """
    if modality not in ("CT", "MR"):
        raise UsageError(f"A study can be made as CT or MR, not as {modality!r}.")
    if not source.is_file():
        raise UsageError(f"{source} is not there.")
    stack = _read_stack(source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    template = _template(stack, digest, modality, body_part)
    stored = _set_values(template, stack.voxels, modality)
    output.mkdir(parents=True, exist_ok=True)
    slices = len(stored)
    paths = []
    for index in range(slices):
        path = output / f"{modality}{index + 1:04d}.dcm"
        _write_image(path, template, stored[index], index, stack, digest)
        paths.append(path)
        if progress is not None:
            progress(index + 1, slices)
    return paths


# ── sources ─────────────────────────────────────────────────────────────────


def _fetch_demo_source(cache: Path) -> Path:
    advice = f"Install it (apt-get install {DEMO_PACKAGE}) or give a study of your own (--study DIR)."
    apt_get, dpkg_deb = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt_get is None or dpkg_deb is None:
        raise UsageError(f"The demo head CT comes with the Debian package {DEMO_PACKAGE}, and this system has no apt-get. {advice}")
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / DEMO_PACKAGE
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        try:
            _run([apt_get, "download", DEMO_PACKAGE], folder)
            package = next(folder.glob("*.deb"), None)
            if package is None:
                raise UsageError(f"apt-get download {DEMO_PACKAGE} left no package. {advice}")
            _run([dpkg_deb, "-x", str(package), str(folder / "unpacked")], folder)
        except (subprocess.SubprocessError, OSError) as error:
            raise UsageError(f"The Debian package {DEMO_PACKAGE} with the demo head CT could not be fetched. {advice}") from error
        shutil.rmtree(target, ignore_errors=True)
        (folder / "unpacked").rename(target)
    if not (target / DEMO_SOURCE).is_file():
        raise UsageError(f"The package {DEMO_PACKAGE} does not hold {DEMO_SOURCE.name}. {advice}")
    return target / DEMO_SOURCE


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_APT_TIMEOUT_S)  # noqa: S603 - fixed words, no shell


def _read_stack(source: Path) -> _Stack:
    if source.name.endswith(".inv3"):
        return _read_invesalius(source)
    if source.name.endswith((".nii", ".nii.gz")):
        return _read_nifti(source)
    raise UsageError(f"{source.name}: a study can be made of .inv3, .nii and .nii.gz files.")


def _read_invesalius(source: Path) -> _Stack:
    """Answers the CT of an InVesalius project: a tar with main.plist and a raw matrix (z, y, x).

    Columns go to the patient's left, rows to the front (the project holds images upside down for VTK), slices to the head.
    """
    try:
        with tarfile.open(source) as archive:
            members = {PurePosixPath(member.name).name: member for member in archive.getmembers() if member.isfile()}
            plist = plistlib.loads(_member(archive, members, "main.plist"))
            matrix = plist["matrix"]
            data = _member(archive, members, str(matrix["filename"]))
            shape = tuple(int(size) for size in matrix["shape"])
            voxels = np.frombuffer(data, np.dtype(str(matrix["dtype"])).newbyteorder("<")).reshape(shape)
            column_spacing, row_spacing, slice_spacing = (float(value) for value in plist["spacing"])
    except (tarfile.TarError, plistlib.InvalidFileException, OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{source.name} is not a readable InVesalius project ({type(error).__name__}).") from error
    spacing = np.array([slice_spacing, row_spacing, column_spacing])
    upright = voxels[:, ::-1, :]  # rows to the back, as DICOM shows an axial image
    return _Stack(upright, _axial_affine(spacing, upright.shape), "InVesalius project")


def _member(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> bytes:
    file = archive.extractfile(members[name])
    if file is None:
        raise KeyError(name)
    return file.read()


def _axial_affine(spacing_mm: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Answers the axial grid (columns to the left, rows to the back, slices to the head) whose middle is the origin."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing_mm
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    matrix[3, 3] = 1
    return matrix


def _read_nifti(source: Path) -> _Stack:
    """Answers a NIfTI volume with slices along the axis nearest to feet-head. NIfTI is RAS, DICOM LPS: x and y change sign."""
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(source))  # type: ignore[no-untyped-call]
        if len(image.shape) != 3 or min(image.shape) < 2:
            raise UsageError(f"{source.name} has the shape {image.shape}: a study is made of one volume.")
        scaled = image.header.get_slope_inter() not in ((None, None), (1.0, 0.0))
        values = image.get_fdata(dtype=np.float32) if scaled else np.asanyarray(image.dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, ValueError, EOFError) as error:
        raise UsageError(f"{source.name} is not a readable NIfTI file ({type(error).__name__}).") from error
    lps_from_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    columns, rows = image.shape[:2]
    index_from_voxel = np.array([[0, 0, -1, columns - 1], [0, -1, 0, rows - 1], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
    voxels = np.transpose(values, (2, 1, 0))[:, ::-1, ::-1]
    patient_from_voxel = lps_from_ras @ image.affine @ index_from_voxel
    directions = patient_from_voxel[:3, :3] / np.linalg.norm(patient_from_voxel[:3, :3], axis=0)
    if np.abs(directions.T @ directions - np.eye(3)).max() > _ORTHOGONAL_TOLERANCE:
        raise UsageError(f"{source.name} has a sheared grid, which DICOM images cannot express.")
    return _Stack(voxels, patient_from_voxel, "NIfTI volume")


# ── DICOM ───────────────────────────────────────────────────────────────────


def _set_values(template: Dataset, voxels: NDArray[Any], modality: str) -> NDArray[np.uint16]:
    """Answers the stored values and enters their scale. CT: stored + intercept = HU. MR: whole numbers from 0, scaled if need be."""
    values = np.nan_to_num(voxels) if np.issubdtype(voxels.dtype, np.floating) else voxels
    smallest, largest = float(values.min()), float(values.max())
    if modality == "CT":
        intercept = min(-1024, math.floor(smallest))
        stored = np.clip(np.rint(values.astype(np.float32) - intercept), 0, 65535).astype("<u2")
        template.RescaleIntercept = str(intercept)
        template.RescaleSlope = "1"
        template.RescaleType = "HU"
    elif smallest >= 0 and largest <= 65535 and np.issubdtype(values.dtype, np.integer):
        stored = values.astype("<u2")
    else:
        span = largest - smallest or 1.0
        stored = np.rint((values.astype(np.float32) - smallest) * (_MR_LARGEST / span)).astype("<u2")
    bits = 12 if int(stored.max()) <= 4095 else 16
    template.BitsAllocated = 16
    template.BitsStored = bits
    template.HighBit = bits - 1
    template.PixelRepresentation = 0
    return stored


def _template(stack: _Stack, digest: str, modality: str, body_part: str) -> Dataset:
    """Answers all that the images of the series share."""
    template = Dataset()
    template.SpecificCharacterSet = "ISO_IR 192"
    template.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    template.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    template.StudyDate = template.SeriesDate = template.ContentDate = DEMO_DATE
    template.StudyTime = template.SeriesTime = template.ContentTime = DEMO_TIME
    template.AccessionNumber = f"DEMO{digest[:8].upper()}"
    template.Modality = modality
    template.Manufacturer = MANUFACTURER
    template.ManufacturerModelName = "radnode study maker"  # not the node's own name: those images would never be analysed
    template.ReferringPhysicianName = ""
    template.StudyDescription = f"radnode demo {modality}"
    template.SeriesDescription = f"{modality} made from a volume"
    template.DerivationDescription = f"Made by radnode from an {stack.description}, sha256 {digest}"
    template.PatientName = DEMO_PATIENT_NAME
    template.PatientID = DEMO_PATIENT_ID
    template.PatientBirthDate = "19700101"
    template.PatientSex = "O"
    template.BodyPartExamined = body_part
    template.PatientPosition = "HFS"
    template.StudyInstanceUID = derive_uid("study maker", "study", digest)
    template.SeriesInstanceUID = derive_uid("study maker", "series", digest, modality)
    template.StudyID = "DEMO"
    template.SeriesNumber = 1
    template.AcquisitionNumber = 1
    template.FrameOfReferenceUID = derive_uid("study maker", "frame of reference", digest)
    template.PositionReferenceIndicator = ""
    template.BurnedInAnnotation = "NO"
    if modality == "CT":
        template.KVP = None
    else:
        template.ScanningSequence = "RM"
        template.SequenceVariant = "NONE"
        template.ScanOptions = ""
        template.MRAcquisitionType = "3D"
        template.RepetitionTime = template.EchoTime = template.EchoTrainLength = None
    matrix = stack.patient_from_voxel
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    template.SliceThickness = _decimal_string(spacing[0])
    template.PixelSpacing = [_decimal_string(spacing[1]), _decimal_string(spacing[2])]
    orientation = [*(matrix[:3, 2] / spacing[2]), *(matrix[:3, 1] / spacing[1])]
    template.ImageOrientationPatient = [_decimal_string(value) for value in orientation]
    template.SamplesPerPixel = 1
    template.PhotometricInterpretation = "MONOCHROME2"
    template.Rows, template.Columns = stack.voxels.shape[1:]
    return template


def _write_image(path: Path, template: Dataset, stored: NDArray[np.uint16], index: int, stack: _Stack, digest: str) -> None:
    image = Dataset(template)
    image.SOPInstanceUID = derive_uid("study maker", "instance", digest, str(template.Modality), str(index))
    image.InstanceNumber = index + 1
    position = stack.patient_from_voxel @ np.array([index, 0, 0, 1.0])
    image.ImagePositionPatient = [_decimal_string(value) for value in position[:3]]
    image.PixelData = stored.tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    image.save_as(path, enforce_file_format=True)


def _decimal_string(value: float) -> str:
    """Answers a number as DS: at most 16 characters (PS3.5 Table 6.2-1)."""
    return f"{round(float(value), 9) + 0.0:.10g}"
