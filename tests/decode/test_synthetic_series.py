"""Synthetic series, through files: nothing is flipped, moved or resized, whatever the geometry and the order of arrival."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.codes import UCUM_HOUNSFIELD, UCUM_NO_UNITS
from node.domain.volume import Volume
from node.inference.series_reader import AIR_HU, read_series
from tests.factories import SyntheticSeries, make_ct_series, make_enhanced_ct, make_mr_series
from tests.property.test_geometry_properties import ORGAN_CENTROID_TOLERANCE, ORGAN_VOLUME_TOLERANCE, measured

MARKER_TOLERANCE_MM = 3.0
PEAK_MEMORY_SHARE = 1.4
"""Of the float32 volume: the volume itself, headers, and one slice on the way."""

GEOMETRIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "coronal": {"orientation": "coronal"},
    "sagittal": {"orientation": "sagittal"},
    "oblique": {"orientation": "oblique"},
    "descending": {"descending": True},
    "thin": {"spacing_mm": (1.0, 2.0, 2.0), "slices": 60},
    "unequal pixels": {"spacing_mm": (3.0, 1.5, 2.5)},
    "tilted": {"gantry_tilt_deg": 18.5},
    "tilted back, descending": {"gantry_tilt_deg": -12.0, "descending": True},
    "two spacings": {"gaps_mm": [2.0] * 12 + [1.1] + [4.0] * 12},
    "tilted, two spacings": {"gaps_mm": [2.0] * 12 + [1.1] + [4.0] * 12, "gantry_tilt_deg": 18.5},
    "one missing": {"missing": (11,), "slices": 25},
    "oblique, tilted, one missing": {"orientation": "oblique", "gantry_tilt_deg": 9.0, "missing": (11,), "slices": 25},
}


@pytest.mark.parametrize("make", [make_ct_series, make_mr_series, make_enhanced_ct])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_organ_and_marker_are_where_they_are(make, geometry: str, tmp_path: Path) -> None:
    series: SyntheticSeries = make(tmp_path, **GEOMETRIES[geometry])
    volume = read_series(series.paths)
    scene = series.scene
    matrix = volume.geometry.patient_from_voxel
    volume_mm3, centroid_mm = measured(volume.voxels, matrix, scene.organ, scene.body_value, scene.organ_value)
    widest = max([*np.diff(volume.source.distances_mm), *series.plan.spacing_mm[1:]])
    assert volume_mm3 == pytest.approx(scene.organ.volume_mm3, rel=ORGAN_VOLUME_TOLERANCE)
    assert math.dist(centroid_mm, scene.organ.centre_mm) < ORGAN_CENTROID_TOLERANCE * widest
    marker = np.argwhere(volume.voxels > (scene.organ_value + scene.marker_value) / 2)
    marker_mm = (matrix @ [*marker.mean(axis=0), 1.0])[:3]
    assert math.dist(marker_mm, scene.marker.centre_mm) < MARKER_TOLERANCE_MM
    assert len(volume.source.planes) == len(series.plan.positions_mm) - len(series.plan.missing)
    assert volume.units == (UCUM_NO_UNITS if make is make_mr_series else UCUM_HOUNSFIELD)


def test_outside_the_stack_is_air(tmp_path: Path) -> None:
    ct = read_series(make_ct_series(tmp_path / "ct", gantry_tilt_deg=20.0).paths)
    assert ct.voxels[12].max() > 0
    assert set(np.unique(ct.voxels[0, :5])) == {np.float32(AIR_HU)}
    assert set(np.unique(ct.voxels[-1, -5:])) == {np.float32(AIR_HU)}
    mr = read_series(make_mr_series(tmp_path / "mr", gantry_tilt_deg=20.0).paths)
    assert mr.voxels.min() == 0.0


def test_source_planes_keep_the_uids_in_ascending_order(tmp_path: Path) -> None:
    series = make_ct_series(tmp_path, descending=True)
    volume = read_series(series.paths)
    assert [plane.sop_instance_uid for plane in volume.source.planes] == list(series.sop_instance_uids)[::-1]
    assert {plane.frame_number for plane in volume.source.planes} == {None}
    assert volume.source.frame_of_reference_uid == series.frame_of_reference_uid


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticSeries, Volume]:
    series = make_ct_series(tmp_path_factory.mktemp("tilted"), slices=21, rows=24, columns=28, gantry_tilt_deg=11.0, missing=(9,))
    return series, read_series(series.paths)


@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shuffled_files_give_the_same_volume(tilted: tuple[SyntheticSeries, Volume], dice) -> None:
    series, expected = tilted
    volume = read_series(dice.sample(series.paths, len(series.paths)))
    assert np.array_equal(volume.voxels, expected.voxels)
    assert np.array_equal(volume.geometry.patient_from_voxel, expected.geometry.patient_from_voxel)
    assert volume.source == expected.source
    assert volume.notes == expected.notes


def test_file_names_do_not_matter(tilted: tuple[SyntheticSeries, Volume], tmp_path: Path) -> None:
    series, expected = tilted
    names = [tmp_path / f"{(index * 7919) % 1000:03d}-{index}" for index in range(len(series.paths))]
    for path, name in zip(series.paths, names, strict=True):
        os.link(path, name)
    volume = read_series(names)
    assert np.array_equal(volume.voxels, expected.voxels)
    assert volume.notes == expected.notes


MEASURE = """
import sys
from pathlib import Path
from node.inference.series_reader import read_series
def peak_kib():  # VmHWM, not ru_maxrss: that begins with the peak of the process that started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
files = sorted(Path(sys.argv[1]).iterdir())
read_series(files[:2])
before = peak_kib()
volume = read_series(files)
print((peak_kib() - before) * 1024 / volume.voxels.nbytes)
"""


def test_peak_memory_is_about_one_volume(tmp_path: Path) -> None:
    make_ct_series(tmp_path, slices=160, rows=256, columns=256, spacing_mm=(1.0, 0.8, 0.8))
    process = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0.9 < float(process.stdout) < PEAK_MEMORY_SHARE
