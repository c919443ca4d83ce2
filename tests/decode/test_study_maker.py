"""Volumes that are no DICOM become studies: right way round, valid, and the same each time."""

import io
import plistlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its own convention

from node.codes import UCUM_HOUNSFIELD
from node.errors import UsageError
from node.inference.series_reader import read_series
from node.study_maker import DEMO_PACKAGE, DEMO_PATIENT_NAME, DEMO_SOURCE, find_demo_source, make_study
from tests import realdata


def write_nifti(path: Path, affine: np.ndarray, *, dtype: type = np.int16, shape: tuple[int, ...] = (7, 9, 11)) -> Path:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_invesalius(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    """Writes a project as InVesalius does: a tar.gz with main.plist and matrix.dat; `voxels` are (z, y, x)."""
    plist = {"matrix": {"filename": "matrix.dat", "shape": list(voxels.shape), "dtype": "int16"}, "spacing": list(spacing)}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("main.plist", plistlib.dumps(plist)), ("matrix.dat", voxels.astype("<i2").tobytes())):
            info = tarfile.TarInfo(f"tmpxyz/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


ORIENTATIONS = {
    "RAS": np.diag([2.0, 3.0, 4.0, 1.0]),
    "LAS": np.diag([-2.0, 3.0, 4.0, 1.0]),
    "LPI": np.diag([-2.0, -3.0, -4.0, 1.0]),
    "PIR": np.array([[0, 0, 4.0, 5], [-2.0, 0, 0, 6], [0, -3.0, 0, 7], [0, 0, 0, 1]]),
    "oblique": nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([2.0, 3.0, 4.0]), [5, -6, 7]),
}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_nifti_voxel_keeps_its_place_in_the_patient(orientation: str, modality: str, tmp_path: Path) -> None:
    """SimpleITK reads the NIfTI and the DICOM side: same value at the same LPS point."""
    source = write_nifti(tmp_path / "volume.nii", ORIENTATIONS[orientation])
    paths = make_study(source, tmp_path / "study", modality=modality)
    volume = read_series(paths)
    nifti = sitk.ReadImage(str(source))
    for index in np.ndindex(volume.voxels.shape):
        point = (volume.geometry.patient_from_voxel @ [*index, 1.0])[:3]
        assert volume.voxels[index] == nifti[nifti.TransformPhysicalPointToIndex(point.tolist())]
    assert volume.voxels.size == 7 * 9 * 11
    assert volume.notes == ()


def test_floating_point_mr_is_scaled_to_whole_numbers(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "volume.nii.gz", np.eye(4), dtype=np.float32)
    volume = read_series(make_study(source, tmp_path / "study", modality="MR"))
    assert (volume.voxels.min(), volume.voxels.max()) == (0, 4095)


def test_ct_values_below_air_are_kept(tmp_path: Path) -> None:
    voxels = np.full((4, 6, 8), -2000)
    voxels[0, 0, 0] = 3071
    volume = read_series(make_study(write_invesalius(tmp_path / "a.inv3", voxels, (1, 1, 2)), tmp_path / "study", modality="CT"))
    assert (volume.voxels.min(), volume.voxels.max()) == (-2000, 3071)
    assert volume.units == UCUM_HOUNSFIELD


def test_invesalius_columns_go_left_rows_front_slices_up(tmp_path: Path) -> None:
    voxels = np.zeros((4, 6, 8), np.int16)
    voxels[3, 5, 7] = 1000  # last slice, row and column
    source = write_invesalius(tmp_path / "a.inv3", voxels, (0.5, 1.0, 2.0))
    volume = read_series(make_study(source, tmp_path / "study", modality="CT"))
    index = np.unravel_index(volume.voxels.argmax(), volume.voxels.shape)
    x, y, z = (volume.geometry.patient_from_voxel @ [*index, 1.0])[:3]
    assert (x, y, z) == pytest.approx((3.5 * 0.5, -2.5 * 1.0, 1.5 * 2.0))  # left, front, up
    assert volume.geometry.spacing_mm == pytest.approx((2.0, 1.0, 0.5))


