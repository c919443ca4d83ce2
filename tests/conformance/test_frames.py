"""The frames that we write ourselves are those that highdicom writes: bits, functional groups and dimensions, byte for byte."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from highdicom.seg import Segmentation, SegmentationTypeValues
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from node.domain.volume import LabelMap
from node.evidence import segmentation
from node.evidence.frames import frames_of, labels_of_planes, pack_frames
from node.evidence.segmentation import images_of_planes, segments_of
from node.evidence.sop_common import equipment
from tests.conformance.cases import GEOMETRIES, Case, make_case

FRAMES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames", "DimensionOrganizationType",
          "ReferencedSeriesSequence", "SourceImageSequence", "SegmentSequence", "Rows", "Columns", "SegmentsOverlap")  # fmt: skip


def plain_highdicom(case: Case) -> Dataset:
    """What highdicom makes of the whole label map."""
    grid, context = case.label_map.source, case.context
    images = images_of_planes(case.sources, grid)
    segments = segments_of(case.result)
    made = Segmentation(
        source_images=segmentation._stand_ins(images, grid, segmentation._slice_thickness_mm(images[0], grid)),
        pixel_array=segment_numbers(case),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segmentation._description(n, one, case.result, context) for n, one in enumerate(segments, 1)],
        series_instance_uid=context.uid("seg", "series"),
        series_number=1,
        sop_instance_uid=context.uid("seg", "instance"),
        instance_number=1,
        content_label="AI_SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(context),
    )
    size = -(-int(made.NumberOfFrames) * made.Rows * made.Columns // 8)
    made.PixelData = made.PixelData[:size] + b"\0" * (size % 2)  # it pads with the character 0
    return made


def segment_numbers(case: Case) -> NDArray[np.uint8]:
    number_of_label = np.zeros(256, dtype=np.uint8)
    for number, segment in enumerate(segments_of(case.result), 1):
        number_of_label[segment.label_value] = number
    return number_of_label[case.label_map.labels]


def number_frames(made: Dataset, case: Case) -> None:
    """It counts the frames of the stand-in; the true numbers are those of the planes."""
    numbers = [plane.frame_number for plane in case.label_map.source.planes]
    if numbers[0] is None:
        return
    images = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in made.PerFrameFunctionalGroupsSequence]
    for image in {id(image): image for image in images}.values():
        image.ReferencedFrameNumber = numbers[int(image.ReferencedFrameNumber) - 1]


def encoded(dataset: Dataset) -> bytes:
    part = Dataset()
    for keyword in FRAMES:
        if keyword in dataset:
            part[keyword] = dataset[keyword]
    buffer = BytesIO()
    dcmwrite(buffer, part, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("parts", [1, 2, 17])
def test_they_are_byte_for_byte_those_of_highdicom(tmp_path: Path, geometry: str, parts: int) -> None:
    case = make_case(tmp_path, geometry, parts)
    ours, theirs = case.segmentation(), plain_highdicom(case)
    number_frames(theirs, case)
    assert bytes(ours.PixelData) == bytes(theirs.PixelData)
    assert encoded(ours) == encoded(theirs)


@pytest.mark.parametrize("gap", [True, False])
def test_one_segment_with_a_gap_is_no_3d_organization(tmp_path: Path, gap: bool) -> None:
    case = make_case(tmp_path, "axial", 1)
    labels = case.label_map.labels.copy()
    filled = np.flatnonzero(labels.any(axis=(1, 2)))
    if gap:
        labels[filled[2]] = 0
    case = replace(case, result=replace(case.result, label_map=LabelMap(labels, case.label_map.source)))
    ours, theirs = case.segmentation(), plain_highdicom(case)
    assert ("DimensionOrganizationType" in ours) is not gap
    assert encoded(ours) == encoded(theirs)


@st.composite
def numbered(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 13), st.integers(1, 19)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    numbers = generator.integers(0, draw(st.integers(1, 6)), shape, dtype=np.uint8, endpoint=True)
    numbers[generator.random(shape) < draw(st.floats(0, 1))] = 0
    return numbers


@settings(max_examples=200, deadline=None)
@given(numbered())
def test_unpacked_they_are_the_labels_again_whatever_the_size(numbers: NDArray[np.uint8]) -> None:
    frames = frames_of(labels_of_planes(numbers), range(1, 8))
    packed = pack_frames(numbers, frames)
    assert len(packed) % 2 == 0
    pixels = numbers[0].size
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    assert not bits[len(frames) * pixels :].any(), "what pads is zero"
    again = np.zeros_like(numbers)
    for place, frame in enumerate(frames):
        bitmap = bits[place * pixels : (place + 1) * pixels].reshape(numbers.shape[1:]).astype(bool)
        assert bitmap.any()
        again[frame.plane][bitmap] = frame.segment
    assert np.array_equal(again, numbers)
