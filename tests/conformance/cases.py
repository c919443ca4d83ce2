"""Results over synthetic series in every geometry, with the headers of their sources: what the conformance tests encode."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import Code
from node.domain.identifiers import derive_uid
from node.domain.measurement import measure
from node.domain.modelcard import InputRequirement, ModelCard, SegmentDefinition, WeightsFile
from node.domain.result import Provenance, Result
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, SourceGrid
from node.evidence.context import EvidenceContext
from node.evidence.measurement_report import encode_report
from node.evidence.segmentation import encode_segmentation
from node.evidence.sop_common import part10_bytes
from tests.factories import SyntheticSeries, make_ct_series, make_enhanced_ct, make_mr_series

UNEVEN_GAPS_MM: Final = (*[3.0] * 8, 1.2, *[6.0] * 5)
"""Two spacings and a step, as in a head CT that was scanned in two parts."""

GEOMETRIES: Final[Mapping[str, tuple[Callable[..., SyntheticSeries], dict[str, Any]]]] = {
    "axial": (make_ct_series, {}),
    "axial descending": (make_ct_series, {"descending": True, "rows": 45, "columns": 51}),
    "sagittal": (make_mr_series, {"orientation": "sagittal"}),
    "sagittal descending": (make_mr_series, {"orientation": "sagittal", "descending": True}),
    "coronal": (make_mr_series, {"orientation": "coronal", "rows": 61, "columns": 47}),
    "coronal descending": (make_mr_series, {"orientation": "coronal", "descending": True}),
    "oblique": (make_mr_series, {"orientation": "oblique", "spacing_mm": (2.5, 1.75, 2.25)}),
    "oblique descending": (make_mr_series, {"orientation": "oblique", "descending": True}),
    "tilted": (make_ct_series, {"gantry_tilt_deg": 18.0}),
    "tilted descending": (make_ct_series, {"gantry_tilt_deg": -12.5, "descending": True}),
    "uneven": (make_ct_series, {"gaps_mm": UNEVEN_GAPS_MM}),
    "uneven descending": (make_ct_series, {"gaps_mm": UNEVEN_GAPS_MM, "descending": True}),
    "enhanced": (make_enhanced_ct, {}),
    "enhanced descending": (make_enhanced_ct, {"descending": True, "orientation": "oblique"}),
}
"""Name → how to make the series."""

REGULAR: Final = tuple(name for name in GEOMETRIES if not name.startswith(("tilted", "uneven")))
"""Those that one origin and three directions can describe, as dcmqi needs it."""

CONTEXT: Final = EvidenceContext(
    job_key="5e" * 32,
    encoded_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    ae_title="RADNODE",
    device_serial_number="node-1",
)

ANATOMY: Final = Code("91723000", "SCT", "Anatomical Structure")
THALAMUS: Final = Code("42695009", "SCT", "Thalamus")
RIGHT: Final = Code("24028007", "SCT", "Right")
LEFT: Final = Code("7771000", "SCT", "Left")


def make_card(parts: int) -> ModelCard:
    """Answers a card with `parts` structures, labels 2, 4, 6, ...: a Segment Number is not a label value."""
    segments = tuple(
        SegmentDefinition(
            label_value=2 * number,
            label=f"Part {number}",
            category=ANATOMY,
            type=THALAMUS,
            anatomic_region=Code("12738006", "SCT", "Brain") if number % 3 == 0 else None,
            laterality=(None, LEFT, RIGHT)[number % 3] if number % 2 else None,
            rgb=(255 - 10 * number % 256, 10 * number % 256, 90),
        )
        for number in range(1, parts + 1)
    )
    return ModelCard(
        name="test-parts",
        version="1.0.0",
        title="Parts of an organ",
        manufacturer="radnode tests",
        intended_use="Tests.",
        training_data="None: a formula.",
        performance="Exact.",
        licence="Apache-2.0",
        weights=(WeightsFile("models/none.safetensors", "safetensors", "ab" * 32, "nowhere"),),
        inputs=(InputRequirement(modality=("CT", "MR")),),
        segments=segments,
    )


@dataclass(frozen=True)
class Case:
    """A series on disk, its headers, and a result about it."""

    series: SyntheticSeries
    sources: list[Dataset]
    result: Result
    context: EvidenceContext = CONTEXT

    @property
    def label_map(self) -> LabelMap:
        """The truth."""
        assert self.result.label_map is not None
        return self.result.label_map

    def segmentation(self) -> Dataset:
        """Answers the SEG."""
        return encode_segmentation(self.result, self.sources, self.context)

    def report(self) -> Dataset:
        """Answers the SR, with the SEG where something was found."""
        seg = self.segmentation() if self.result.outcome is Outcome.FOUND else None
        return encode_report(self.result, self.sources, seg, self.context)


def make_case(folder: Path, geometry: str = "axial", parts: int = 1, **options: Any) -> Case:
    """Answers a case where the organ was found, cut into `parts` sectors."""
    make, usual = GEOMETRIES[geometry]
    series = make(folder / "source", **{**usual, **options})
    sources = read_headers(series)
    grid = grid_of(sources)
    card = make_card(parts)
    label_map = LabelMap(labels=organ_labels(series, grid, parts), source=grid)
    return Case(series=series, sources=sources, result=found(card, label_map))


def found(card: ModelCard, label_map: LabelMap) -> Result:
    """Answers the result of a label map."""
    segments = measure(label_map, card)
    outcome = Outcome.FOUND if any(segment.present for segment in segments) else Outcome.NOTHING_FOUND
    provenance = Provenance(engine="none cpu fp32", weights_sha256=("ab" * 32,), device_uid=card.device_uid)
    return Result(card=card, outcome=outcome, segments=segments, label_map=label_map, provenance=provenance)


def with_outcome(case: Case, outcome: Outcome) -> Case:
    """Answers the case as if it had come to another end."""
    card = case.result.card
    if outcome is Outcome.NOTHING_FOUND:
        empty = LabelMap(labels=np.zeros_like(case.label_map.labels), source=case.label_map.source)
        return replace(case, result=found(card, empty))
    return replace(case, result=Result(card=card, outcome=outcome, reason="The slices lie 12 mm apart; at most 8 mm are allowed."))


def read_headers(series: SyntheticSeries) -> list[Dataset]:
    """Answers the headers as an intake reads them: without pixels, not one value decoded."""
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in series.paths]


def write(evidence: Dataset, path: Path) -> Path:
    """Writes an evidence object."""
    path.write_bytes(part10_bytes(evidence))
    return path


def grid_of(sources: list[Dataset]) -> SourceGrid:
    """Answers the grid of a series: a plain second opinion beside the node's own series reader."""
    first = sources[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        shared = first.SharedFunctionalGroupsSequence[0]
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = shared.PixelMeasuresSequence[0].PixelSpacing
        planes = [
            _plane(first, frame.PlanePositionSequence[0].ImagePositionPatient, number)
            for number, frame in enumerate(first.PerFrameFunctionalGroupsSequence, start=1)
        ]
    else:
        orientation, spacing = first.ImageOrientationPatient, first.PixelSpacing
        planes = [_plane(source, source.ImagePositionPatient, None) for source in sources]
    cosines = tuple(float(value) for value in orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    return SourceGrid(
        rows=first.Rows,
        columns=first.Columns,
        row_spacing_mm=float(spacing[0]),
        column_spacing_mm=float(spacing[1]),
        image_orientation_patient=cosines,  # type: ignore[arg-type]
        planes=tuple(sorted(planes, key=lambda plane: float(normal @ plane.image_position_patient))),
        frame_of_reference_uid=str(first.FrameOfReferenceUID),
    )


def _plane(source: Dataset, position: Any, frame_number: int | None) -> Plane:
    x, y, z = (float(value) for value in position)
    return Plane(str(source.SOPClassUID), str(source.SOPInstanceUID), (x, y, z), frame_number)


def points_of(grid: SourceGrid) -> NDArray[np.float64]:
    """Answers where every voxel lies, shape (slices, rows, columns, 3), LPS mm."""
    rows, columns = np.mgrid[: grid.rows, : grid.columns]
    pixels = np.stack([rows, columns, np.ones_like(rows)], axis=-1).astype(np.float64)
    return np.stack([pixels @ grid.patient_from_pixel(index)[:3].T for index in range(len(grid.planes))])


def organ_labels(series: SyntheticSeries, grid: SourceGrid, parts: int) -> NDArray[np.uint8]:
    """Answers the organ, cut into sectors around its middle: labels 2, 4, 6, ..."""
    points = points_of(grid)
    offset = points - np.asarray(series.organ.centre_mm)
    angle = np.arctan2(offset[..., 1] + 0.3 * offset[..., 2], offset[..., 0])
    sector = np.minimum(((angle + math.pi) / (2 * math.pi) * parts).astype(np.int64), parts - 1)
    return np.where(series.organ.contains(points), 2 * (sector + 1), 0).astype(np.uint8)


def predecessor_uids() -> tuple[str, str, str, str]:
    """Answers UIDs of an earlier report."""
    return (
        derive_uid("test", "study"),
        derive_uid("earlier", "series"),
        "1.2.840.10008.5.1.4.1.1.88.34",
        derive_uid("earlier", "report"),
    )
