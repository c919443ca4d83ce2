"""What headers say: plain elements as values, malformed ones as absent, enhanced multi-frame as its first frame."""

import contextlib
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.errors import CannotUnderstand, NodeError
from node.intake.headers import read_header, read_series_headers
from tests import realdata
from tests.factories import NATIVE, SyntheticSeries, make_ct_series, make_enhanced_ct


@pytest.fixture
def ct(tmp_path: Path) -> SyntheticSeries:
    return make_ct_series(tmp_path / "ct", slices=3)


def rewritten(source: Path, target: Path, **raw: bytes) -> Path:
    """Copies a file with other bytes as values: what pydicom would refuse to write."""
    data = source.read_bytes()
    dataset = dcmread(source)
    for keyword, value in raw.items():
        old = dataset[keyword]
        tag = Tag(keyword)
        before = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + old.VR.encode()
        place = data.index(before)
        length = int.from_bytes(data[place + 6 : place + 8], "little")
        data = data[: place + 6] + len(value).to_bytes(2, "little") + value + data[place + 8 + length :]
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_plain_elements_are_values(tmp_path: Path, syntax: str) -> None:
    series = make_ct_series(
        tmp_path / "ct",
        slices=3,
        transfer_syntax=syntax,
        headers={"SeriesDescription": "Thorax 脳 ü", "SpecificCharacterSet": "ISO_IR 192"},
    )
    header = read_header(series.paths[1])
    assert header.study_instance_uid == series.study_instance_uid
    assert header.series_instance_uid == series.series_instance_uid
    assert header.sop_instance_uid == series.sop_instance_uids[1]
    assert header.text("Modality") == "CT"
    assert header.values("SeriesDescription") == ("Thorax 脳 ü",)
    assert header.numbers("PixelSpacing") == (2.0, 2.0)
    assert header.numbers("ImageOrientationPatient") == (1, 0, 0, 0, 1, 0)
    assert header.numbers("Rows") == (64,)
    assert isinstance(header.values("Rows")[0], float)
    assert "PixelData" not in header.attributes
    assert header.frames == 1
    assert header.first_frame is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", b"0,7\\0,7 "),
        ("PixelSpacing", b"nan\\nan "),
        ("PixelSpacing", b"1e999\\1 "),
        ("PixelSpacing", b""),
        ("SliceThickness", b"thick "),
        ("InstanceNumber", b"one "),
        ("ImageOrientationPatient", b"\\\\\\\\\\ "),
        ("SeriesDescription", b""),
        ("StudyDate", b""),
    ],
)
def test_a_malformed_element_is_an_absent_key(ct: SyntheticSeries, tmp_path: Path, keyword: str, value: bytes) -> None:
    path = rewritten(ct.paths[0], tmp_path / "odd.dcm", **{keyword: value})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_header(path)
    assert keyword not in header.attributes
    assert header.text("Modality") == "CT"


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_the_first_frame_speaks_for_an_enhanced_object(tmp_path: Path, syntax: str) -> None:
    series = make_enhanced_ct(tmp_path / "ct", slices=6, transfer_syntax=syntax)
    header = read_header(series.paths[0])
    assert header.frames == 6
    assert header.first_frame is not None
    assert header.numbers("PixelSpacing") == (2.0, 2.0)
    assert header.numbers("ImageOrientationPatient") == (1, 0, 0, 0, 1, 0)
    assert len(header.numbers("ImagePositionPatient")) == 3
    assert header.numbers("SliceThickness")


