"""Volumes are right for even, uneven and tilted slices."""

import math
from dataclasses import replace

import numpy as np
import pytest

from node.codes import UCUM_CUBIC_CENTIMETRE, UCUM_HOUNSFIELD, UCUM_NO_UNITS, VOLUME, Code
from node.domain.measurement import measure
from node.domain.modelcard import InputRequirement, ModelCard, SegmentDefinition, WeightsFile
from node.domain.volume import LabelMap, Plane, SourceGrid, Volume, VolumeGeometry

BRAIN = Code("12738006", "SCT", "Brain")


def make_card(*labels: int) -> ModelCard:
    segments = tuple(SegmentDefinition(label, f"Part {label}", BRAIN, BRAIN) for label in labels)
    weights = (WeightsFile("a.safetensors", "safetensors", "0" * 64, "nowhere"),)
    return ModelCard("m", "1", "M", "us", "x", "x", "x", "x", weights, (InputRequirement(("CT",)),), segments)


def make_grid(positions: list[tuple[float, float, float]], orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)) -> SourceGrid:
    planes = tuple(Plane("1.2", f"1.2.{index}", position) for index, position in enumerate(positions))
    return SourceGrid(4, 5, 2.0, 0.5, orientation, planes, "1.2.3")  # type: ignore[arg-type]


def test_volume_is_voxels_times_spacings() -> None:
    grid = make_grid([(0, 0, 3.0 * k) for k in range(4)])
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[1:3, :2, :3] = 7
    (segment,) = measure(LabelMap(labels, grid), make_card(7))
    assert segment.present
    assert segment.voxels == 12
    (volume,) = segment.measurements
    assert (volume.concept, volume.unit) == (VOLUME, UCUM_CUBIC_CENTIMETRE)
    assert volume.value == pytest.approx(12 * 2.0 * 0.5 * 3.0 / 1000)


def test_an_uneven_slice_counts_for_its_slab() -> None:
    grid = make_grid([(0, 0, 0), (0, 0, 1), (0, 0, 5)])
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[1, 0, 0] = 1
    labels[2, 0, 0] = 2
    middle, last = measure(LabelMap(labels, grid), make_card(1, 2))
    assert middle.measurements[0].value == pytest.approx(2.5 / 1000)
    assert last.measurements[0].value == pytest.approx(4.0 / 1000)


def test_a_tilted_slab_is_as_thick_as_the_planes_lie_apart() -> None:
    angle = math.radians(20)
    orientation = (1, 0, 0, 0, math.cos(angle), -math.sin(angle))
    grid = make_grid([(0, 0, 5.0 * k) for k in range(3)], orientation)
    labels = np.ones(grid.shape, dtype=np.uint8)
    (segment,) = measure(LabelMap(labels, grid), make_card(1))
    assert segment.measurements[0].value == pytest.approx(labels.size * 5.0 * math.cos(angle) / 1000, rel=1e-5)


def test_a_structure_without_voxels_is_absent_and_has_no_volume() -> None:
    grid = make_grid([(0, 0, 0), (0, 0, 1)])
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[0, 0, 0] = 255
    absent, present = measure(LabelMap(labels, grid), make_card(1, 255))
    assert (absent.present, absent.voxels, absent.measurements) == (False, 0, ())
    assert present.present


def test_a_card_chooses_what_is_measured() -> None:
    shape = (6, 20, 20)
    planes = tuple(Plane("1.2", f"1.2.{k}", (0.0, 0.0, 2.0 * k)) for k in range(shape[0]))
    grid = SourceGrid(20, 20, 1.0, 1.0, (1, 0, 0, 0, 1, 0), planes, "1.2.3")
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:4, 5:15, 8:12] = 1
    voxels = np.random.default_rng(0).normal(40, 10, shape).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, 1.0], [0, 1.0, 0], [2.0, 0, 0]])
    volume = Volume(voxels, VolumeGeometry(shape, matrix), grid, "CT", UCUM_HOUNSFIELD)
    card = make_card(1)
    card = replace(card, segments=(replace(card.segments[0], measure=("volume", "diameter", "attenuation")),))
    (segment,) = measure(LabelMap(labels, grid), card, volume)
    told = {(m.concept.meaning, m.derivation.meaning if m.derivation else ""): m.value for m in segment.measurements}
    inside = voxels[labels == 1]
    assert told["Attenuation Coefficient", "Mean"] == pytest.approx(inside.mean(), rel=1e-4)
    assert told["Attenuation Coefficient", "Standard Deviation"] == pytest.approx(inside.std(), rel=1e-4)
    assert told["Attenuation Coefficient", "90th Percentile Value of population"] == pytest.approx(np.percentile(inside, 90), rel=1e-4)
    assert told["Long axis", ""] == pytest.approx(math.hypot(10, 3), rel=0.05)
    assert told["Maximum 3D Diameter of a Mesh", ""] >= told["Long axis", ""]
    assert {m.unit.value for m in segment.measurements} == {"cm3", "mm", "[hnsf'U]"}
    without = measure(LabelMap(labels, grid), card, replace(volume, units=UCUM_NO_UNITS))
    assert not [m for m in without[0].measurements if m.concept.value == "112031"], "grey values of MR are no attenuation"
