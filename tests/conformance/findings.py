"""Results that are no segments, or segments that overlap: what classifiers, detectors, landmark finders and multi-label networks answer."""

from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from node.codes import Code
from node.domain.findings import Detection, Evaluation, Landmark, Point
from node.domain.measurement import measure
from node.domain.modelcard import (
    AnswerDefinition,
    DetectionDefinition,
    EvaluationDefinition,
    InputRequirement,
    LandmarkDefinition,
    ModelCard,
    SegmentDefinition,
)
from node.domain.result import Provenance, Result
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, SourceGrid
from node.evidence.measurement_report import encode_report
from node.evidence.segmentation import encode_segmentation
from tests.conformance.cases import ANATOMY, LEFT, Case, grid_of, make_card, make_case, points_of
from tests.conformance.other_objects import radiograph
from tests.factories import SyntheticSeries

ABNORMAL: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG: Final = Code("39607008", "SCT", "Lung")
DENSITY: Final = EvaluationDefinition(
    concept=Code("129715009", "SCT", "Breast composition"),
    answers=(
        AnswerDefinition(0, "Fatty", Code("129716005", "SCT", "Almost entirely fat")),
        AnswerDefinition(1, "Scattered", Code("129717001", "SCT", "Scattered fibroglandular densities")),
        AnswerDefinition(2, "Dense", Code("129718006", "SCT", "Heterogeneously dense")),
    ),
)
BLEEDING: Final = EvaluationDefinition(
    concept=Code("1386000", "SCT", "Intracranial hemorrhage"),
    answers=(AnswerDefinition(0, "Hemorrhage", Code("1386000", "SCT", "Intracranial hemorrhage")),),
    threshold=0.3,
)
NODULE: Final = DetectionDefinition(0, "Nodule", ABNORMAL, Code("27925004", "SCT", "Nodule"), LUNG, LEFT, (40, 200, 80), 0.4)
MASS: Final = DetectionDefinition(1, "Mass", ABNORMAL, Code("4147007", "SCT", "Mass"), rgb=(220, 40, 60))
TIP: Final = LandmarkDefinition(0, "Carina", Code("28700002", "SCT", "Carina"), (90, 160, 250))
APEX: Final = LandmarkDefinition(1, "Apex", Code("86598002", "SCT", "Apex of lung"), (250, 200, 60))


def card(**parts: object) -> ModelCard:
    """Answers a card without segments, with the definitions given."""
    return replace(make_card(1), segments=(), name="test-findings", title="Findings", **parts)  # type: ignore[arg-type]


def concluded(case: Case, model: ModelCard, **found: object) -> Case:
    """Answers the case as if the model had found this, and nothing else, in its images."""
    outcome = Outcome.FOUND if any(found.values()) else Outcome.NOTHING_FOUND
    provenance = Provenance(engine="none cpu fp32", weights_sha256=("ab" * 32,), device_uid=model.device_uid)
    result = Result(model, outcome, provenance=provenance, grids=(grid_of(case.sources),), **found)  # type: ignore[arg-type]
    return replace(case, result=result)


def classified(folder: Path, *, bleeding: float = 0.85) -> Case:
    """Answers a classifier of whole series: one of three answers, and a question with a single one."""
    answers = (Evaluation(DENSITY, (0.07, 0.62, 0.31)), Evaluation(BLEEDING, (bleeding,)))
    return concluded(make_case(folder, slices=6, rows=40, columns=48), card(evaluations=(DENSITY, BLEEDING)), evaluations=answers)


def detected(folder: Path, boxes: int, geometry: str = "oblique") -> Case:
    """Answers a detector that found so many boxes around and beside the organ: straight, turned, and between two slices."""
    case = make_case(folder, geometry, slices=14, rows=40, columns=48)
    grid, (x, y, z) = grid_of(case.sources), case.series.organ.centre_mm
    row, column, normal = grid.row_cosine, grid.column_cosine, grid.normal
    turned = (_point(9 * (row + 0.4 * normal)), _point(7 * (column - 0.2 * row)), _point(8 * (normal - 0.4 * row)))
    between = np.asarray(grid.positions_mm[7:9].mean(axis=0) + 20 * row + 25 * column)
    thin = (_point(6 * row), _point(5 * column), _point(0.1 * normal))
    found = (
        Detection(NODULE, 0.55, _point(between), thin),
        Detection(MASS, 0.91, (x, y, z), ((8.0, 0.0, 0.0), (0.0, 6.0, 0.0), (0.0, 0.0, 9.0))),
        Detection(NODULE, 0.7204, (x - 6, y + 4, z - 3), turned),
    )[3 - boxes :]
    return concluded(case, card(detections=(NODULE, MASS)), detections=found)


