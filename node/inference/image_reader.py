"""Single images (radiographs, mammograms) as one-slice volumes: for models that read each image by itself."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from node.codes import UCUM_NO_UNITS
from node.domain.volume import SPACING_UNKNOWN, Plane, QualityNote, SourceGrid, Volume, VolumeGeometry
from node.errors import NotAVolume
from node.inference.elements import decimals, text
from node.inference.pixels import Rescale, modality_transform
from node.inference.series_reader import ON_DISK, ImageFiles, Instance, Instances, select_instances

_UPRIGHT: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_SPACINGS: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""Of the patient, of the detector, of a scanned film: the first that is there."""


def read_images(files: Sequence[Path], images: ImageFiles = ON_DISK) -> tuple[Volume, ...]:
    """Answers each image of some files as a volume of one slice: float32, bright where a reader sees it bright.

    Values are after the modality LUT; those of MONOCHROME1 are turned over within their range, as a viewer shows them. A projection
    has no place in the patient: where the header states none, the image lies upright at the origin. In the order of Series
    Instance UID, Instance Number and SOP Instance UID.

    Raises
    ------
    InputError
        When an image cannot be read, has several frames, or is no gray image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom and the decoders warn of what real devices write: data, not code
        selection = select_instances([images.instance(path, number) for number, path in enumerate(sorted(files), start=1)])
        return tuple(_image(instance, selection, images) for instance in sorted(selection.instances, key=_place))


def _place(instance: Instance) -> tuple[str, float, str]:
    number = decimals(instance.header, "InstanceNumber", 1)
    return (text(instance.header, "SeriesInstanceUID"), number[0] if number else np.inf, instance.sop_instance_uid)


def _image(instance: Instance, selection: Instances, images: ImageFiles) -> Volume:
    pixels = instance.pixels
    if pixels.frames > 1:
        raise NotAVolume(f"There are {pixels.frames} frames in {pixels.name}: the model reads single images.")
    voxels = np.empty((1, pixels.rows, pixels.columns), np.float32)
    transform = modality_transform(instance.header, pixels.name) or Rescale(1.0, 0.0)
    (stored,) = images.frames(pixels, [0])
    transform.apply(stored, voxels[0])
    if pixels.photometric_interpretation == "MONOCHROME1":
        np.subtract(voxels.max() + voxels.min(), voxels, out=voxels)
    spacing_mm, notes = _spacing(instance.header)
    source = _grid(instance, spacing_mm)
    matrix = np.eye(4)
    matrix[:3, 0] = source.normal
    matrix[:3, 1] = source.column_cosine * source.row_spacing_mm
    matrix[:3, 2] = source.row_cosine * source.column_spacing_mm
    matrix[:3, 3] = source.planes[0].image_position_patient
    modality = text(instance.header, "Modality") or "OT"
    return Volume(voxels, VolumeGeometry(source.shape, matrix), source, modality, UCUM_NO_UNITS, (*selection.notes, *notes))


def _grid(instance: Instance, spacing_mm: tuple[float, ...]) -> SourceGrid:
    orientation = decimals(instance.header, "ImageOrientationPatient", 6) or _UPRIGHT
    position = decimals(instance.header, "ImagePositionPatient", 3) or (0.0, 0.0, 0.0)
    plane = Plane(instance.sop_class_uid, instance.sop_instance_uid, (position[0], position[1], position[2]))
    return SourceGrid(
        rows=instance.pixels.rows,
        columns=instance.pixels.columns,
        row_spacing_mm=spacing_mm[0],
        column_spacing_mm=spacing_mm[1],
        image_orientation_patient=orientation,  # type: ignore[arg-type]
        planes=(plane,),
        frame_of_reference_uid=text(instance.header, "FrameOfReferenceUID"),
    )


def _spacing(header: Dataset) -> tuple[tuple[float, ...], tuple[QualityNote, ...]]:
    for keyword in _SPACINGS:
        spacing_mm = decimals(header, keyword, 2)
        if spacing_mm is not None and min(spacing_mm) > 0:
            return spacing_mm, ()
    return (1.0, 1.0), (QualityNote(SPACING_UNKNOWN, "The image states no pixel spacing: lengths and areas are unknown."),)
