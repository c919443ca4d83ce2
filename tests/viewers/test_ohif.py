"""OHIF in headless Chromium shows what we wrote: the colours of the SEG on its voxels and nowhere else, the outline of the report.

Every assertion is about pixels of a screenshot. Where a voxel lies on the screen is asked of OHIF's own viewport. The screenshots
stay in `.cache/viewers/screenshots` to be looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from highdicom.sr import MeasurementsAndQualitativeEvaluations, TrackingIdentifier
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from scipy.spatial import cKDTree

from node.domain.identifiers import derive_uid
from node.evidence.contours import rings_of
from tests.conformance.cases import Case, found, make_case, points_of, write
from tests.viewers.ohif_server import archive, ohif
from tests.viewers.packages import CACHE, chromium, run_script, viewer

pytestmark = [pytest.mark.peer, pytest.mark.slow]

COLORS: Final = ((220, 40, 60), (40, 200, 80), (230, 190, 30))
"""Of the segments: far from each other, and from the blue of OHIF itself."""

SEGMENTATIONS: Final = ("axial", "oblique", "tilted", "enhanced")
REPORTS: Final = ("axial", "tilted", "oblique")
SQUARE: Final = pytest.mark.xfail(
    reason="cornerstone takes the spacing of rows for that of columns: outlines lie right on square pixels only"
)
MARGIN: Final = 4
"""Voxels around the organ that must not be coloured."""

GREEN: Final = (0, 255, 0)
"""The selected measurement of a report, whatever the report says."""

FULL_OF_COLOR: Final = 40
SAME_DIRECTION: Final = 0.97


@dataclass(frozen=True)
class Shown:
    """A page of OHIF: what it told, and its pixels."""

    case: Case
    answer: dict[str, Any]
    screenshot: Path

    @property
    def pixels(self) -> NDArray[np.float64]:
        return np.asarray(Image.open(self.screenshot).convert("RGB"), dtype=np.float64)

    @property
    def plane(self) -> int:
        """The plane that OHIF chose to show."""
        names = [_image(plane) for plane in self.case.label_map.source.planes]
        return names.index(self.answer["view"]["image"])

    @property
    def canvas(self) -> NDArray[np.float64]:
        left, top, width, height = (round(value) for value in self.answer["view"]["canvas"])
        return self.pixels[top : top + height, left : left + width]

    @property
    def projected(self) -> NDArray[np.float64]:
        """Where the points of the plane lie on the screenshot: (across, down)."""
        return np.asarray(self.answer["view"]["projected"])


def _image(plane: Any) -> str:
    return f"{plane.sop_instance_uid}#{plane.frame_number or 1}"


def _case(folder: Path, geometry: str) -> Case:
    """Answers a case in our colours, whose instances share no UID with those of another: an archive keeps each UID once."""
    case = make_case(folder, geometry, len(COLORS), study=geometry)
    parts = zip(case.result.card.segments, COLORS, strict=True)
    card = replace(case.result.card, segments=tuple(replace(part, rgb=rgb) for part, rgb in parts))
    context = replace(case.context, job_key=sha256(geometry.encode()).hexdigest())
    return replace(case, result=found(card, case.label_map), context=context)


def _around(case: Case) -> tuple[slice, slice, slice]:
    """Answers the box of the organ with its margin, in (slices, rows, columns)."""
    where = np.argwhere(case.label_map.labels)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    return slice(low[0], high[0]), slice(low[1] - MARGIN, high[1] + MARGIN), slice(low[2] - MARGIN, high[2] + MARGIN)


def _voxels(case: Case) -> Mapping[str, Any]:
    """Answers the places of the voxels in the box, for each image."""
    slices, rows, columns = _around(case)
    points = points_of(case.label_map.source)[:, rows, columns]
    return {
        _image(case.label_map.source.planes[index]): points[index].reshape(-1, 3).tolist() for index in range(slices.start, slices.stop)
    }


def _key_plane(case: Case) -> int:
    """Answers the plane that holds most of the first structure."""
    return int((case.label_map.labels == case.result.segments[0].definition.label_value).sum(axis=(1, 2)).argmax())


def _outline(case: Case) -> Mapping[str, Any]:
    """Answers where the mask of the first structure ends on its key plane, in patient coordinates: of the truth, not of the report."""
    plane = _key_plane(case)
    ring = max(rings_of(case.label_map.labels[plane] == case.result.segments[0].definition.label_value), key=len)
    closed = np.concatenate([ring, ring[:1]])
    pixels = np.column_stack([closed[:, ::-1], np.ones(len(closed))])  # row, column: 0 at the centre of the first pixel
    points = pixels @ case.label_map.source.patient_from_pixel(plane)[:3].T
    return {_image(case.label_map.source.planes[plane]): points.tolist()}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """Every page, opened one after the other in one browser, over one archive."""
    folder = tmp_path_factory.mktemp("ohif")
    pictures = CACHE / "screenshots"
    browser, built = chromium(), viewer()
    pictures.mkdir(parents=True, exist_ok=True)
    cases = {name: _case(folder / name, name) for name in SEGMENTATIONS}
    axial = cases["axial"]
    pages: dict[str, tuple[Case, dict[str, Any]]] = {}
    with archive(folder / "orthanc") as peer, ohif(built, peer) as address:
        for name, case in cases.items():
            seg, report = case.segmentation(), case.report()
            peer.upload([*case.series.paths, write(seg, folder / name / "seg.dcm"), write(report, folder / name / "sr.dcm")])
            pages[f"seg {name}"] = (case, {"path": _link(seg), "until": "segmentation", "planes": _voxels(case)})
            if name in REPORTS:
                pages[f"sr {name}"] = (case, {"path": _link(report), "until": "contour", "planes": _outline(case)})
        unplaced = _with_a_group_without_a_place(axial)
        peer.upload([write(unplaced, folder / "unplaced.dcm")])
        pages["unplaced"] = (axial, {"path": _link(unplaced), "until": "contour"})
        pages["list"] = (axial, {"path": "/", "until": "list", "text": "RADNODE, SYNTHETIC"})
        for name, (_, page) in pages.items():
            page["screenshot"] = str(pictures / f"{name.replace(' ', '-')}.png")
        plan = {"browser": browser, "address": address, "pages": [page for _, page in pages.values()]}
        answers = run_script("ohif.mjs", plan, folder)
    return {
        name: Shown(case, answer, Path(page["screenshot"])) for (name, (case, page)), answer in zip(pages.items(), answers, strict=True)
    }


def _with_a_group_without_a_place(case: Case) -> Dataset:
    """Answers our report with a TID 1501 group after the others, in an instance and a series of its own."""
    report = case.report()
    report.SOPInstanceUID, report.SeriesInstanceUID = (derive_uid("unplaced", level) for level in ("instance", "series"))
    group = MeasurementsAndQualitativeEvaluations(TrackingIdentifier(uid=derive_uid("unplaced"), identifier="unplaced"))
    (measurements,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"]
    measurements.ContentSequence.append(group[0])
    return report


def _link(evidence: Dataset) -> str:
    """Answers the link that opens a study with one of our results on."""
    return f"/viewer?StudyInstanceUIDs={evidence.StudyInstanceUID}&initialSeriesInstanceUID={evidence.SeriesInstanceUID}"


def _chroma(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers colours without their grey: that of an overlay is the same on every grey, times its opacity."""
    return colors - colors.mean(axis=-1, keepdims=True)