def test_the_same_source_gives_the_same_study_with_a_fake_identity(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "volume.nii", np.eye(4))
    seen: list[tuple[int, int]] = []
    first = make_study(source, tmp_path / "first", modality="CT", progress=lambda done, total: seen.append((done, total)))
    second = make_study(source, tmp_path / "second", modality="CT")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert seen == [(number, 11) for number in range(1, 12)]
    dataset = pydicom.dcmread(first[0])
    assert dataset.PatientName == DEMO_PATIENT_NAME
    assert dataset.BodyPartExamined == "HEAD"
    other = write_nifti(tmp_path / "other.nii", 2 * np.eye(4))
    assert pydicom.dcmread(make_study(other, tmp_path / "third", modality="CT")[0]).StudyInstanceUID != dataset.StudyInstanceUID


@pytest.mark.parametrize(
    ("name", "content", "modality", "words"),
    [
        ("a.nii", b"no NIfTI", "MR", "not a readable NIfTI"),
        ("a.inv3", b"no tar", "CT", "not a readable InVesalius"),
        ("a.mha", b"", "CT", r"\.inv3, \.nii and \.nii\.gz"),
        ("a.nii", b"", "PT", "not as 'PT'"),
        (None, b"", "CT", "is not there"),
    ],
)
def test_what_cannot_be_made_is_said(name: str | None, content: bytes, modality: str, words: str, tmp_path: Path) -> None:
    source = tmp_path / (name or "absent.nii")
    if name:
        source.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        make_study(source, tmp_path / "study", modality=modality)


def test_sheared_and_four_dimensional_niftis_are_refused(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(UsageError, match="sheared"):
        make_study(write_nifti(tmp_path / "a.nii", sheared), tmp_path / "study", modality="MR")
    with pytest.raises(UsageError, match="one volume"):
        make_study(write_nifti(tmp_path / "b.nii", np.eye(4), shape=(4, 4, 4, 2)), tmp_path / "study", modality="MR")


def test_without_apt_the_advice_is_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("node.study_maker.DEMO_SOURCE", Path("usr/share/nowhere/Cranium.inv3"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"apt-get install invesalius-examples.*--study DIR"):
        find_demo_source(tmp_path)


def test_a_failing_fetch_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("node.study_maker.DEMO_SOURCE", Path("usr/share/nowhere/Cranium.inv3"))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(UsageError, match="could not be fetched"):
        find_demo_source(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_copy_is_used_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("node.study_maker.DEMO_SOURCE", Path("usr/share/nowhere/Cranium.inv3"))
    copy = tmp_path / DEMO_PACKAGE / "usr/share/nowhere/Cranium.inv3"
    copy.parent.mkdir(parents=True)
    copy.touch()
    assert find_demo_source(tmp_path) == copy
    assert DEMO_SOURCE.name == copy.name


@pytest.mark.data
def test_debian_head_ct_is_a_head_the_right_way_up() -> None:
    """Air of the sinuses lies in front of and below the brain; the skull vault is closed above."""
    volume = read_series(sorted(realdata.head_ct_debian_dir().iterdir()))
    assert (volume.voxels.min(), volume.voxels.max()) == (-1024, 2986)
    bone = volume.voxels > 300
    first, last = (np.ptp(np.argwhere(bone[index]), axis=0) for index in (10, -8))
    assert first.max() > last.max()  # the vault narrows upwards: slices ascend to the head
    inside_air = np.argwhere((volume.voxels < -600)[20:50, 40:216, 100:156]).mean(axis=0)
    brain = np.argwhere(((volume.voxels > 20) & (volume.voxels < 60))[20:50, 40:216, 100:156]).mean(axis=0)
    assert inside_air[1] < brain[1]  # rows go to the back


@pytest.mark.data
def test_colin27_equals_its_nifti_source() -> None:
    volume = read_series(sorted(realdata.colin27_dir().iterdir()))
    nifti = sitk.ReadImage(str(realdata.colin27_file()), sitk.sitkFloat32)
    dice = np.random.default_rng(1)
    for _ in range(500):
        index = [int(dice.integers(size)) for size in volume.voxels.shape]
        point = (volume.geometry.patient_from_voxel @ [*index, 1.0])[:3]
        assert volume.voxels[tuple(index)] == nifti[nifti.TransformPhysicalPointToIndex(point.tolist())]


@pytest.mark.peer
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dciodvfy_finds_no_error(modality: str, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    paths = make_study(write_nifti(tmp_path / "volume.nii", np.eye(4)), tmp_path / "study", modality=modality)
    for path in (paths[0], paths[-1]):
        process = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        assert [line for line in (process.stdout + process.stderr).splitlines() if line.startswith("Error")] == []
