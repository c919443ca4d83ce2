"""Four series of one study are one job of a network with four inputs, from the intake to the evidence that cites them all."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.cli import main
from node.codes import ExitCode
from node.config import load_config
from node.domain.states import JobState
from node.inference.series_reader import read_series
from node.journal import open_database
from node.journal.queries import list_series
from tests.bundles import copy_bundle, write_card, write_random_weights
from tests.factories import SyntheticSeries, make_mr_series
from tests.faults.setting import CONFIG, add_study, finish

CHANNELS = {"T1c": "T1 AX GD", "T1": "T1 AX", "T2": "T2 AX", "FLAIR": "FLAIR AX"}
WORDS = {"T1c": '["GD"]', "T1": '["T1"]', "T2": '["T2"]', "FLAIR": '["FLAIR"]'}


def named(description: str) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _index: int) -> None:
        dataset.SeriesDescription = description

    return edit


def make_study(folder: Path, channels: dict[str, str]) -> list[SyntheticSeries]:
    """Series on one grid, but for the FLAIR, whose slices lie farther apart."""
    made = []
    for channel, description in channels.items():
        spacing_mm = (4.5, 2.0, 2.0) if channel == "FLAIR" else (3.0, 2.0, 2.0)
        slices = 16 if channel == "FLAIR" else 24
        made.append(
            make_mr_series(
                folder / channel, slices=slices, rows=40, columns=40, spacing_mm=spacing_mm, series=channel, edit=named(description)
            )
        )
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node with the tumour bundle of the Model Zoo, random weights, and the studies to send."""
    folder = tmp_path_factory.mktemp("several")
    bundle = copy_bundle("brats_mri_segmentation", folder / "models", {"inferer#roi_size": [32, 32, 24], "network_def#init_filters": 8})
    whole = make_study(folder / "whole", CHANNELS)
    volumes = [read_series(series.paths) for series in whole[:3]]
    write_random_weights(bundle, [*volumes, volumes[-1]])
    write_card(bundle, {1: "Core", 2: "Oedema", 4: "Enhancing"}, modality="MR", channels=list(CHANNELS))
    card = (bundle / "card.toml").read_text()
    for channel, words in WORDS.items():
        without = 'without_words = ["GD"]\n' if channel == "T1" else ""
        card = card.replace(f'channel = "{channel}"\n', f'channel = "{channel}"\nwords = {words}\n{without}')
    (bundle / "card.toml").write_text(card)
    (folder / "node.toml").write_text(
        CONFIG.format(models_dir="models", model=bundle.name, quiet_s=0.0, archive_ae_title="ARCHIVE", archive_port=104)
        + '\n[worker]\nengine = "torch"\n'
    )
    return folder


def test_four_series_become_one_result_that_cites_them_all(place: Path) -> None:
    (place / "state").mkdir()
    series = make_study(place / "again", CHANNELS)
    add_study(place, *series)
    config = load_config(place / "node.toml")
    (job,) = finish(config)
    with closing(open_database(config.node.state_dir)) as connection:
        declined = [one for one in list_series(connection) if one.reason]
    assert job.state == JobState.COMPLETED, job.reason
    assert not declined
    evidence = {path.stem: dcmread(path) for path in (config.node.state_dir / "results" / "1" / "0").glob("*.dcm")}
    assert set(evidence) == {"seg", "sr"}
    cited = {
        str(one.SeriesInstanceUID)
        for item in evidence["sr"].CurrentRequestedProcedureEvidenceSequence
        for one in item.ReferencedSeriesSequence
    }
    assert {str(dcmread(one.paths[0], stop_before_pixels=True).SeriesInstanceUID) for one in series} < cited
    comments = [
        item.TextValue
        for container in evidence["sr"].ContentSequence
        for item in container.get("ContentSequence", [])
        if "TextValue" in item
    ]
    assert "FLAIR was resampled on the grid of the first channel." in comments

    status = main(
        [
            "run",
            str(place / "whole"),
            "--model",
            job.model,
            "-o",
            str(place / "out"),
            "--models-dir",
            str(place / "models"),
            "--engine",
            "torch",
        ]
    )
    assert status == ExitCode.OK
    offline = dcmread(place / "out" / "seg.dcm")
    assert np.array_equal(offline.pixel_array, evidence["seg"].pixel_array)


def test_a_study_without_one_of_them_says_which_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study(place / "part", {name: words for name, words in CHANNELS.items() if name != "FLAIR"})
    status = main(
        ["run", str(place / "part"), "--model", "brats_mri_segmentation", "-o", str(place / "no"), "--models-dir", str(place / "models")]
    )
    assert status == ExitCode.FAILED
    assert "no series suits as FLAIR" in capsys.readouterr().err
