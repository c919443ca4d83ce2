"""The validators are not blind: each finds the fault that is put in front of it, through the filters of ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from tests.conformance.cases import Case, make_case, write
from tests.conformance.validators import consistency_faults, instance_faults, iod_faults, presence_faults, template_faults, tree_faults

pytestmark = pytest.mark.peer


def without_algorithm_name(seg: Dataset) -> None:
    del seg.SegmentSequence[0].SegmentAlgorithmName


def without_label(seg: Dataset) -> None:
    del seg.SegmentSequence[1].SegmentLabel


def without_dimensions(seg: Dataset) -> None:
    del seg.DimensionIndexSequence


def with_a_gap_in_the_segment_numbers(seg: Dataset) -> None:
    seg.SegmentSequence[1].SegmentNumber = 5


def with_short_pixel_data(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[:-64]
    seg["PixelData"].VR = "OB"


def without_completion_flag(sr: Dataset) -> None:
    del sr.CompletionFlag


def without_evidence(sr: Dataset) -> None:
    del sr.CurrentRequestedProcedureEvidenceSequence


def without_unit(sr: Dataset) -> None:
    for item in groups_of(sr)[0].ContentSequence:
        if item.ValueType == "NUM":
            del item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence


def without_referenced_segment(sr: Dataset) -> None:
    group = groups_of(sr)[0]
    group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "IMAGE"]


def groups_of(sr: Dataset) -> list[Dataset]:
    (measurements,) = [item for item in sr.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"]
    return list(measurements.ContentSequence)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path, slices=8, parts=3)


@pytest.mark.parametrize(
    ("spoil", "validate"),
    [
        (without_algorithm_name, iod_faults),
        (without_dimensions, iod_faults),
        (without_label, presence_faults),
        (with_a_gap_in_the_segment_numbers, iod_faults),
        (with_short_pixel_data, iod_faults),
        pytest.param(without_dimensions, instance_faults, marks=pytest.mark.slow),
    ],
)
def test_faults_of_a_segmentation_are_found(
    case: Case, tmp_path: Path, spoil: Callable[[Dataset], None], validate: Callable[[Path], list[str]]
) -> None:
    seg = case.segmentation()
    spoil(seg)
    assert validate(write(seg, tmp_path / "seg.dcm"))


@pytest.mark.parametrize(
    ("spoil", "validate"),
    [
        (without_completion_flag, iod_faults),
        (without_completion_flag, presence_faults),
        (without_evidence, iod_faults),
        (without_unit, tree_faults),
        pytest.param(without_referenced_segment, template_faults, marks=pytest.mark.slow),
    ],
)
def test_faults_of_a_report_are_found(
    case: Case, tmp_path: Path, spoil: Callable[[Dataset], None], validate: Callable[[Path], list[str]]
) -> None:
    sr = case.report()
    spoil(sr)
    assert validate(write(sr, tmp_path / "sr.dcm"))


def test_another_patient_is_found(case: Case, tmp_path: Path) -> None:
    seg = case.segmentation()
    seg.PatientID = "SOMEBODY ELSE"
    assert consistency_faults([*case.series.paths, write(seg, tmp_path / "seg.dcm")])