def _likeness(pixels: NDArray[np.float64], color: tuple[int, int, int]) -> NDArray[np.float64]:
    """Answers the cosine between the chroma of pixels and of a colour, 0 for grey ones."""
    chroma, wanted = _chroma(pixels), _chroma(np.asarray(color, dtype=np.float64))
    strength = np.linalg.norm(chroma, axis=-1)
    cosine = chroma @ wanted / np.maximum(strength * np.linalg.norm(wanted), 1e-9)
    return np.where(strength > FULL_OF_COLOR, cosine, 0.0)


def _at(shown: Shown) -> NDArray[np.float64]:
    """Answers the pixels at the projected points."""
    across, down = np.round(shown.projected).astype(int).T
    return shown.pixels[down, across]


def test_the_study_list_names_the_studies_and_their_results(shown: dict[str, Shown]) -> None:
    page = shown["list"].answer
    assert page["reached"]
    assert page["text"].count("SEG\\SR") == len(SEGMENTATIONS)


@pytest.mark.parametrize("page", [*(f"seg {name}" for name in SEGMENTATIONS), *(f"sr {name}" for name in REPORTS), "list"])
def test_nothing_is_asked_of_another_host_and_nothing_is_missing(shown: dict[str, Shown], page: str) -> None:
    assert shown[page].answer["reached"], shown[page].answer["errors"]
    assert shown[page].answer["elsewhere"] == []
    assert shown[page].answer["failed"] == []


