"""Patient and study identity arrive byte for byte in every result, whatever the hospital sends."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from node.evidence.exact import TEXT_VRS, keep_bytes
from node.evidence.header import DESCRIPTION, IDENTITY, TYPE_2
from tests.conformance.cases import Case, make_case, read_headers, write
from tests.conformance.validators import consistency_faults, iod_faults, presence_faults, tree_faults

pytestmark = pytest.mark.peer

ABSENT = dict.fromkeys(TYPE_2)

HEADERS: dict[str, Mapping[str, Any]] = {
    "all type 2 absent": ABSENT,
    **{f"{keyword} absent": {keyword: None} for keyword in TYPE_2},
    "all type 2 empty": dict.fromkeys(TYPE_2, ""),
    "sex of no defined term": {"PatientSex": "U"},
    "sex in lower case": {"PatientSex": "male"},
    "dates with dots": {"PatientBirthDate": "1970.01.01", "StudyDate": "29.02.2024"},
    "dates that are none": {"PatientBirthDate": "19701301", "StudyDate": "UNKNOWN"},
    "time with seven digits": {"StudyTime": "101112.1234567"},
    "time with colons": {"StudyTime": "10:11:12"},
    "accession of 17": {"AccessionNumber": "A1234567890123456"},
    "long name and id": {"PatientName": "X" * 70, "PatientID": "0" * 70},
    "name with too many parts": {"PatientName": "A^B^C^D^E^F^G=H=I=J"},
    "name with a backslash": {"PatientName": ["A", "B"], "PatientID": ["1", "2"]},
    "everything": {
        "IssuerOfPatientID": "SITE",
        "OtherPatientIDs": ["1", "2"],
        "PatientBirthTime": "0101",
        "PatientAge": "054Y",
        "PatientSize": "1.7",
        "PatientWeight": "70.25",
        "PatientIdentityRemoved": "NO",
        "InstitutionName": "Klinik",
        "TimezoneOffsetFromUTC": "+0530",
        "ReferringPhysicianName": "Doe^Jane^^Dr.",
        "StudyDescription": "CT of something",
        "PregnancyStatus": 4,
    },
    "malformed and empty descriptions": {"PatientAge": "0Y", "PatientWeight": "", "DeidentificationMethod": ""},
    "no equipment": {"Manufacturer": None, "ManufacturerModelName": None, "SoftwareVersions": None, "BodyPartExamined": None},
    "several software versions": {"SoftwareVersions": ["a", "b"]},
    "UID with a leading zero": {"StudyInstanceUID": "1.2.03.4"},
}


def make_bad_code(dataset: Dataset, index: int) -> None:
    code = Dataset()
    code.CodeValue = "X1"
    dataset.ProcedureCodeSequence = [code]
    dataset.RequestAttributesSequence = [Dataset()]
    dataset.RequestAttributesSequence[0].RequestedProcedureCodeSequence = [code]


@pytest.mark.parametrize("headers", HEADERS.values(), ids=list(HEADERS))
def test_odd_headers_give_results_with_the_same_identity(tmp_path: Path, headers: Mapping[str, Any]) -> None:
    case = make_case(tmp_path, slices=6, rows=32, columns=32, headers=headers)
    seg, sr = _written(case, tmp_path)
    for path in (seg, sr):
        _assert_same_identity(path, case.series.paths[0])
        assert presence_faults(path) == []
        faults = [fault for fault in iod_faults(path) if not any(f"{keyword}(" in fault for keyword in headers)]
        assert faults == []
    assert tree_faults(sr) == []
    assert consistency_faults([*case.series.paths, seg, sr]) == consistency_faults(case.series.paths)


def test_descriptions_are_copied_where_they_are_well_formed(tmp_path: Path) -> None:
    good = {"PatientAge": "054Y", "PatientSize": "1.7", "PatientWeight": "70.25", "PatientIdentityRemoved": "NO", "PregnancyStatus": 4}
    bad = {"PatientAge": "54", "PatientWeight": "", "PatientIdentityRemoved": "no", "AdmissionID": ""}
    kept = make_case(tmp_path / "good", headers=good).segmentation()
    left = make_case(tmp_path / "bad", headers=bad, edit=_put_bad_size).segmentation()
    assert {keyword: str(kept[keyword].value) for keyword in good} == {keyword: str(value) for keyword, value in good.items()}
    assert [keyword for keyword in (*bad, "PatientSize") if keyword in left] == []


def test_half_codes_are_left_out(tmp_path: Path) -> None:
    case = make_case(tmp_path, edit=make_bad_code)
    for path in _written(case, tmp_path):
        assert iod_faults(path) == []
    sr = pydicom.dcmread(path)
    assert sr.ReferencedRequestSequence[0].RequestedProcedureCodeSequence == []
    assert "ProcedureCodeSequence" not in sr
    procedure = next(item for item in sr.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121058")
    assert procedure.ConceptCodeSequence[0].CodeMeaning == "CT of head"


CHARACTER_SETS: dict[str, tuple[Any, bytes]] = {
    "Latin-1": ("ISO_IR 100", b"M\xfcller^J\xf6rg"),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode()),
    "Cyrillic": ("ISO_IR 144", b"\xbb\xee\xda^\xd5\xdc\xd1\xe3\xe0\xd3"),
    "Japanese, empty first": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "Japanese, half width first": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    "Korean": (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    "Chinese": ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab="),
    "none stated, Latin-1 sent": (None, b"M\xfcller^J\xf6rg"),
    "stated wrongly": ("ISO_IR 100", "Müller^Jörg".encode()),
}


@pytest.mark.parametrize("decoded_before", [False, True], ids=["raw", "decoded before"])
@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_names_in_every_character_set_arrive_byte_exact(tmp_path: Path, name: str, decoded_before: bool) -> None:
    character_set, raw = CHARACTER_SETS[name]
    case = make_case(tmp_path, slices=6, rows=32, columns=32, headers={"SpecificCharacterSet": character_set}, edit=_fill_with(raw))
    for path in case.series.paths:
        _put_bytes(path, raw)
    sources = read_headers(case.series)
    if decoded_before:
        for source in sources:
            str(source)
            list(source.iterall())
    card = replace(case.result.card, title="Größe – µ 大", manufacturer="Ünïcode")
    case = replace(case, sources=sources, result=replace(case.result, card=card))
    for path in _written(case, tmp_path):
        if not decoded_before:
            _assert_same_identity(path, case.series.paths[0])
        evidence = pydicom.dcmread(path)
        assert evidence.get_item("PatientName").value.rstrip(b" =") == raw.rstrip(b"=")
        if not decoded_before:  # what is lost by decoding cannot be found again: the pipeline hands over fresh headers
            assert evidence.get_item("StudyDescription").value.rstrip() == raw.replace(b"^", b" ")
        description = evidence.SeriesDescription
        assert description.startswith("AI Gr")
        if name in {"UTF-8", "Chinese"}:
            assert "Größe – µ 大" in description
        for fault in iod_faults(path):
            assert name in {"none stated, Latin-1 sent", "stated wrongly"}, fault


def test_reading_a_name_in_memory_does_not_change_its_bytes(tmp_path: Path) -> None:
    character_set, raw = CHARACTER_SETS["Japanese, empty first"]
    case = make_case(tmp_path, slices=6, rows=32, columns=32, headers={"SpecificCharacterSet": character_set}, edit=_fill_with(raw))
    for path in case.series.paths:
        _put_bytes(path, raw)
    seg = replace(case, sources=read_headers(case.series)).segmentation()
    assert seg.PatientName.ideographic == "山田^太郎"
    path = write(seg, tmp_path / "seg.dcm")
    assert pydicom.dcmread(path).get_item("PatientName").value.rstrip() == raw


@pytest.mark.parametrize("transfer_syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless])
def test_transfer_syntax_of_the_source_does_not_matter(tmp_path: Path, transfer_syntax: str) -> None:
    headers = {"ProcedureCodeSequence": [_code("C1", "99SITE", "Schädel CT")], "PregnancyStatus": 4}
    case = make_case(tmp_path, transfer_syntax=transfer_syntax, headers=headers)
    for path in _written(case, tmp_path):
        _assert_same_identity(path, case.series.paths[0])
        assert iod_faults(path) == []
        evidence = pydicom.dcmread(path)
        assert evidence.PregnancyStatus == 4
        assert evidence.ProcedureCodeSequence[0].CodeMeaning == "Schädel CT"
        assert evidence.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("lossy", [0, 1, None], ids=["the first is lossy", "one is lossy", "none is lossy"])
def test_segmentation_tells_of_lossy_sources(tmp_path: Path, lossy: int | None) -> None:
    def compress(dataset: Dataset, index: int) -> None:
        if index == lossy:
            dataset.LossyImageCompression = "01"
            dataset.LossyImageCompressionRatio = "9.5"
            dataset.LossyImageCompressionMethod = "ISO_10918_1"

    seg = make_case(tmp_path, edit=compress).segmentation()
    assert seg.LossyImageCompression == ("00" if lossy is None else "01")
    assert ("LossyImageCompressionRatio" in seg) == (lossy is not None)
    assert iod_faults(write(seg, tmp_path / "seg.dcm")) == []


def test_encoding_twice_gives_equal_bytes(tmp_path: Path) -> None:
    case = make_case(tmp_path, "oblique", parts=5)
    again = replace(case, sources=read_headers(case.series)[::-1])
    for name in ("segmentation", "report"):
        first = write(getattr(case, name)(), tmp_path / "first.dcm")
        second = write(getattr(again, name)(), tmp_path / "second.dcm")
        assert first.read_bytes() == second.read_bytes()


def test_another_job_gives_other_uids(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    other = replace(case, context=replace(case.context, job_key="other"))
    for name in ("segmentation", "report"):
        mine, theirs = getattr(case, name)(), getattr(other, name)()
        assert mine.SOPInstanceUID != theirs.SOPInstanceUID
        assert mine.SeriesInstanceUID != theirs.SeriesInstanceUID
        assert mine.file_meta.ImplementationClassUID.startswith("2.25.")


def test_dates_of_ours_keep_the_clock_of_the_source(tmp_path: Path) -> None:
    plain = make_case(tmp_path / "a").segmentation()
    indian = make_case(tmp_path / "b", headers={"TimezoneOffsetFromUTC": "+0530"}).segmentation()
    odd = make_case(tmp_path / "c", headers={"TimezoneOffsetFromUTC": "IST"}).segmentation()
    assert (plain.ContentDate, plain.ContentTime) == (odd.ContentDate, odd.ContentTime) == ("20260304", "050607")
    assert (indian.ContentDate, indian.ContentTime) == ("20260304", "103607")


def _written(case: Case, folder: Path) -> tuple[Path, Path]:
    return write(case.segmentation(), folder / "seg.dcm"), write(case.report(), folder / "sr.dcm")


def _assert_same_identity(path: Path, source_path: Path) -> None:
    evidence, source = pydicom.dcmread(path), pydicom.dcmread(source_path)
    assert _bytes_of(evidence, "SpecificCharacterSet") == _bytes_of(source, "SpecificCharacterSet")
    for keyword in IDENTITY:
        mine, theirs = _bytes_of(evidence, keyword), _bytes_of(source, keyword)
        assert mine == (theirs if theirs is not None or keyword not in TYPE_2 else b""), keyword
    for keyword in DESCRIPTION:
        if dictionary_VR(keyword) in TEXT_VRS:
            assert _bytes_of(evidence, keyword) in {None, _bytes_of(source, keyword)}, keyword


def _bytes_of(dataset: Dataset, keyword: str) -> bytes | None:
    tag = Tag(keyword)
    if tag not in dataset:
        return None
    element = pydicom.dcmread(dataset.filename, specific_tags=[tag]).get_item(tag)
    value = element.value if isinstance(element.value, bytes) else str(element.value or "").encode()
    return value.rstrip(b" \0")


def _fill_with(raw: bytes) -> Any:
    """Makes the texts that `_put_bytes` replaces: as long as `raw`, in ASCII."""

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PatientName = "N" * len(raw)
        dataset.StudyDescription = "D" * len(raw)

    return edit


def _put_bytes(path: Path, raw: bytes) -> None:
    content = path.read_bytes()
    assert content.count(b"N" * len(raw)) == content.count(b"D" * len(raw)) == 1
    content = content.replace(b"N" * len(raw), raw).replace(b"D" * len(raw), raw.replace(b"^", b" "))
    path.write_bytes(content)


def _put_bad_size(dataset: Dataset, index: int) -> None:
    tag = Tag("PatientSize")
    dataset[tag] = RawDataElement(tag, "DS", 4, b"1,75", 0, is_implicit_VR=False, is_little_endian=True)
    keep_bytes(dataset)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
