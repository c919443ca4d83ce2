"""`radnode check` on files: what a person sees, and the exit code that a script sees."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from node.evidence.sop_common import part10_bytes
from tests.conformance.cases import Case, make_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("check")
    case = make_case(folder, "tilted", 2)
    (folder / "results").mkdir()
    (folder / "results" / "seg.dcm").write_bytes(part10_bytes(case.segmentation()))
    (folder / "results" / "sr.dcm").write_bytes(part10_bytes(case.report()))
    return case


def results(case: Case) -> Path:
    return case.series.folder.parent / "results"


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "node", "check", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_good_results_are_called_good(case: Case) -> None:
    done = check(results(case), "--sources", case.series.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["nothing is wrong"] * 2


def test_an_error_is_told_with_its_place_and_clause_and_ends_with_1(case: Case, tmp_path: Path) -> None:
    seg = pydicom.dcmread(results(case) / "seg.dcm")
    seg.PatientID = "SECRET-OF-THE-PATIENT"
    seg.SegmentSequence[1].SegmentLabel = ""
    seg.save_as(tmp_path / "seg.dcm")
    done = check(tmp_path / "seg.dcm", results(case) / "sr.dcm", "--sources", case.series.folder)
    assert done.returncode == 1
    assert "segment 2: it has no label (PS3.3 Table C.8.20-4)" in done.stdout
    assert "PatientID is not that of the source images" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
    told = json.loads(check(tmp_path / "seg.dcm", "--json").stdout)
    assert {fault["severity"] for fault in told[0]["faults"]} == {"error"}


def test_without_sources_it_says_what_it_did_not_compare(case: Case) -> None:
    done = check(results(case) / "seg.dcm")
    assert done.returncode == 0
    assert "not compared with source images" in done.stderr


def test_what_is_no_dicom_is_skipped_or_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    done = check(tmp_path / "notes.txt", results(case) / "sr.dcm")
    assert done.returncode == 0
    assert "skipped" in done.stderr
    assert check(tmp_path / "notes.txt").returncode == 2
    assert check(tmp_path / "absent.dcm").returncode == 2
