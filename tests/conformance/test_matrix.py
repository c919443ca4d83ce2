"""Every object of the matrix (`matrix.py`) passes every validator (standards V1 to V7) and our own gate, and says what was found."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from node.evidence.gate import examine_set
from tests.conformance.matrix import CONTENTS, LABEL_MAP_ROLES, NOT_OF_A_PROJECTION, SOURCES, Cell, make_cells
from tests.conformance.validators import (
    consistency_faults,
    decoded_segments,
    instance_faults_of,
    iod_faults,
    of_each,
    presence_faults,
    presentation_faults,
    read_report,
    template_faults_of,
    tree_faults_of,
)

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]

ODD_FRAMES = "a frame does not end on a whole byte"
ONE_ORIGIN = ("CT axial", "CT sagittal", "CT oblique", "CT enhanced", "MR")
"""Sources that an origin and three directions describe, as dcmqi needs it: neither tilted nor without a place."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    return make_cells(tmp_path_factory.mktemp("matrix"))


def paths_of(cells: Iterable[Cell], *roles: str) -> list[Path]:
    return [path for cell in cells for role, path in cell.paths.items() if not roles or role in roles]


def known_to_old_tools(cells: Iterable[Cell]) -> list[Path]:
    return [path for cell in cells for role, path in cell.paths.items() if role not in LABEL_MAP_ROLES or not cites_label_map(path)]


def cites_label_map(path: Path) -> bool:
    return b"1.2.840.10008.5.1.4.1.1.66.7" in path.read_bytes()


def test_the_node_makes_every_object_and_skips_none_in_silence(cells: list[Cell]) -> None:
    assert {(cell.source, cell.content) for cell in cells} == {(source, content) for source in SOURCES for content in CONTENTS}
    assert {(cell.source, cell.content): set(cell.paths) ^ cell.expected for cell in cells if set(cell.paths) != cell.expected} == {}
    for cell in cells:
        told = [] if cell.source != "CR" or not cell.content.isdigit() else ["rtstruct could not be made"]
        assert [reason.split(":")[0] for reason in cell.skipped] == told
        present = [segment for segment in cell.result.segments if segment.present]
        assert len(present) == (int(cell.content) if cell.content.isdigit() else 0)
    assert {"rtstruct", "pm"} == NOT_OF_A_PROJECTION


def test_our_gate_finds_nothing(cells: list[Cell]) -> None:
    """Not even a warning, but of frames of 90 x 70 pixels: viewers stumble over them, and the standard has nothing against them."""
    for cell in (cell for cell in cells if cell.content != "105"):  # those have passed it already, to be here
        found = examine_set([pydicom.dcmread(path) for path in cell.paths.values()], cell.headers)
        told = [str(fault) for _, fault in found]
        assert [one for one in told if cell.source != "CR" or ODD_FRAMES not in one] == [], (cell.source, cell.content)


def test_v1_dciodvfy(cells: list[Cell]) -> None:
    assert of_each(iod_faults, known_to_old_tools(cells)) == {}


def test_v2_dcentvfy_over_results_and_sources(cells: list[Cell]) -> None:
    sets = {cell.paths["sr"]: [*cell.images, *cell.paths.values()] for cell in cells}
    assert of_each(lambda path: consistency_faults(sets[path]), sets) == {}


def test_v3_dsrdump_and_dcmpschk(cells: list[Cell]) -> None:
    assert tree_faults_of(path for path in paths_of(cells, "sr", "sr-labelmap", "kos") if not cites_label_map(path)) == []
    assert of_each(presentation_faults, paths_of(cells, "gsps")) == {}


@pytest.mark.slow
def test_v4_pixelmed_over_every_segmentation(cells: list[Cell]) -> None:
    """Of our objects it knows this IOD alone."""
    assert {path: faults for path, faults in instance_faults_of(paths_of(cells, "seg")).items() if faults} == {}


@pytest.mark.slow
def test_v4_pixelmed_follows_every_template(cells: list[Cell]) -> None:
    """The sources whose templates differ; the endings are in `test_report.py`, and of 105 structures it takes minutes for the same groups."""
    paths = [cell.paths["sr"] for cell in cells if cell.content == "1" and cell.source in {"CT enhanced", "MR", "CR"}]
    assert {path: faults for path, faults in template_faults_of(paths).items() if faults} == {}


def test_v5_tables_of_the_standard(cells: list[Cell]) -> None:
    assert {path: faults for path in paths_of(cells) if (faults := presence_faults(path))} == {}


def test_v6_highdicom_and_dcmqi_decode_the_same_pixels(cells: list[Cell], tmp_path: Path) -> None:
    for number, (cell, role) in enumerate((cell, role) for cell in cells for role in ("seg", "labelmap") if role in cell.paths):
        assert np.array_equal(labels_by_highdicom(cell.paths[role], cell.headers), cell.numbers[filled(cell)]), (cell.source, role)
        if cell.source in ONE_ORIGIN and cell.content != "105":
            counts = {one.number: int(one.voxels.sum()) for one in decoded_segments(cell.paths[role], tmp_path / str(number))}
            counts.pop(0, None)
            assert counts == {n: int((cell.numbers == n).sum()) for n in range(1, int(cell.content) + 1)}, (cell.source, role)


def filled(cell: Cell) -> list[int]:
    return [int(plane) for plane in np.flatnonzero(cell.numbers.any(axis=(1, 2)))]


def labels_by_highdicom(path: Path, headers: list[Dataset]) -> Any:
    """Answers what highdicom reads for the planes that hold something, in the order of the normal."""
    seg = highdicom.seg.segread(path)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    sources = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in seg.PerFrameFunctionalGroupsSequence]
    if "ReferencedFrameNumber" in sources[0]:
        numbers = sorted({int(one.ReferencedFrameNumber) for one in sources})
        return seg.get_pixels_by_source_frame(str(headers[0].SOPInstanceUID), numbers, **options)
    used = {str(one.ReferencedSOPInstanceUID) for one in sources}
    order = [str(one.SOPInstanceUID) for one in headers if str(one.SOPInstanceUID) in used]
    return seg.get_pixels_by_source_instance(order, **options)


def test_v7_dcmqi_reads_every_measurement(cells: list[Cell], tmp_path: Path) -> None:
    for number, cell in enumerate(cells):
        document = read_report(cell.paths["sr"], tmp_path / f"{number}.json")
        values = [float(item["value"]) for group in document.get("Measurements", []) for item in group["measurementItems"]]
        stated = [one.value for segment in cell.result.segments if segment.present for one in segment.measurements]
        assert values == stated, (cell.source, cell.content)
        assert cell.content.isdigit() == bool(list(chain(document.get("Measurements", []))))
