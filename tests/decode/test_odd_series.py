"""Series that break readers: the test data of dicom2nifti and of pydicom."""

from pathlib import Path

import numpy as np
import pytest

from node.codes import UCUM_NO_UNITS
from node.domain.geometry import GANTRY_TILT_RESAMPLED
from node.errors import (
    DuplicatePositions,
    InputError,
    MissingGeometry,
    MissingSlices,
    MixedOrientation,
    NotAVolume,
    TooFewSlices,
)
from node.inference.series_reader import VALUES_NOT_HOUNSFIELD, read_series
from tests import realdata
from tests.decode.images import decode

# ── dicom2nifti's collection ────────────────────────────────────────────────
# The files are anonymised and lack the Frame of Reference UID, which the tests put back.


def odd_series(name: str, folder: Path) -> list[Path]:
    source = realdata.unpack("odd-dicom2nifti") / name
    return realdata.repaired(sorted(source.iterdir()), folder, FrameOfReferenceUID="2.25.7")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm", "largest"),
    [
        ("generic/anatomical/001", (4, 256, 256), (1.0, 1.0, 1.0), 254.0),
        ("generic/anatomical/001_implicit", (4, 256, 256), (1.0, 1.0, 1.0), 254.0),
        ("generic/anatomical/002_non_isotropic", (4, 28, 64), (0.5, 4.0, 6.39996), 96.46799),
        ("hitachi/anatomical/001", (4, 64, 64), (4.0, 2.34375, 2.34375), 1537.0),
        ("hitachi/anatomical/001_implicit", (4, 64, 64), (4.0, 2.34375, 2.34375), 1537.0),
        ("hyperfine/anatomical/001", (8, 138, 112), (5.0, 1.61, 1.59), 254.0),
        ("philips_enhanced/anatomical/001", (8, 256, 256), (1.2, 1.0, 1.0), 254 * 4.25885225885225),
        ("philips_enhanced/anatomical/001_implicit", (8, 256, 256), (1.0, 0.9375, 0.9375), 254 * 14.5965811965811),
        ("siemens_multiframe/anatomical/001", (8, 256, 256), (0.9, 0.9375, 0.9375), 254.0),
        ("failing/slicecount/001", (2, 256, 256), (1.0, 1.0, 1.0), 254.0),
    ],
)
def test_readable(name: str, shape: tuple[int, ...], spacing_mm: tuple[float, ...], largest: float, tmp_path: Path) -> None:
    volume = read_series(odd_series(name, tmp_path))
    assert volume.voxels.shape == shape
    assert volume.geometry.spacing_mm == pytest.approx(spacing_mm, abs=1e-3)
    assert volume.voxels.max() == pytest.approx(largest, rel=1e-5)
    assert volume.notes == ()


@pytest.mark.data
def test_compressed_variants_are_one_volume(tmp_path: Path) -> None:
    """One source in JPEG 2000, JPEG Lossless, JPEG-LS and RLE."""
    names = ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle"]
    volumes = [read_series(odd_series(f"generic/{name}/001", tmp_path / name)) for name in names]
    assert volumes[0].voxels.max() == 254.0
    assert all(np.array_equal(volume.voxels, volumes[0].voxels) for volume in volumes)
    assert all(volume.source == volumes[0].source for volume in volumes)


@pytest.mark.data
def test_gantry_tilt_that_dicom2nifti_declines_is_resampled(tmp_path: Path) -> None:
    volume = read_series(odd_series("failing/gantrytilting/001", tmp_path))
    (note,) = volume.notes
    assert note.code == GANTRY_TILT_RESAMPLED
    assert "14.0 degrees" in note.text
    assert volume.voxels.shape == (4, 521, 512)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("failing/notavolume/001", DuplicatePositions, r"4 images lie at only 1 places.*acquisition number \(12, 13, 14, 15\)"),
        ("failing/sliceincrement/001", MissingSlices, r"1 slice.s. missing: 5 expected .a slice every 5.00 mm., 4 found"),
        ("failing/sliceincrement/002", MissingSlices, r"every 0.75 mm., 4 found"),
        ("failing/sliceorientation/001", MixedOrientation, "2 of 4 images are turned"),
        ("generic/rgb/001", NotAVolume, "colour picture"),
        ("philips_enhanced/dti/001", DuplicatePositions, r"32 images lie at only 8 places.*b-value \(0.0, 1300.0\)"),
        ("philips_enhanced/dti/001_implicit", DuplicatePositions, "b-value"),
        ("philips_enhanced/fmri/001", DuplicatePositions, r"temporal position \(1, 2, 3, 4\): send"),
        ("philips_enhanced/fmri/001_implicit", DuplicatePositions, "temporal position"),
    ],
)
def test_refused(name: str, error: type[InputError], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        read_series(odd_series(name, tmp_path))


@pytest.mark.data
def test_without_frame_of_reference_nothing_is_guessed() -> None:
    folder = realdata.unpack("odd-dicom2nifti") / "generic" / "anatomical" / "001"
    with pytest.raises(MissingGeometry, match="Frame of Reference UID is absent or malformed in 4 of 4 images"):
        read_series(sorted(folder.iterdir()))


# ── pydicom's collection ────────────────────────────────────────────────────


def pydicom_data(name: str) -> Path:
    return realdata.pip_wheel_member("pydicom-data==1.0.0", "data_store/data/") / name


@pytest.mark.data
@pytest.mark.parametrize("encoding", ["_jpeg_ls_lossless", "_big_endian", "_jpeg_2k_lossless", "_RLE"])
@pytest.mark.parametrize("frame", [0, 9])
def test_multiframe_encodings_agree(encoding: str, frame: int) -> None:
    expected = decode(pydicom_data("emri_small.dcm"), frame)
    assert np.array_equal(decode(pydicom_data(f"emri_small{encoding}.dcm"), frame), expected)


@pytest.mark.data
def test_multiframe_without_geometry_is_refused() -> None:
    with pytest.raises(MissingGeometry, match="10 frames in image 1, but no header says where each lies"):
        read_series([pydicom_data("emri_small.dcm")])


@pytest.mark.data
def test_enhanced_ct_of_a_perfusion_map_is_not_hounsfield() -> None:
    volume = read_series([pydicom_data("eCT_Supplemental.dcm")])
    assert volume.voxels.shape == (2, 512, 512)
    assert volume.units == UCUM_NO_UNITS
    assert [note.code for note in volume.notes] == [VALUES_NOT_HOUNSFIELD]


@pytest.mark.data
def test_modality_lut_of_a_real_file() -> None:
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut

    path = pydicom_data("mlut_18.dcm")
    dataset = dcmread(path)
    assert "ModalityLUTSequence" in dataset
    assert np.array_equal(decode(path), apply_modality_lut(dataset.pixel_array, dataset))


@pytest.mark.data
@pytest.mark.parametrize("name", ["explicit_VR-UN.dcm", "bad_sequence.dcm", "MR2_UNCR.dcm", "693_UNCR.dcm", "vlut_04.dcm"])
def test_one_image_is_no_volume(name: str) -> None:
    with pytest.raises(TooFewSlices, match="1 image"):
        read_series([pydicom_data(name)])


@pytest.mark.data
def test_overlays_in_the_high_bits_are_masked() -> None:
    from pydicom import dcmread

    path = pydicom_data("MR-SIEMENS-DICOM-WithOverlays.dcm")
    dataset = dcmread(path)
    mask = (1 << dataset.BitsStored) - 1
    assert np.array_equal(decode(path), (dataset.pixel_array & mask).astype(np.float32))
