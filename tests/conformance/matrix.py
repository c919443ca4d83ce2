"""The matrix: every kind of source x how much was found x every object that a destination can get, as the node itself makes them.

Small images, so that all of it is affordable: what the validators look at does not depend on the number of pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import UCUM_NO_UNITS
from node.domain.objects import ResultObject
from node.domain.result import Result, SegmentResult
from node.domain.states import Outcome
from node.domain.volume import LabelMap, Plane, SourceGrid, Volume, VolumeGeometry
from node.pipeline import Analysis, Stopwatch, Wanted, encode
from tests.conformance.cases import CONTEXT, found, grid_of, make_card, points_of, read_headers
from tests.conformance.other_objects import probabilities_of, radiograph, volume_of_series
from tests.factories import SyntheticSeries, make_ct_series, make_enhanced_ct, make_mr_series

Make = Callable[..., SyntheticSeries]

SOURCES: Final[Mapping[str, tuple[Make, Mapping[str, Any]] | None]] = {
    "CT axial": (make_ct_series, {}),
    "CT sagittal": (make_ct_series, {"orientation": "sagittal"}),
    "CT oblique": (make_ct_series, {"orientation": "oblique"}),
    "CT tilted": (make_ct_series, {"gantry_tilt_deg": 18.0}),
    "CT enhanced": (make_enhanced_ct, {"orientation": "oblique"}),
    "MR": (make_mr_series, {"orientation": "coronal"}),
    "CR": None,
}
"""What was analysed; CR is a single projection without a place in the patient."""

SIZE: Final[Mapping[str, Any]] = {"slices": 10, "rows": 48, "columns": 48, "spacing_mm": (6.0, 2.0, 2.0)}

_ALWAYS: Final = frozenset({"sr", "sr-labelmap", "pdf"})
_PICTURE: Final = _ALWAYS | {"sc"}
_OUTLINED: Final = _PICTURE | {"seg", "labelmap", "kos", "gsps", "rtstruct"}
CONTENTS: Final[Mapping[str, tuple[int, frozenset[str]]]] = {
    "1": (1, _OUTLINED | {"pm"}),
    "17": (17, _OUTLINED),
    "105": (105, _OUTLINED),
    "empty": (3, _PICTURE),
    "failed": (3, _ALWAYS),
}
"""What became of it → structures on the model card, and the objects that there are. A probability map is of a single structure."""

NOT_OF_A_PROJECTION: Final = frozenset({"rtstruct", "pm"})
"""Contours and maps need a frame of reference."""

LABEL_MAP_ROLES: Final = frozenset({"labelmap", "sr-labelmap"})
"""Objects that name a SOP class (Sup 243, 2024) that Debian's dicom3tools (2022), DCMTK and PixelMed do not know."""


@dataclass(frozen=True)
class Cell:
    """The objects of one source and one content, as files, with what they were made from."""

    source: str
    content: str
    images: list[Path]
    headers: list[Dataset]
    result: Result
    skipped: list[str]
    paths: Mapping[str, Path]

    @property
    def expected(self) -> frozenset[str]:
        """The objects that there must be."""
        roles = CONTENTS[self.content][1]
        return roles - NOT_OF_A_PROJECTION if self.source == "CR" else roles

    @property
    def numbers(self) -> NDArray[np.uint8]:
        """Answers the Segment Number of every pixel."""
        assert self.result.label_map is not None
        return np.asarray(self.result.label_map.labels // 2)


def make_cells(folder: Path) -> list[Cell]:
    """Writes the matrix: every result through the node's own encoding, gate and freezing."""
    return [cell for source in SOURCES for cell in _cells_of(source, folder / source.replace(" ", "-"))]


def _cells_of(source: str, folder: Path) -> list[Cell]:
    made = SOURCES[source]
    if made is None:
        header, pixels = radiograph(folder / "source")
        grid = _grid_of_radiograph(header)
        volume = Volume(pixels[None], VolumeGeometry(grid.shape, np.eye(4)), grid, "CR", UCUM_NO_UNITS)
        rows, columns = np.mgrid[: grid.rows, : grid.columns]
        angle, inside = np.arctan2(rows - 40, columns - 30)[None], (np.hypot(rows - 40, columns - 30) < 28)[None]
        return [_cell(source, content, folder, [folder / "source" / "cr.dcm"], [header], volume, (angle, inside)) for content in CONTENTS]
    make, options = made
    series = make(folder / "source", **{**SIZE, **options})
    headers = read_headers(series)
    grid = grid_of(headers)
    points = points_of(grid)
    offset = points - np.asarray(series.organ.centre_mm)
    angle, inside = np.arctan2(offset[..., 1] + 0.3 * offset[..., 2], offset[..., 0]), series.organ.contains(points)
    volume = volume_of_series(series, grid)
    return [_cell(source, content, folder, list(series.paths), headers, volume, (angle, inside)) for content in CONTENTS]


def _grid_of_radiograph(header: Dataset) -> SourceGrid:
    plane = Plane(str(header.SOPClassUID), str(header.SOPInstanceUID), (0.0, 0.0, 0.0))
    return SourceGrid(header.Rows, header.Columns, 0.2, 0.2, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (plane,), "")


def _cell(
    source: str,
    content: str,
    folder: Path,
    images: list[Path],
    headers: list[Dataset],
    volume: Volume,
    organ: tuple[NDArray[np.float64], NDArray[np.bool_]],
) -> Cell:
    parts, _ = CONTENTS[content]
    result = _result(content, LabelMap(_sectors(*organ, parts if content.isdigit() else 0), volume.source), parts)
    if source == "CR":
        result = replace(result, card=replace(result.card, reads="images"))
    probability = (lambda: probabilities_of(result.label_map)) if content == "1" and source != "CR" and result.label_map else None
    analysis = Analysis(result, None if content == "failed" else volume, headers, probability, () if content == "failed" else (volume,))
    wanted = Wanted(objects=frozenset(ResultObject))
    frozen = encode(analysis, CONTEXT, folder / content, Stopwatch(lambda *_: None), wanted)
    return Cell(source, content, images, headers, result, wanted.skipped, {one.role: one.path for one in frozen})


def _result(content: str, label_map: LabelMap, parts: int) -> Result:
    card = make_card(parts)
    if content == "failed":
        return Result(card, Outcome.FAILED, reason="The model gave no answer within 3600 s, three times.")
    if label_map.source.frame_of_reference_uid:
        return found(card, label_map)
    counts = np.bincount(label_map.labels.reshape(-1), minlength=256)
    segments = tuple(
        SegmentResult(one, present=bool(counts[one.label_value]), voxels=int(counts[one.label_value])) for one in card.segments
    )
    outcome = Outcome.FOUND if content.isdigit() else Outcome.NOTHING_FOUND
    return Result(card, outcome, segments, label_map, grids=(label_map.source,))


def _sectors(angle: NDArray[np.float64], inside: NDArray[np.bool_], parts: int) -> NDArray[np.uint8]:
    """Answers the organ, cut around its middle into so many parts of equal size: labels 2, 4, 6, ..."""
    labels = np.zeros(inside.shape, dtype=np.uint8)
    if parts:
        places = np.flatnonzero(inside)
        order = places[np.argsort(angle.reshape(-1)[places], kind="stable")]
        labels.reshape(-1)[order] = 2 * (1 + np.arange(len(order)) * parts // len(order))
    return labels
