"""Every SEG passes other people's validators and decodes, voxel for voxel, to what was outlined."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.domain.volume import SourceGrid
from node.inference.series_reader import read_series
from tests.conformance.cases import GEOMETRIES, REGULAR, Case, make_case, write
from tests.conformance.validators import (
    consistency_faults,
    decoded_segments,
    iod_faults,
    presence_faults,
)

pytestmark = pytest.mark.peer

GEOMETRIES_AND_PARTS = [(name, 1) for name in GEOMETRIES] + [(name, 17) for name in ("axial", "oblique", "enhanced descending")]


@pytest.fixture(params=GEOMETRIES_AND_PARTS, ids=lambda param: f"{param[0]}-{param[1]}", scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    geometry, parts = request.param
    return make_case(tmp_path_factory.mktemp("case"), geometry, parts)


@pytest.fixture(scope="module")
def path(case: Case) -> Path:
    return write(case.segmentation(), case.series.folder.parent / "seg.dcm")


def test_dicom3tools_finds_no_fault(path: Path, case: Case) -> None:
    assert iod_faults(path) == []
    assert consistency_faults([*case.series.paths, path]) == []


def test_nothing_mandatory_is_absent(path: Path) -> None:
    assert presence_faults(path) == []


def test_its_frames_are_the_labels(path: Path, case: Case) -> None:
    """Our own reading: bits, positions and references, each frame on its own."""
    seg = pydicom.dcmread(path)
    assert np.array_equal(_labels_by_position(seg, case.label_map.source), _numbers(case))
    assert np.array_equal(_labels_by_reference(seg, case.label_map.source), _numbers(case))


def test_highdicom_reads_the_same_labels(path: Path, case: Case) -> None:
    seg = highdicom.seg.segread(path)
    grid = case.label_map.source
    if grid.planes[0].frame_number is None:
        uids = [plane.sop_instance_uid for plane in grid.planes]
        labels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    else:
        labels = seg.get_pixels_by_source_frame(
            grid.planes[0].sop_instance_uid,
            [plane.frame_number for plane in grid.planes],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
    assert np.array_equal(labels, _numbers(case))


def test_empty_frames_are_left_out(path: Path, case: Case) -> None:
    seg = pydicom.dcmread(path)
    frames = sum(len(np.unique(plane[plane > 0])) for plane in case.label_map.labels)
    assert seg.NumberOfFrames == frames


@pytest.mark.parametrize(("geometry", "parts"), [(name, 17 if name == "oblique" else 1) for name in REGULAR])
def test_dcmqi_decodes_the_same_voxels_at_the_same_places(tmp_path: Path, geometry: str, parts: int) -> None:
    case = make_case(tmp_path, geometry, parts)
    path = write(case.segmentation(), tmp_path / "seg.dcm")
    grid = case.label_map.source
    numbers = np.zeros(grid.shape, dtype=np.uint8)
    for segment in decoded_segments(path, tmp_path / "nrrd"):
        k, j, i = np.nonzero(segment.voxels)
        points = (segment.patient_from_index @ np.stack([i, j, k, np.ones_like(i)]))[:3].T
        numbers[_indices_of(points, grid)] = segment.number
    assert np.array_equal(numbers, _numbers(case))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_reader_of_the_node_gives_the_grid_that_the_cases_state(tmp_path: Path, geometry: str) -> None:
    case = make_case(tmp_path, geometry)
    read, stated = read_series(case.series.paths).source, case.label_map.source
    assert read.shape == stated.shape
    assert [(p.sop_instance_uid, p.frame_number) for p in read.planes] == [(p.sop_instance_uid, p.frame_number) for p in stated.planes]
    assert np.abs(read.positions_mm - stated.positions_mm).max() < 1e-6
    assert np.allclose(read.image_orientation_patient, stated.image_orientation_patient, atol=1e-6)


def _numbers(case: Case) -> NDArray[np.uint8]:
    """Answers the Segment Number that each voxel must have: the card's labels are 2, 4, 6, ..."""
    return case.label_map.labels // 2


def _indices_of(points: NDArray[np.float64], grid: SourceGrid) -> tuple[NDArray[np.int64], ...]:
    """Answers (slice, row, column) of points, which must be pixel centers to a thousandth of a millimeter."""
    slices = np.abs((points @ grid.normal)[:, None] - grid.distances_mm).argmin(axis=1)
    offset = points - grid.positions_mm[slices]
    rows = offset @ grid.column_cosine / grid.row_spacing_mm
    columns = offset @ grid.row_cosine / grid.column_spacing_mm
    exact = np.stack([offset @ grid.normal, rows - np.rint(rows), columns - np.rint(columns)])
    assert np.abs(exact).max() < 1e-3
    return slices, np.rint(rows).astype(np.int64), np.rint(columns).astype(np.int64)


def _frames(seg: Dataset) -> NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(seg.PixelData, dtype=np.uint8), bitorder="little")
    size = seg.Rows * seg.Columns
    assert not bits[seg.NumberOfFrames * size :].any(), "the padding is not empty"
    return bits[: seg.NumberOfFrames * size].reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)


def _segment_number(seg: Dataset, frame: Dataset) -> int:
    holder = frame if "SegmentIdentificationSequence" in frame else seg.SharedFunctionalGroupsSequence[0]
    return int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _labels_by_position(seg: Dataset, grid: SourceGrid) -> NDArray[np.uint8]:
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, grid.image_orientation_patient, atol=1e-6)
    assert np.allclose(shared.PixelMeasuresSequence[0].PixelSpacing, (grid.row_spacing_mm, grid.column_spacing_mm))
    assert seg.FrameOfReferenceUID == grid.frame_of_reference_uid
    numbers = np.zeros(grid.shape, dtype=np.uint8)
    for pixels, frame in zip(_frames(seg), seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        distances = np.abs(grid.positions_mm - position).max(axis=1)
        assert distances.min() < 1e-3
        numbers[distances.argmin()][pixels == 1] = _segment_number(seg, frame)
    return numbers


def _labels_by_reference(seg: Dataset, grid: SourceGrid) -> NDArray[np.uint8]:
    planes = {(plane.sop_instance_uid, plane.frame_number): index for index, plane in enumerate(grid.planes)}
    numbers = np.zeros(grid.shape, dtype=np.uint8)
    for pixels, frame in zip(_frames(seg), seg.PerFrameFunctionalGroupsSequence, strict=True):
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        index = planes[(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))]
        numbers[index][pixels == 1] = _segment_number(seg, frame)
    return numbers
