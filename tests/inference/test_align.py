"""Series of one frame of reference come to lie on one grid, as SciPy samples them; what does not fit together is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from node.codes import Code
from node.domain.measurement import measure
from node.domain.modelcard import ModelCard, SegmentDefinition
from node.domain.volume import SPACING_UNKNOWN, LabelMap, Plane, SourceGrid, Volume, VolumeGeometry
from node.errors import MixedFrameOfReference, NotAVolume
from node.inference.align import BEYOND_THE_IMAGES, RESAMPLED_ON_FIRST, align
from node.inference.image_reader import read_images
from tests.conformance.other_objects import radiograph


def volume(shape: tuple[int, int, int], matrix: NDArray[np.float64], *, seed: int = 0, frame_of_reference: str = "1.9") -> Volume:
    rng = np.random.default_rng(seed)
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    planes = tuple(Plane("1", f"1.{i}", tuple(matrix[:3, 3] + i * matrix[:3, 0])) for i in range(shape[0]))
    cosines = (*(matrix[:3, 2] / steps[2]), *(matrix[:3, 1] / steps[1]))
    source = SourceGrid(shape[1], shape[2], steps[1], steps[2], cosines, planes, frame_of_reference)
    return Volume(rng.normal(size=shape).astype(np.float32), VolumeGeometry(shape, matrix), source, "MR")


def turned(degrees: float, spacing_mm: tuple[float, float, float], origin_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    axes = np.array([[0, np.sin(angle), np.cos(angle)], [0, np.cos(angle), -np.sin(angle)], [1, 0, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing_mm
    matrix[:3, 3] = origin_mm
    return matrix


@pytest.mark.parametrize("degrees", [0.0, 7.0, -30.0])
def test_samples_are_those_of_scipy(degrees: float) -> None:
    first = volume((9, 12, 14), turned(0, (2, 1, 1), (0, 0, 0)))
    other = volume((14, 30, 31), turned(degrees, (1.7, 0.8, 0.9), (-6, -7, -2)), seed=1)
    _, laid = align([first, other], ["T1", "FLAIR"])
    index = np.stack(np.meshgrid(*(np.arange(size) for size in first.geometry.shape), [1.0], indexing="ij"), axis=-1)[..., 0, :]
    places = index @ (np.linalg.inv(other.geometry.patient_from_voxel) @ first.geometry.patient_from_voxel).T
    expected = map_coordinates(other.voxels, np.moveaxis(places[..., :3], -1, 0), order=1, mode="nearest")
    sizes = np.array(other.voxels.shape)
    inside = np.all((places[..., :3] >= -0.5) & (places[..., :3] <= sizes - 0.5), axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(laid.voxels, np.where(inside, expected, 0), atol=2e-4)
    assert laid.geometry is first.geometry
    assert {note.code for note in laid.notes} == {RESAMPLED_ON_FIRST} | ({BEYOND_THE_IMAGES} if not inside.all() else set())


def test_a_series_on_the_same_grid_is_left_as_it_is() -> None:
    first, other = (volume((4, 5, 6), turned(0, (2, 1, 1), (0, 0, 0)), seed=seed) for seed in (0, 1))
    assert align([first, other], ["a", "b"]) == (first, other)


def test_what_does_not_belong_together_is_refused() -> None:
    first = volume((4, 5, 6), turned(0, (2, 1, 1), (0, 0, 0)))
    with pytest.raises(MixedFrameOfReference, match="FLAIR"):
        align([first, volume((4, 5, 6), turned(0, (2, 1, 1), (0, 0, 0)), frame_of_reference="1.8")], ["T1", "FLAIR"])
    nowhere = replace(first, source=replace(first.source, frame_of_reference_uid=""))
    with pytest.raises(MixedFrameOfReference):
        align([nowhere, nowhere], ["T1", "FLAIR"])
    with pytest.raises(NotAVolume, match="covers only"):
        align([first, volume((4, 5, 6), turned(0, (2, 1, 1), (0, 0, 100)))], ["T1", "FLAIR"])


def test_a_radiograph_is_a_slice_that_is_bright_where_a_reader_sees_it_bright(tmp_path: Path) -> None:
    _, stored = radiograph(tmp_path)  # MONOCHROME1
    (image,) = read_images(list(tmp_path.glob("*.dcm")))
    np.testing.assert_allclose(image.voxels[0], stored.max() + stored.min() - stored)
    assert image.geometry.spacing_mm == (1.0, 0.2, 0.2)
    assert not image.notes
    assert image.source.planes[0].sop_instance_uid == "1.2.3.4.1"


def test_an_image_without_spacing_says_so(tmp_path: Path) -> None:
    import pydicom

    radiograph(tmp_path)
    path = tmp_path / "cr.dcm"
    dataset = pydicom.dcmread(path)
    del dataset.ImagerPixelSpacing
    dataset.save_as(path)
    (image,) = read_images([path])
    assert [note.code for note in image.notes] == [SPACING_UNKNOWN]


@pytest.mark.parametrize("has_spacing", [True, False])
def test_areas_are_measured_on_a_radiograph_whose_spacing_is_known(tmp_path: Path, has_spacing: bool) -> None:
    import pydicom

    radiograph(tmp_path)
    path = tmp_path / "cr.dcm"
    dataset = pydicom.dcmread(path)
    if not has_spacing:
        del dataset.ImagerPixelSpacing
        dataset.save_as(path)
    (image,) = read_images([path])
    labels = np.zeros(image.source.shape, np.uint8)
    labels[0, 10:20, 5:25] = 1
    code = Code("1", "99T", "x")
    card = ModelCard(
        "m", "1", "M", "us", "x", "x", "x", "x", (), (), (SegmentDefinition(1, "A", code, code, measure=("volume", "diameter")),)
    )
    (segment,) = measure(LabelMap(labels, image.source), card, image)
    assert segment.present
    found = {one.concept.meaning: (one.value, one.unit.value) for one in segment.measurements}
    if has_spacing:
        assert found["Area"] == (200 * 0.04, "mm2")
        assert set(found) == {"Area", "Long axis"}
    else:
        assert not found
