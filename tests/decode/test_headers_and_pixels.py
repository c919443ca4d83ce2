"""Headers and pixel data as hospitals write them, on synthetic series."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from node.codes import UCUM_HOUNSFIELD, UCUM_NO_UNITS
from node.errors import (
    BrokenPixelData,
    DuplicatePositions,
    InputError,
    MissingGeometry,
    NotAVolume,
    TooFewSlices,
)
from node.inference.series_reader import LOCALIZERS_LEFT_OUT, REPEATED_INSTANCES_LEFT_OUT, VALUES_NOT_HOUNSFIELD, read_series
from tests import realdata
from tests.factories import make_ct_series, make_enhanced_ct, make_mr_series

SMALL: dict[str, Any] = {"slices": 6, "rows": 32, "columns": 40, "spacing_mm": (5.0, 2.0, 2.0)}


# ── headers as they come ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        {"InstanceNumber": None},
        {"SeriesInstanceUID": None},
        {"SliceThickness": None, "SpacingBetweenSlices": "77"},
        {"HighBit": None},
        {"BitsStored": None, "HighBit": None},
        {"SamplesPerPixel": None, "PhotometricInterpretation": None},
        {"RescaleType": None},
        {"RescaleType": "hu "},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PatientName": None, "PatientID": None, "StudyDate": None, "AccessionNumber": None, "PatientSex": "U"},
        {"ImageType": None},
        {"PixelPaddingValue": 0},
    ],
    ids=" ".join,
)
def test_headers_that_do_not_matter(headers: dict[str, Any], tmp_path: Path) -> None:
    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    other = read_series(make_ct_series(tmp_path / "other", **SMALL, headers=headers).paths)
    assert np.array_equal(plain.voxels, other.voxels)
    assert plain.geometry.is_close_to(other.geometry)
    assert (other.units, other.notes) == (UCUM_HOUNSFIELD, ())


@pytest.mark.parametrize(
    "character_set", [b"\\ISO 2022 IR 87 ", b"GB18030 ", b"ISO_IR 100", b"ISO 2022 IR 149\\ISO 2022 IR 149 ", b"KLINGON "]
)
def test_character_sets_and_malformed_dates_do_not_matter(character_set: bytes, tmp_path: Path) -> None:
    def spoil(dataset: Dataset, index: int) -> None:
        raw_value("SpecificCharacterSet", character_set)(dataset, index)
        raw_value("PatientName", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")(dataset, index)
        raw_value("PatientBirthDate", b"31.02.70")(dataset, index)
        raw_value("StudyTime", b"101112.1234567")(dataset, index)

    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    other = read_series(make_ct_series(tmp_path / "other", **SMALL, edit=spoil).paths)
    assert np.array_equal(plain.voxels, other.voxels)


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("PixelSpacing", b"2,0\\2,0 "),
        ("PixelSpacing", b" 2.000 \\ 2 "),
        ("PixelSpacing", b"2.0,2.0 "),
        ("PixelSpacing", b"2 2 "),
        ("PixelSpacing", b"+2.0E0\\.2e1\0"),
        ("ImageOrientationPatient", b"1,0\\0,0\\0,0\\0,0\\1,0\\0,0 "),
        ("RescaleIntercept", b" -1024,0 "),
        ("RescaleSlope", b"1,0 "),
    ],
)
def test_malformed_numbers_that_are_plain(keyword: str, raw: bytes, tmp_path: Path) -> None:
    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    other = read_series(make_ct_series(tmp_path / "other", **SMALL, edit=raw_value(keyword, raw)).paths)
    assert np.array_equal(plain.voxels, other.voxels)
    assert plain.geometry.is_close_to(other.geometry)


@pytest.mark.parametrize(
    ("keyword", "raw", "error", "words"),
    [
        ("PixelSpacing", b"", MissingGeometry, "Pixel Spacing is absent or malformed in 6 of 6"),
        ("PixelSpacing", b"1,5 ", MissingGeometry, "Pixel Spacing"),
        ("PixelSpacing", b"2.0 ", MissingGeometry, "Pixel Spacing"),
        ("PixelSpacing", b"2mm\\2mm ", MissingGeometry, "Pixel Spacing"),
        ("PixelSpacing", b"nan\\nan ", MissingGeometry, "Pixel Spacing"),
        ("PixelSpacing", b"-2\\-2 ", MissingGeometry, "Pixel Spacing"),
        ("ImagePositionPatient", b"1\\2 ", MissingGeometry, "Image Position"),
        ("ImagePositionPatient", b"1,2,3 ", MissingGeometry, "Image Position"),
        ("ImagePositionPatient", b"inf\\0\\0 ", MissingGeometry, "Image Position"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\0\\0 ", MissingGeometry, "Image Orientation"),
        ("FrameOfReferenceUID", b"", MissingGeometry, "Frame of Reference"),
        ("RescaleIntercept", b"", BrokenPixelData, "no known scale"),
        ("RescaleIntercept", b"-1,024", BrokenPixelData, "no known scale"),
        ("RescaleSlope", b"0 ", BrokenPixelData, "no known scale"),
        ("Rows", b"", BrokenPixelData, "there is no image"),
        ("Rows", b"\1\0\1\0\1\0", BrokenPixelData, "there is no image"),
        ("PixelRepresentation", b"", BrokenPixelData, "signed or unsigned"),
        ("BitsStored", b"\x11\0", BrokenPixelData, "contradicts itself"),
        ("NumberOfFrames", b"3 ", MissingGeometry, "no header says where"),
    ],
)
def test_malformed_headers_that_matter(keyword: str, raw: bytes, error: type[InputError], words: str, tmp_path: Path) -> None:
    if keyword == "NumberOfFrames":
        series = make_ct_series(tmp_path, **SMALL, edit=three_frames)
    else:
        series = make_ct_series(tmp_path, **SMALL, edit=raw_value(keyword, raw))
    with pytest.raises(error, match=words):
        read_series(series.paths)


def raw_value(keyword: str, raw: bytes) -> Callable[[Dataset, int], None]:
    """Answers an edit that puts bytes into an element as they are."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    def edit(dataset: Dataset, index: int) -> None:
        tag = Tag(tag_for_keyword(keyword) or 0)
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(raw), raw, 0, False, True)

    return edit