@pytest.mark.parametrize("geometry", SEGMENTATIONS)
def test_every_voxel_of_the_organ_has_the_colour_of_its_segment_and_none_around_it(shown: dict[str, Shown], geometry: str) -> None:
    page = shown[f"seg {geometry}"]
    _, rows, columns = _around(page.case)
    labels = page.case.label_map.labels[page.plane, rows, columns].ravel() // 2
    seen = _at(page)
    assert len(seen) == len(labels)
    assert np.count_nonzero(labels), "OHIF opened a slice without the organ"
    for number, color in enumerate(COLORS, start=1):
        likeness = _likeness(seen, color)
        assert (likeness[labels == number] > SAME_DIRECTION).all()
        assert (likeness[labels == 0] <= SAME_DIRECTION).all()
    grey = np.linalg.norm(_chroma(seen[labels == 0]), axis=-1)
    assert grey.max() < 4.0


@pytest.mark.parametrize("geometry", SEGMENTATIONS)
def test_no_pixel_of_the_viewport_has_a_colour_of_the_segments_outside_the_organ(shown: dict[str, Shown], geometry: str) -> None:
    page = shown[f"seg {geometry}"]
    _, rows, columns = _around(page.case)
    inside = page.case.label_map.labels[page.plane, rows, columns].ravel() > 0
    left, top, _, _ = page.answer["view"]["canvas"]
    colored = np.max([_likeness(page.canvas, color) for color in COLORS], axis=0) > SAME_DIRECTION
    down, across = np.nonzero(colored)
    across_row, down_column = page.projected[1] - page.projected[0], page.projected[columns.stop - columns.start] - page.projected[0]
    pitch = np.linalg.norm([across_row, down_column], axis=1)
    distance, _ = cKDTree(page.projected[inside]).query(np.column_stack([across + left, down + top]))
    assert len(down) > 0.8 * np.count_nonzero(inside) * pitch.prod()
    assert distance.max() < 1.1 * pitch.max()


@pytest.mark.parametrize("geometry", REPORTS)
def test_the_report_opens_on_the_key_slice_of_its_first_structure(shown: dict[str, Shown], geometry: str) -> None:
    page = shown[f"sr {geometry}"]
    assert page.plane == _key_plane(page.case)


@pytest.mark.parametrize("geometry", ["axial", "tilted", pytest.param("oblique", marks=SQUARE)])
def test_the_outline_of_the_first_structure_is_green_where_its_mask_ends(shown: dict[str, Shown], geometry: str) -> None:
    page = shown[f"sr {geometry}"]
    left, top, _, _ = page.answer["view"]["canvas"]
    down, across = np.nonzero((np.abs(page.canvas - GREEN) < 90).all(axis=-1))
    green = np.column_stack([across + left, down + top])
    line = _along(page.projected)
    to_green, _ = cKDTree(green).query(line)
    assert np.quantile(to_green, 0.95) < 8.0, "dashes: every part of the outline has one near it"
    low, high = page.projected.min(axis=0) - 6.0, page.projected.max(axis=0) + 6.0
    near = green[((green > low) & (green < high)).all(axis=1)]
    to_line, _ = cKDTree(line).query(near)
    assert np.mean(to_line < 3.0) > 0.9, "what is green there is the outline, but for the line to its text"


def _along(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Answers points on a polygon, one about every pixel."""
    steps = np.linspace(0.0, 1.0, 40, endpoint=False)[:, None]
    return np.concatenate([a + steps * (b - a) for a, b in pairwise(corners)])


@pytest.mark.parametrize("geometry", REPORTS)
def test_the_measurements_of_the_report_stand_beside_the_outline(shown: dict[str, Shown], geometry: str) -> None:
    page = shown[f"sr {geometry}"]
    first = next(segment for segment in page.case.result.segments if segment.present)
    volume = first.measurements[0]
    assert page.answer["texts"].count(f"{volume.concept.meaning}: {volume.value:.2f} {volume.unit.value}") == 1


def test_ohif_shows_nothing_of_a_report_with_a_group_that_has_no_place_on_an_image(shown: dict[str, Shown]) -> None:
    """Why our reports conclude outside of Imaging Measurements; when this fails, OHIF has learned better."""
    page = shown["unplaced"]
    assert not page.answer["reached"]
    assert any("reading 'ReferencedSOPSequence'" in error for error in page.answer["errors"])
    assert page.answer["view"] is None
