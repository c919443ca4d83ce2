"""`radnode evaluate` on cases whose truth is known: by NIfTI, by SEG, by tables; what fails is told, never passed over."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from node.cli import main
from node.codes import ExitCode
from node.domain.modelcard import ModelCard
from node.errors import UsageError
from node.evaluation.dataset import read_dataset
from node.inference.series_reader import read_series
from node.modelstore import load_card
from tests.bundles import make_bundle
from tests.factories import make_ct_series
from tests.inference.test_tasks import CLASSES, write_bundle


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return load_card(make_bundle(tmp_path / "models", "thresholds"))


def add_case(folder: Path, *, orientation: str = "axial", slices: int = 24, truth: str = "nifti", shift: int = 0) -> None:
    """A case of the thresholds' own scene; its truth are the thresholds, moved by `shift` voxels."""
    series = make_ct_series(
        folder / "images", slices=slices, rows=48, columns=48, spacing_mm=(3.0, 2.7, 2.7), orientation=orientation, study=folder.name
    )
    volume = read_series(series.paths)
    labels = (volume.voxels > 145).astype(np.uint8) + (volume.voxels > 625)
    labels = np.roll(labels, shift, axis=1)
    if truth == "nifti":  # written in another order of axes than the images have: the affine says which
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.patient_from_voxel[:, [2, 1, 0, 3]]
        flipped = np.flip(labels.transpose(2, 1, 0), axis=0)
        affine = affine @ np.array([[-1, 0, 0, labels.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        nibabel.save(nibabel.Nifti1Image(flipped, affine), folder / "truth.nii.gz")


def evaluate(tmp_path: Path, *further: str, model: str = "thresholds") -> tuple[int, dict[str, object], str]:
    output = tmp_path / "out"
    status = main(
        ["evaluate", model, "--dataset", str(tmp_path / "data"), "-o", str(output), "--models-dir", str(tmp_path / "models"), *further]
    )
    return status, json.loads((output / "scorecard.json").read_text()), (output / "scorecard.html").read_text()


def test_a_model_that_is_right_gets_a_dice_of_one_whatever_the_order_of_axes(tmp_path: Path, card: ModelCard) -> None:
    add_case(tmp_path / "data" / "one")
    add_case(tmp_path / "data" / "two", orientation="sagittal")
    status, scorecard, page = evaluate(tmp_path)
    assert status == ExitCode.OK
    assert scorecard["evaluated"] == 2
    for label in ("Organ", "Marker"):
        figures = scorecard["summary"][label]  # type: ignore[index]
        assert figures["dice"]["worst"] > 0.999, label
        assert abs(figures["volume_error_percent"]["worst"]) < 0.1
    assert "2 of 2 cases were analyzed" in page
    assert page.count("data:image/png;base64,") == 2


def test_a_truth_that_lies_elsewhere_costs_dice(tmp_path: Path, card: ModelCard) -> None:
    add_case(tmp_path / "data" / "one", shift=2)
    _, scorecard, _ = evaluate(tmp_path)
    assert 0.3 < scorecard["summary"]["Organ"]["dice"]["mean"] < 0.97  # type: ignore[index]
    assert scorecard["summary"]["Organ"]["surface_distance_mm"]["mean"] > 0.3  # type: ignore[index]


def test_our_own_segmentation_is_a_truth_that_we_meet(tmp_path: Path, card: ModelCard) -> None:
    case = tmp_path / "data" / "one"
    add_case(case, orientation="oblique", truth="")
    assert (
        main(["run", str(case), "--model", "thresholds", "-o", str(tmp_path / "run"), "--models-dir", str(tmp_path / "models")])
        == ExitCode.OK
    )
    (tmp_path / "run" / "seg.dcm").rename(case / "truth.dcm")
    _, scorecard, _ = evaluate(tmp_path)
    assert scorecard["summary"]["Organ"]["dice"]["mean"] == 1  # type: ignore[index]
    assert scorecard["summary"]["Marker"]["dice"]["mean"] == 1  # type: ignore[index]


def test_a_case_that_cannot_be_analysed_is_told_and_in_no_figure(tmp_path: Path, card: ModelCard) -> None:
    add_case(tmp_path / "data" / "one")
    add_case(tmp_path / "data" / "short", slices=3)
    (tmp_path / "data" / "empty").mkdir()
    status, scorecard, page = evaluate(tmp_path)
    assert status == ExitCode.OK
    assert scorecard["evaluated"] == 1
    assert scorecard["summary"]["Organ"]["dice"]["cases"] == 1  # type: ignore[index]
    assert "2 were not: they are in no figure below" in page
    assert "3 slices, the model needs at least 5" in page


def test_a_truth_that_cannot_be_read_costs_its_case_alone(tmp_path: Path, card: ModelCard) -> None:
    add_case(tmp_path / "data" / "one")
    add_case(tmp_path / "data" / "two")
    (tmp_path / "data" / "two" / "truth.nii.gz").write_bytes(b"no NIfTI")
    status, scorecard, page = evaluate(tmp_path)
    assert status == ExitCode.OK
    assert scorecard["evaluated"] == 1
    assert "its truth cannot be used" in page
    assert scorecard["summary"]["Organ"]["dice"]["cases"] == 1  # type: ignore[index]


def test_an_answer_that_the_card_does_not_know_is_refused_before_anything_runs(tmp_path: Path) -> None:
    configuration = {
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveMaxPool3d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))",
        "imports": ["$import torch"],
    }
    write_bundle(tmp_path / "models" / "grade", configuration, CLASSES)
    (tmp_path / "data" / "one").mkdir(parents=True)
    (tmp_path / "data" / "answers.csv").write_text("case,answer\none,middling\n")
    with pytest.raises(UsageError, match="'middling' → one of low, high"):
        read_dataset(tmp_path / "data", load_card(tmp_path / "models" / "grade"))


def test_two_models_are_compared_voxel_by_voxel(tmp_path: Path, card: ModelCard) -> None:
    make_bundle(tmp_path / "models", "later", organ_from=160.0)
    add_case(tmp_path / "data" / "one")
    _, scorecard, page = evaluate(tmp_path, "--against", "later")
    agreement = scorecard["against"]["agreement"]  # type: ignore[index]
    assert agreement["Marker"]["lowest_dice"] > 0.999
    assert 0.5 < agreement["Organ"]["lowest_dice"] < 1
    assert "how far the two agree" in page


@pytest.mark.parametrize(("answers", "right"), [("one,low\ntwo,high\n", 0.5), ("one,low\n", 0.0), ("one,high\n", 1.0)])
def test_a_classifier_is_judged_by_its_answers(tmp_path: Path, answers: str, right: float) -> None:
    configuration = {
        "network_def": "$torch.nn.Sequential(torch.nn.AdaptiveMaxPool3d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))",
        "imports": ["$import torch"],
    }
    write_bundle(tmp_path / "models" / "grade", configuration, CLASSES)
    said = []
    for name in ("one", "two"):
        add_case(tmp_path / "data" / name, slices=8, truth="")
    (tmp_path / "data" / "answers.csv").write_text(f"case,answer\n{answers}")
    status, scorecard, page = evaluate(tmp_path, model="grade")
    assert status == ExitCode.OK
    said = [case["answers"]["Liver"] for case in scorecard["cases"]]  # type: ignore[index, attr-defined]
    truths = dict(line.split(",") for line in answers.split())
    expected = np.mean([said[index] == truths[name] for index, name in enumerate(("one", "two")) if name in truths])
    assert scorecard["accuracy"]["Liver"] == expected  # type: ignore[index]
    assert right in (expected, 1 - expected)
    assert "Brier" in page


def test_a_wrong_dataset_says_what_is_wrong(tmp_path: Path, card: ModelCard) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        read_dataset(tmp_path / "none", card)
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="holds no folders"):
        read_dataset(tmp_path / "data", card)
    (tmp_path / "data" / "one").mkdir()
    (tmp_path / "data" / "answers.csv").write_text("case,answer\nother,yes\n")
    with pytest.raises(UsageError, match=r"no folder for the case\(s\) other"):
        read_dataset(tmp_path / "data", card)
    (tmp_path / "data" / "answers.csv").write_text("who,what\n")
    with pytest.raises(UsageError, match=r"lacks the column\(s\) case, answer"):
        read_dataset(tmp_path / "data", card)
    (tmp_path / "data" / "answers.csv").unlink()
    (tmp_path / "data" / "lesions.csv").write_text("case,x_mm,y_mm,z_mm,diameter_mm\none,a,0,0,1\n")
    with pytest.raises(UsageError, match="no number"):
        read_dataset(tmp_path / "data", card)