def test_instances_are_grouped_by_series_and_ordered_by_number(tmp_path: Path) -> None:
    one = make_ct_series(tmp_path / "a", slices=5, series="one")
    two = make_ct_series(tmp_path / "b", slices=3, series="two")
    (tmp_path / "readme.txt").write_text("no DICOM")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut.dcm").write_bytes(one.paths[0].read_bytes()[:200])
    skipped: dict[str, str] = {}
    paths = [*reversed(one.paths), *two.paths, one.paths[0], *(tmp_path / name for name in ("readme.txt", "empty", "cut.dcm", "gone"))]
    series = read_series_headers(paths, lambda path, why: skipped.update({path.name: why}))
    assert [header.series_instance_uid for header in series] == [one.series_instance_uid, two.series_instance_uid]
    assert [instance.sop_instance_uid for instance in series[0].instances] == list(one.sop_instance_uids)
    assert [header.slices for header in series] == [5, 3]
    assert skipped.keys() == {"readme.txt", "empty", "cut.dcm", "gone"}
    assert all(skipped.values())


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1" * 65])
def test_without_a_uid_to_file_it_under_there_is_no_header(ct: SyntheticSeries, tmp_path: Path, keyword: str, value: Any) -> None:
    dataset = dcmread(ct.paths[0])
    dataset[keyword] = DataElement(keyword, "UI", value, validation_mode=0)
    dcmwrite(tmp_path / "bad.dcm", dataset)
    with pytest.raises(CannotUnderstand, match=keyword):
        read_header(tmp_path / "bad.dcm")


def test_the_file_meta_information_supplies_what_the_data_set_lacks(ct: SyntheticSeries, tmp_path: Path) -> None:
    dataset = dcmread(ct.paths[0])
    sop_class, sop_instance = dataset.SOPClassUID, dataset.SOPInstanceUID
    del dataset.SOPClassUID, dataset.SOPInstanceUID
    dcmwrite(tmp_path / "bare.dcm", dataset)
    header = read_header(tmp_path / "bare.dcm")
    assert (header.sop_class_uid, header.sop_instance_uid) == (sop_class, sop_instance)


def test_long_and_private_elements_are_left_out(ct: SyntheticSeries, tmp_path: Path) -> None:
    dataset = dcmread(ct.paths[0])
    dataset.ImageComments = "x" * 5000
    dataset.private_block(0x0029, "MAKER", create=True).add_new(0x10, "LO", "secret")
    dataset.RequestAttributesSequence = [Dataset()]
    dataset.save_as(tmp_path / "long.dcm")
    header = read_header(tmp_path / "long.dcm")
    assert not header.attributes.keys() & {"ImageComments", "RequestAttributesSequence", ""}
    assert "secret" not in str(header.attributes)


@pytest.mark.parametrize("seed", range(60))
def test_broken_files_give_a_header_or_a_reason_and_no_warning(ct: SyntheticSeries, tmp_path: Path, seed: int) -> None:
    """Bytes changed, cut out or doubled anywhere: accepted, or a NodeError; never anything else."""
    dice = random.Random(seed)
    data = bytearray(ct.paths[0].read_bytes()[:3000])
    for _ in range(dice.randint(1, 30)):
        place = dice.randrange(132, len(data))
        kind = dice.random()
        if kind < 0.6:
            data[place] = dice.randrange(256)
        elif kind < 0.8:
            del data[place : place + dice.randrange(1, 9)]
        else:
            data[place:place] = data[place : place + dice.randrange(1, 9)]
    path = tmp_path / "broken.dcm"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(NodeError):
            read_header(path)


@pytest.mark.data
def test_real_enhanced_mr_of_three_makers() -> None:
    folder = realdata.unpack("enhanced-mr-dcm_qa_enh")
    series = read_series_headers(sorted(path for path in folder.rglob("*") if path.is_file()))
    multi = [header.representative for header in series if header.representative.frames > 1]
    assert multi
    for header in multi:
        assert len(header.numbers("PixelSpacing")) == 2
        assert len(header.numbers("ImagePositionPatient")) == 3


@pytest.mark.data
def test_the_series_of_a_real_study() -> None:
    series = read_series_headers(sorted(path for path in realdata.mr_brain_adi_dir().rglob("*") if path.is_file()))
    assert sorted(header.slices for header in series) == [1, 1, 55, 175]
    assert len({header.study_instance_uid for header in series}) == 1
