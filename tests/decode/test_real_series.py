"""Real series against SimpleITK (GDCM), a reader that shares no code with ours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention

from node.codes import UCUM_HOUNSFIELD, UCUM_NO_UNITS
from node.domain.geometry import GANTRY_TILT_RESAMPLED, MISSING_SLICE_INTERPOLATED, UNEVEN_SPACING_RESAMPLED
from node.domain.volume import Volume
from node.errors import BrokenPixelData, DuplicatePositions, MissingGeometry, MissingSlices, NotAVolume
from node.inference.series_reader import read_series
from tests import realdata

pytestmark = pytest.mark.data

AFFINE_TOLERANCE_MM = 0.02
VALUE_TOLERANCE = 2e-3

LPS_FROM_ITK = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""Turns the index (slice, row, column) into ITK's (column, row, slice)."""


def read_with_simpleitk(files: Sequence[Path], volume: Volume) -> sitk.Image:
    """Answers the series read by SimpleITK, in the order of our planes; ITK takes the affine from first and last slice."""
    by_uid = {}
    for path in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        by_uid[reader.GetMetaData("0008|0018").strip(" \0")] = str(path)
    series = sitk.ImageSeriesReader()
    series.SetFileNames([by_uid[plane.sop_instance_uid] for plane in volume.source.planes])
    series.SetOutputPixelType(sitk.sitkFloat32)
    return series.Execute()


def itk_affine(image: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return matrix @ LPS_FROM_ITK


def itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.voxels)
    matrix = volume.geometry.patient_from_voxel @ np.linalg.inv(LPS_FROM_ITK)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def corner_difference_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    corners = np.array([(s, r, c, 1) for s in (0, shape[0] - 1) for r in (0, shape[1] - 1) for c in (0, shape[2] - 1)]).T
    return float(np.abs((first - second) @ corners).max())


@pytest.mark.parametrize(
    ("files", "shape", "units"),
    [
        pytest.param(lambda: sorted(realdata.head_ct_debian_dir().iterdir()), (108, 256, 256), UCUM_HOUNSFIELD, id="Debian head CT"),
        pytest.param(lambda: realdata.phantom_files("S2010"), (28, 512, 512), UCUM_HOUNSFIELD, id="phantom 5 mm"),
        pytest.param(lambda: realdata.phantom_files("S2020"), (140, 512, 512), UCUM_HOUNSFIELD, id="phantom 1 mm"),
        pytest.param(lambda: sorted(realdata.colin27_dir().iterdir()), (181, 217, 181), UCUM_NO_UNITS, id="Colin27 T1"),
    ],
)
def test_regular_series_equal_simpleitk(files, shape, units) -> None:
    paths = files()
    volume = read_series(paths[::-1])
    image = read_with_simpleitk(paths, volume)
    assert volume.voxels.shape == volume.geometry.shape == volume.source.shape == shape
    assert (volume.units, volume.notes) == (units, ())
    assert volume.voxels.dtype == np.float32
    assert np.abs(volume.voxels - sitk.GetArrayFromImage(image)).max() <= VALUE_TOLERANCE
    assert corner_difference_mm(volume.geometry.patient_from_voxel, itk_affine(image), shape) < AFFINE_TOLERANCE_MM


def test_jpeg_2000_abdomen_without_uids_in_the_data_set() -> None:
    """SOP Class and SOP Instance UID are empty; the file meta information still has them."""
    folder = realdata.unpack("abdomen-ct-totalseg") / "tests" / "reference_files" / "example_ct_dicom"
    volume = read_series(list(folder.iterdir()))
    assert volume.voxels.shape == (20, 512, 512)
    assert volume.geometry.spacing_mm == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert {plane.sop_class_uid for plane in volume.source.planes} == {"1.2.840.10008.5.1.4.1.1.2"}
    assert len({plane.sop_instance_uid for plane in volume.source.planes}) == 20
    for path in folder.iterdir():
        itk = sitk.ReadImage(str(path))
        height = itk.GetOrigin()[2]
        (index,) = [at for at, plane in enumerate(volume.source.planes) if plane.image_position_patient[2] == pytest.approx(height)]
        assert np.array_equal(volume.voxels[index], sitk.GetArrayFromImage(itk)[0])


