"""`radnode demo` with a small model and a made-up study: the same path as `make demo`, without network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from node.codes import ExitCode
from tests.bundles import make_bundle
from tests.factories import make_ct_series

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "models")
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "demo.toml").read_text(encoding="utf-8")
    (tmp_path / "configs" / "demo.toml").write_text(text.replace('model = "brain-extraction"', 'model = "thresholds"'), encoding="utf-8")
    return tmp_path


def demo(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", "demo", "--study", "study", "--timeout", "120", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=280)


def processes_below(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words:
                found.append(words.replace("\0", " "))
    return found


def test_the_demo_brings_seg_and_sr_back_through_dicom(place: Path) -> None:
    images = make_ct_series(place / "study").paths
    for _ in range(2):  # the second run begins anew, beside the first
        done = demo(place)
        assert done.returncode == ExitCode.OK, done.stderr
        files = {line.split("  ")[0]: Path(line.split()[-1]) for line in done.stdout.splitlines() if str(place) in line}
        assert set(files) == {"SEG", "SR", "key image", "page"}
        source = dcmread(images[0], stop_before_pixels=True)
        for modality in ("SEG", "SR"):
            assert files[modality].is_relative_to(place / ".cache" / "demo" / "runs")
            assert "archive" in files[modality].parts
            came_back = dcmread(files[modality])
            assert came_back.Modality == modality
            assert came_back.StudyInstanceUID == source.StudyInstanceUID
        assert files["key image"].read_bytes().startswith(b"\x89PNG")
        assert "<html" in files["page"].read_text(encoding="utf-8").lower()
        stages = {line.split("  ")[0] for line in done.stdout.splitlines()}
        assert {"send", "wait until quiet", "prepare", "infer", "restore", "encode", "deliver", "total"} <= stages
        assert "demo: sending" in done.stderr
        assert not processes_below(place)
    assert len(list((place / ".cache" / "demo" / "runs").iterdir())) == 2


def test_the_demo_says_why_it_cannot_come_to_its_end(place: Path) -> None:
    make_ct_series(place / "study", slices=3)
    done = demo(place)
    assert done.returncode == ExitCode.FAILED
    assert "no series of this study suits the model" in done.stderr
    assert "3 slices, the model needs at least 5" in done.stderr
    assert not processes_below(place)