def located(folder: Path) -> Case:
    """Answers a landmark finder: of two points it has found one."""
    case = make_case(folder, "tilted", slices=14, rows=40, columns=48)
    x, y, z = case.series.organ.centre_mm
    return concluded(case, card(landmarks=(TIP, APEX)), landmarks=(Landmark(TIP, 0.88, (x + 1.5, y - 2.25, z)),))


def overlapping(folder: Path, geometry: str = "axial") -> Case:
    """Answers three structures one in the other, as of a brain tumour: 1 holds 2, and 2 holds 3."""
    case = make_case(folder, geometry, slices=10, rows=40, columns=48)
    depth = np.stack([case.series.organ.depth_mm(points) for points in points_of(case.label_map.source)])
    labels = sum((depth > share * depth.max()).astype(np.uint8) for share in (0.0, 0.3, 0.6))
    assert isinstance(labels, np.ndarray)
    labels[:, 0, :6] = 4  # a corner that belongs to the third alone
    label_map = LabelMap(labels, case.label_map.source, members=((), (1,), (1, 2), (1, 2, 3), (3,)))
    colors = ((40, 200, 80), (230, 190, 30), (220, 40, 60))
    segments = tuple(
        SegmentDefinition(number, f"Part {number}", ANATOMY, Code("42695009", "SCT", "Thalamus"), rgb=rgb, measure=("volume", "diameter"))
        for number, rgb in enumerate(colors, 1)
    )
    model = replace(make_card(1), segments=segments, name="test-overlap")
    measured = measure(label_map, model)
    return concluded(case, model, segments=measured, label_map=label_map)


def radiographs(folder: Path) -> Case:
    """Answers two radiographs without any place in space, each with an answer, one with a box and one with a point."""
    images = [_radiograph(folder / f"{number}", number) for number in (1, 2)]
    planes = [Plane(str(image.SOPClassUID), str(image.SOPInstanceUID), (0.0, 0.0, 0.0)) for image in images]
    grids = tuple(
        SourceGrid(image.Rows, image.Columns, 0.2, 0.2, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (plane,), "")
        for image, plane in zip(images, planes, strict=True)
    )
    inputs = (InputRequirement(modality=("CR", "MG")),)
    model = card(evaluations=(DENSITY,), detections=(MASS,), landmarks=(TIP,), reads="images", inputs=inputs)
    first, second = planes
    result = Result(
        model,
        Outcome.FOUND,
        evaluations=(Evaluation(DENSITY, (0.1, 0.2, 0.7), first), Evaluation(DENSITY, (0.5, 0.3, 0.2), second)),
        detections=(Detection(MASS, 0.8, (10.0, 9.0, 0.0), ((2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 0.0)), second),),
        landmarks=(Landmark(TIP, 0.6, (4.0, 5.0, 0.0), first),),
        grids=grids,
        provenance=Provenance("none cpu fp32", ("ab" * 32,), model.device_uid),
    )
    return Case(cast("SyntheticSeries", None), images, result)


def _radiograph(folder: Path, number: int) -> Dataset:
    radiograph(folder)
    image = pydicom.dcmread(folder / "cr.dcm")
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.4.{number}")
    image.InstanceNumber = number
    image.save_as(folder / "cr.dcm")
    return pydicom.dcmread(folder / "cr.dcm", stop_before_pixels=True)


def objects_of(case: Case) -> dict[str, Dataset]:
    """Answers the segmentation, where a structure was outlined, and the report."""
    has_segments = any(segment.present for segment in case.result.segments)
    seg = encode_segmentation(case.result, case.sources, case.context) if has_segments else None
    report = encode_report(case.result, case.sources, seg, case.context)
    return {"sr": report} if seg is None else {"seg": seg, "sr": report}


def source_paths(case: Case) -> list[Path]:
    """Answers the files of the source images."""
    return [Path(str(source.filename)) for source in case.sources]


def _point(vector: object) -> Point:
    x, y, z = (float(value) for value in np.asarray(vector))
    return (x, y, z)