@pytest.mark.parametrize(
    ("files", "shape", "missing_index"),
    [
        pytest.param(realdata.adi_t1_files, (176, 192, 192), 114, id="T1, image 115"),
        pytest.param(realdata.adi_t2_files, (56, 512, 384), 34, id="T2, image 35"),
    ],
)
def test_one_missing_slice_is_bridged(files, shape, missing_index) -> None:
    paths = files()
    volume = read_series(paths)
    assert volume.voxels.shape == shape
    assert volume.units == UCUM_NO_UNITS
    (note,) = volume.notes
    assert (note.code, note.degraded) == (MISSING_SLICE_INTERPOLATED, True)
    assert f"between image {missing_index} and image {missing_index + 2}" in note.text
    inserted = missing_index if volume_ascends_with_instance_numbers(volume, paths) else shape[0] - 1 - missing_index
    kept = np.delete(volume.voxels, inserted, axis=0)
    assert np.abs(kept - sitk.GetArrayFromImage(read_with_simpleitk(paths, volume))).max() <= VALUE_TOLERANCE
    neighbours = (volume.voxels[inserted - 1] + volume.voxels[inserted + 1]) / 2
    assert volume.voxels[inserted] == pytest.approx(neighbours, abs=0.01)


def volume_ascends_with_instance_numbers(volume: Volume, files: Sequence[Path]) -> bool:
    first = [path for path, number in realdata._headers(files[0].parent, "InstanceNumber") if number == "1" and path in files]
    uids = [uid for path, uid in realdata._headers(files[0].parent, "SOPInstanceUID") if path in first]
    return volume.source.planes[0].sop_instance_uid == uids[0]


def test_ge_head_ct_tilted_and_uneven() -> None:
    files = sorted(realdata.ge_head_ct_dir().iterdir())
    volume = read_series(files)
    assert [note.code for note in volume.notes] == [UNEVEN_SPACING_RESAMPLED, GANTRY_TILT_RESAMPLED]
    assert "18.5 degrees" in volume.notes[1].text
    assert not any(note.degraded for note in volume.notes)
    assert volume.source.shape == (28, 512, 512)
    assert volume.geometry.shape[0] == 38
    assert volume.geometry.shape[1] > 600
    image = itk_image(volume)
    for path in files:
        plane = sitk.ReadImage(str(path), sitk.sitkFloat32)
        resampled = sitk.GetArrayFromImage(sitk.Resample(image, plane, sitk.Transform(), sitk.sitkLinear, -1024.0))[0]
        inner = np.s_[100:412, 100:412]
        original = np.maximum(sitk.GetArrayFromImage(plane)[0][inner], -1024)
        assert np.corrcoef(original.ravel(), resampled[inner].ravel())[0, 1] > 0.9, path.name


def test_half_a_series_says_how_many_slices_are_missing() -> None:
    with pytest.raises(MissingSlices, match=r"6\d slice.s. missing: 1[34]\d expected .a slice every 1.00 mm., 7\d found"):
        read_series(realdata.phantom_files("S2020")[::2] + realdata.phantom_files("S2020")[1:10:2])


def test_phantom_parts_that_are_no_volume() -> None:
    with pytest.raises(NotAVolume, match="only localizer images"):
        read_series(realdata.phantom_files("S1000"))
    with pytest.raises(NotAVolume, match="colour picture"):
        read_series(realdata.phantom_files("S4010"))
    with pytest.raises(BrokenPixelData, match="there is no image"):
        read_series([realdata.phantom_dir() / "DIRFILE"])


def test_siemens_mosaics_are_not_guessed() -> None:
    with pytest.raises(MissingGeometry, match="mosaic"):
        read_series(realdata.adi_series_files("relCBF"))


def test_a_whole_study_is_no_series() -> None:
    with pytest.raises(NotAVolume):
        read_series([*realdata.adi_t1_files(), *realdata.adi_t2_files()])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("In/Philips/IM_0027_fMAP.dcm", r"64 images lie at only 32 places.*FIELD_MAP"),
        ("In/Siemens/XA10", r"24 images lie at only 6 places.*temporal position \(1, 2, 3, 4\)"),
    ],
)
def test_enhanced_mr_with_several_images_at_one_place_says_which(path: str, words: str) -> None:
    source = realdata.unpack("enhanced-mr-dcm_qa_enh") / path
    with pytest.raises(DuplicatePositions, match=words):
        read_series(sorted(source.iterdir()) if source.is_dir() else [source])