def three_frames(dataset: Dataset, index: int) -> None:
    dataset.NumberOfFrames = 3
    dataset.PixelData = dataset.PixelData * 3


# ── pixel data ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "transfer_syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"]
)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_file(transfer_syntax: str, share: float, tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, **SMALL, transfer_syntax=transfer_syntax).paths
    data = paths[3].read_bytes()
    paths[3].write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BrokenPixelData, match=r"(image|file|File) 4"):
        read_series(paths)


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5"])
def test_garbage_instead_of_a_code_stream(transfer_syntax: str, tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, **SMALL, transfer_syntax=transfer_syntax).paths
    data = bytearray(paths[3].read_bytes())
    start = data.rindex(b"\xfe\xff\x00\xe0") + 8
    data[start : start + 64] = bytes(64)
    paths[3].write_bytes(data)
    with pytest.raises(BrokenPixelData, match="of image 4 cannot be decoded"):
        read_series(paths)


def test_no_pixel_data(tmp_path: Path) -> None:
    paths = make_ct_series(tmp_path, **SMALL, headers={"PixelData": None}).paths
    with pytest.raises(BrokenPixelData, match="no pixel data in image"):
        read_series(paths)


def test_no_dicom_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("not DICOM")
    with pytest.raises(BrokenPixelData, match="File 1 of the series cannot be parsed"):
        read_series([path])


