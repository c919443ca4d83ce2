"""What the gate reads objects with says the same as pydicom, in every form of a file, and loses no fault on the way."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from node.evidence.gate import Severity, examine_object, examine_set
from node.evidence.gate.decimals import decimals_in
from node.evidence.gate.frames import bits_set, read_frames
from node.evidence.gate.view import View, keyword_of
from node.evidence.segmentation import encode_label_map
from node.evidence.sop_common import part10_bytes
from tests.conformance.cases import Case, make_case
from tests.conformance.other_objects import encode


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Frames of 45 x 51 pixels: they do not begin on whole bytes."""
    return make_case(tmp_path_factory.mktemp("reading"), "axial descending", 3, slices=11, headers={"PatientName": "Müller^Jörg"})


@pytest.fixture(scope="module")
def objects(case: Case) -> list[Dataset]:
    further = [encode(role, case) for role in ("rtstruct", "kos", "gsps", "pm")]
    return [case.segmentation(), case.report(), encode_label_map(case.result, case.sources, case.context), *further]


def read_as(dataset: Dataset, syntax: str, *, undefined: bool = False) -> Dataset:
    """Answers a data set, written in a transfer syntax and read again."""
    whole = pydicom.dcmread(BytesIO(part10_bytes(dataset)))
    if undefined:
        for element in whole.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
    whole.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dcmwrite(
        buffer, whole, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    return pydicom.dcmread(BytesIO(buffer.getvalue()))


def test_every_value_is_that_of_pydicom(objects: list[Dataset]) -> None:
    for one in objects:
        content = part10_bytes(one)
        same(View(pydicom.dcmread(BytesIO(content))), pydicom.dcmread(BytesIO(content)))


def same(view: View, dataset: Dataset) -> None:
    assert [tag for tag, _ in view.elements()] == sorted(int(tag) for tag in dataset.keys())  # noqa: SIM118 - tags, not elements
    for element in dataset:
        value = view.value(int(element.tag))
        if element.VR == "SQ":
            assert len(value) == len(element.value)
            for ours, theirs in zip(value, element.value, strict=True):
                same(ours, theirs)
            continue
        if element.keyword:
            assert view.is_empty(element.keyword) == element.is_empty
        if element.is_empty:
            assert value in (None, b""), element.keyword
        elif element.VM > 1:
            assert [plain(one) for one in value] == [plain(one) for one in element.value], element.keyword
        else:
            assert plain(value) == plain(element.value), element.keyword


def plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    ("syntax", "undefined"),
    [
        (ImplicitVRLittleEndian, False),
        (ExplicitVRLittleEndian, True),
        (ImplicitVRLittleEndian, True),
        (DeflatedExplicitVRLittleEndian, False),
    ],
)
def test_the_form_of_the_file_changes_nothing(objects: list[Dataset], case: Case, syntax: str, undefined: bool) -> None:
    plainly = [str(fault) for _, fault in examine_set([pydicom.dcmread(BytesIO(part10_bytes(one))) for one in objects], case.sources)]
    again = [read_as(one, syntax, undefined=undefined) for one in objects]
    assert [str(fault) for _, fault in examine_set(again, case.sources)] == plainly
    assert read_frames(View(again[0])) == read_frames(View(objects[0]))


def test_a_fault_is_found_in_every_form(case: Case) -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        seg = pydicom.dcmread(BytesIO(part10_bytes(case.segmentation())))
        seg.SegmentSequence[1].SegmentNumber = 9
        seg.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient[2] += 1
        told = [str(fault) for _, fault in examine_set([read_as(seg, syntax)], case.sources)]
        assert any("segments are numbered" in one for one in told)
        assert any("it lies at" in one for one in told)


# ── pixels ──────────────────────────────────────────────────────────────────


def test_bits_are_counted_also_where_frames_do_not_begin_on_bytes(case: Case) -> None:
    seg = case.segmentation()
    assert seg.Rows * seg.Columns % 8, "odd"
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: seg.NumberOfFrames * seg.Rows * seg.Columns]
    assert list(bits_set(View(seg))) == bits.reshape(seg.NumberOfFrames, -1).sum(axis=1).tolist()


def overlap(seg: Dataset) -> None:
    """Sets the first pixel of two frames at one place."""
    size = seg.Rows * seg.Columns
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    places: dict[tuple[float, ...], int] = {}
    for number, frame in enumerate(read_frames(View(seg))):
        for one in {places.setdefault(frame.position_mm, number), number}:
            bits[one * size] = 1
    seg.PixelData = np.packbits(bits, bitorder="little").tobytes()


def undescribe(label_map: Dataset) -> None:
    pixels = bytearray(label_map.PixelData)
    pixels[5] = 77
    label_map.PixelData = bytes(pixels)


def pad_with_a_letter(label_map: Dataset) -> None:
    assert label_map.NumberOfFrames * label_map.Rows * label_map.Columns % 2
    label_map.PixelData = label_map.PixelData[:-1] + b"0"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(overlap, "share a pixel"), (undescribe, "hold the value 77"), (pad_with_a_letter, "something else than a zero byte")],
)
def test_seeded_errors_of_pixels_are_caught(case: Case, spoil: Callable[[Dataset], None], words: str) -> None:
    made = case.segmentation() if spoil is overlap else encode_label_map(case.result, case.sources, case.context)
    dataset = pydicom.dcmread(BytesIO(part10_bytes(made)))
    assert not any(words in str(fault) for fault in examine_object(dataset))
    spoil(dataset)
    assert any(words in str(fault) for fault in examine_object(dataset))


# ── contours ────────────────────────────────────────────────────────────────


@given(st.lists(st.one_of(st.decimals(-1e6, 1e6, places=4).map(str), st.floats(-1e9, 1e9).map(lambda one: f"{one:.9g}")), min_size=1))
def test_decimal_strings_are_read_as_python_reads_them(texts: list[str]) -> None:
    assert np.allclose(decimals_in("\\".join(texts).encode()), [float(one) for one in texts], rtol=1e-15, atol=0)


@pytest.mark.parametrize("text", ["1\\", "\\1", "1\\-\\2", "1.2.3", "--1", "1-2", ".", "nan", "inf\\1", "1\\x", "1e999"])
def test_what_is_no_decimal_string_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decimals_in(text.encode())


def test_a_word_among_the_points_does_not_pass(case: Case, tmp_path: Path) -> None:
    content = part10_bytes(encode("rtstruct", case))
    structures = pydicom.dcmread(BytesIO(content))
    first = structures.ROIContourSequence[0].ContourSequence[0].get_item("ContourData").value[:8]
    spoiled = pydicom.dcmread(BytesIO(content.replace(first, b"x" + first[1:], 1)))
    assert any(fault.severity is Severity.ERROR for fault in examine_object(spoiled))
    assert keyword_of(0x30060050) == "ContourData"
