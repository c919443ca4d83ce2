"""The frames that we write ourselves are those that highdicom writes: bits, functional groups and dimensions, byte for byte."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from node.domain.volume import LabelMap, SourceGrid
from node.evidence.frames import frames_of, labels_of_planes, pack_frames
from tests.conformance.cases import GEOMETRIES, make_case
from tests.conformance.plain import number_frames, plain_highdicom

FRAMES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames", "DimensionOrganizationType",
          "ReferencedSeriesSequence", "SourceImageSequence", "SegmentSequence", "Rows", "Columns", "SegmentsOverlap")  # fmt: skip


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
    grid = SourceGrid(numbers.shape[1], numbers.shape[2], 1.0, 1.0, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (), "")
    label_map = LabelMap(numbers, grid)
    frames = frames_of(labels_of_planes(label_map), range(1, 8))
    packed = pack_frames(label_map, frames)
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