@pytest.mark.parametrize("bits_stored", [12, 13, 16])
def test_signed_values_and_dirt_in_unused_bits(bits_stored: int, tmp_path: Path) -> None:
    """Stored HU, two's complement in the low bits; the bits above hold an old overlay."""

    def sign(dataset: Dataset, index: int) -> None:
        hounsfield = np.frombuffer(dataset.PixelData, "<u2").astype(np.int32) - 1024
        dirt = np.where(np.arange(hounsfield.size) % 3 == 0, 0xFFFF << bits_stored, 0)
        stored = (hounsfield & ((1 << bits_stored) - 1)) | (dirt & 0xFFFF)
        dataset.PixelData = stored.astype("<u2").tobytes()
        dataset.RescaleIntercept = "0"
        dataset.PixelRepresentation = 1
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1

    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    signed = read_series(make_ct_series(tmp_path / "signed", **SMALL, edit=sign).paths)
    assert np.array_equal(plain.voxels, signed.voxels)


def test_high_bit_above_the_stored_bits(tmp_path: Path) -> None:
    def lift(dataset: Dataset, index: int) -> None:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") << 4).astype("<u2").tobytes()
        dataset.HighBit = 15

    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    lifted = read_series(make_ct_series(tmp_path / "lifted", **SMALL, edit=lift).paths)
    assert np.array_equal(plain.voxels, lifted.voxels)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    """PET and Philips MR scale slice by slice."""

    def scale(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(1 + index), str(-10 * index)

    plain = read_series(make_mr_series(tmp_path / "plain", **SMALL).paths)
    scaled = read_series(make_mr_series(tmp_path / "scaled", **SMALL, edit=scale).paths)
    for index in range(6):
        assert np.array_equal(scaled.voxels[index], plain.voxels[index] * (1 + index) - 10 * index)


def test_ct_without_any_rescale_is_not_called_hounsfield(tmp_path: Path) -> None:
    volume = read_series(make_ct_series(tmp_path, **SMALL, headers={"RescaleSlope": None, "RescaleIntercept": None}).paths)
    assert volume.units == UCUM_NO_UNITS
    (note,) = volume.notes
    assert (note.code, note.degraded) == (VALUES_NOT_HOUNSFIELD, True)


def test_modality_lut(tmp_path: Path) -> None:
    """A table that inverts: -1024 HU for the brightest stored value."""

    def tabulate(dataset: Dataset, index: int) -> None:
        table = Dataset()
        table.LUTDescriptor = [4096, 0, 16]
        table.ModalityLUTType = "HU"
        table.LUTData = np.arange(4095, -1, -1).astype("<u2").tobytes()
        table["LUTDescriptor"].VR = "US"
        table["LUTData"].VR = "OW"
        dataset.ModalityLUTSequence = [table]
        del dataset.RescaleSlope
        del dataset.RescaleIntercept

    plain = read_series(make_ct_series(tmp_path / "plain", **SMALL).paths)
    inverted = read_series(make_ct_series(tmp_path / "inverted", **SMALL, edit=tabulate).paths)
    assert np.array_equal(inverted.voxels, 4095 - (plain.voxels + 1024))


# ── what else lies in a series ──────────────────────────────────────────────


def test_localizers_are_left_out_and_said(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, **SMALL)
    scout = make_ct_series(
        tmp_path, slices=2, orientation="sagittal", headers={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, series="scout"
    )
    same_series = realdata.repaired(scout.paths, tmp_path / "scout", SeriesInstanceUID=series.series_instance_uid)
    volume = read_series([*series.paths, *same_series])
    assert volume.voxels.shape == (6, 32, 40)
    (note,) = volume.notes
    assert note.code == LOCALIZERS_LEFT_OUT
    assert note.text.startswith("2 localizer image")
    assert not note.degraded


def test_the_same_instance_twice_counts_once(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, **SMALL)
    copies = realdata.repaired(series.paths[:2], tmp_path / "copies")
    volume = read_series([*series.paths, *copies])
    assert volume.voxels.shape == (6, 32, 40)
    assert [note.code for note in volume.notes] == [REPEATED_INSTANCES_LEFT_OUT]


def test_two_series_are_not_one(tmp_path: Path) -> None:
    first, second = make_ct_series(tmp_path, **SMALL), make_ct_series(tmp_path, **SMALL, series="other")
    with pytest.raises(NotAVolume, match="2 series"):
        read_series([*first.paths, *second.paths])


def test_two_echoes_in_one_series(tmp_path: Path) -> None:
    first = make_mr_series(tmp_path, **SMALL)
    second = make_mr_series(tmp_path, **SMALL, series="echo 2", headers={"EchoTime": "90", "SeriesInstanceUID": first.series_instance_uid})
    with pytest.raises(DuplicatePositions, match=r"12 images lie at only 6 places.*echo time \(3, 90\)"):
        read_series([*first.paths, *second.paths])


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_uids_come_from_the_file_meta_information_where_the_data_set_has_none(keyword: str, tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, **SMALL, headers={keyword: None})
    volume = read_series(series.paths)
    assert [plane.sop_instance_uid for plane in volume.source.planes] == list(series.sop_instance_uids)


def test_no_file_is_no_volume() -> None:
    with pytest.raises(TooFewSlices, match="0 image"):
        read_series([])


# ── enhanced multi-frame ────────────────────────────────────────────────────


def test_enhanced_equals_single_frames(tmp_path: Path) -> None:
    single = read_series(make_ct_series(tmp_path / "single", **SMALL).paths)
    enhanced = read_series(make_enhanced_ct(tmp_path / "enhanced", **SMALL, descending=True).paths)
    assert np.array_equal(single.voxels, enhanced.voxels)
    assert single.geometry.is_close_to(enhanced.geometry)
    assert enhanced.units == UCUM_HOUNSFIELD
    assert [plane.frame_number for plane in enhanced.source.planes] == [6, 5, 4, 3, 2, 1]
    assert len({plane.sop_instance_uid for plane in enhanced.source.planes}) == 1


def test_enhanced_with_per_frame_scale_and_shared_position_parts(tmp_path: Path) -> None:
    def per_frame(dataset: Dataset, index: int) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        transformation = shared.PixelValueTransformationSequence
        del shared.PixelValueTransformationSequence
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item = copy.deepcopy(transformation[0])
            item.RescaleIntercept = str(-1024 + number)
            groups.PixelValueTransformationSequence = [item]
            groups.PlaneOrientationSequence = shared.PlaneOrientationSequence
        del shared.PlaneOrientationSequence

    plain = read_series(make_enhanced_ct(tmp_path / "plain", **SMALL).paths)
    other = read_series(make_enhanced_ct(tmp_path / "other", **SMALL, edit=per_frame).paths)
    assert np.array_equal(other.voxels, plain.voxels + np.arange(6, dtype=np.float32)[:, None, None])
    assert other.units == UCUM_HOUNSFIELD


@pytest.mark.parametrize("group", ["PlanePositionSequence", "FrameContentSequence"])
def test_enhanced_without_a_functional_group(group: str, tmp_path: Path) -> None:
    def strip(dataset: Dataset, index: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[2][group]

    paths = make_enhanced_ct(tmp_path, **SMALL, edit=strip).paths
    if group == "FrameContentSequence":
        assert read_series(paths).voxels.shape == (6, 32, 40)
        return
    with pytest.raises(MissingGeometry, match=r"Image Position .*1 of 6 images .for instance frame 3 of image 1"):
        read_series(paths)


def test_enhanced_with_too_few_functional_groups(tmp_path: Path) -> None:
    def strip(dataset: Dataset, index: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[5]

    with pytest.raises(MissingGeometry, match="6 frames in image 1, but the geometry of 5"):
        read_series(make_enhanced_ct(tmp_path, **SMALL, edit=strip).paths)
