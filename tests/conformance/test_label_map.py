"""Every label map passes the tables of the standard and decodes, voxel for voxel, to what was outlined.

Debian's dciodvfy, dsrdump and PixelMed are older than this SOP class: the tables, dcmqi, highdicom and our gate judge it.
"""

import re
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from node.evidence.gate import examine_set
from node.evidence.measurement_report import encode_report
from node.evidence.segmentation import encode_label_map
from tests.conformance.cases import GEOMETRIES, REGULAR, Case, make_case, write
from tests.conformance.validators import consistency_faults, decoded_segments, iod_faults, presence_faults

pytestmark = pytest.mark.peer

_TOO_OLD = re.compile(r"ReferencedSegmentNumber.*Shall not be present for Referenced SOP Class that is not segmentation")


@pytest.fixture(params=GEOMETRIES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return make_case(tmp_path, request.param, 3)


def test_it_is_whole_and_lies_on_its_source_with_a_report_that_agrees(case: Case, tmp_path: Path) -> None:
    made = encode_label_map(case.result, case.sources, case.context)
    path = write(made, tmp_path / "labelmap.dcm")
    report = write(encode_report(case.result, case.sources, made, case.context, "sr-labelmap"), tmp_path / "sr.dcm")
    assert presence_faults(path) == []
    assert [fault for fault in iod_faults(report) if not _TOO_OLD.search(fault)] == []
    assert consistency_faults([*case.series.paths, path, report]) == []
    assert [str(fault) for _, fault in examine_set([pydicom.dcmread(path), pydicom.dcmread(report)], case.sources)] == []
    read = pydicom.dcmread(path)
    assert (read.SOPClassUID, read.SegmentationType) == ("1.2.840.10008.5.1.4.1.1.66.7", "LABELMAP")
    assert [item.SegmentNumber for item in read.SegmentSequence] == [1, 2, 3, 0], "the background last, for OHIF"


def test_highdicom_reads_the_same_labels(case: Case, tmp_path: Path) -> None:
    seg = highdicom.seg.segread(write(encode_label_map(case.result, case.sources, case.context), tmp_path / "labelmap.dcm"))
    planes = case.label_map.source.planes
    if planes[0].frame_number is None:
        uids = [plane.sop_instance_uid for plane in planes]
        labels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    else:
        numbers = [plane.frame_number for plane in planes]
        labels = seg.get_pixels_by_source_frame(
            planes[0].sop_instance_uid, numbers, combine_segments=True, assert_missing_frames_are_empty=True
        )
    assert np.array_equal(labels, case.label_map.labels // 2)


@pytest.mark.parametrize("geometry", REGULAR)
def test_dcmqi_reads_the_same_voxels(geometry: str, tmp_path: Path) -> None:
    case = make_case(tmp_path, geometry, 3)
    path = write(encode_label_map(case.result, case.sources, case.context), tmp_path / "labelmap.dcm")
    for segment in decoded_segments(path, tmp_path / "decoded"):
        assert segment.voxels.sum() == (case.label_map.labels == 2 * segment.number).sum()


def test_volumes_that_do_not_agree_are_caught(tmp_path: Path) -> None:
    case = make_case(tmp_path, "axial", 2)
    made = encode_label_map(case.result, case.sources, case.context)
    report = encode_report(case.result, case.sources, made, case.context, "sr-labelmap")
    pixels = np.frombuffer(made.PixelData, np.uint8).copy()
    pixels[np.flatnonzero(pixels == 1)[:20]] = 0
    made.PixelData = pixels.tobytes()
    assert any("the pixels of segment 1 make" in str(fault) for _, fault in examine_set([made, report], case.sources))
