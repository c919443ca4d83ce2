"""Real studies, real weights: the volumes are right, every object passes the validators, and others read the same voxels."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from node.domain.routing import Route, StudyDecision, decide_study
from node.domain.states import Outcome
from node.inference.bundle import load_bundle
from node.inference.engines.torch_engine import multiplies_bf16
from node.inference.series_reader import read_series
from node.inference.weights import install_weights
from node.intake.headers import read_series_headers
from node.modelstore import load_card, load_cards
from node.pipeline import OfflineResult, context_for, run_offline
from tests import realdata
from tests.conformance.validators import (
    consistency_faults,
    decoded_segments,
    instance_faults,
    iod_faults,
    presence_faults,
    template_faults,
    tree_faults,
)

pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(600)]

MODELS: Final = Path(__file__).resolve().parents[2] / "models"

SUBCORTICAL_CM3: Final[Mapping[str, float]] = {
    "Cerebral cortex": 518,
    "Cerebral white matter": 480,
    "Hippocampus": 7.8,
    "Thalamus": 15.7,
    "Caudate nucleus": 7.8,
    "Putamen": 11.2,
    "Brain stem": 19.6,
    "Lateral ventricle": 12.4,
}
"""../shared/data/README.md: measured with the publisher's own program."""


@dataclass(frozen=True)
class RealCase:
    """A study, a model, and the volumes that others measured: label → (cm3, tolerance)."""

    files: Callable[[], list[Path]]
    model: str
    volumes_cm3: Mapping[str, tuple[float, float]]
    weights: Mapping[str, str]
    """File of weights in the bundle → its name in tests/realdata.py."""
    is_regular: bool = True
    """dcmqi describes a SEG by one grid: it cannot read tilted or uneven stacks back."""
    notes: frozenset[str] = frozenset()


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


ORGANS_CM3: Final[Mapping[str, float]] = {
    "Right lung": 1948,
    "Left lung": 1738,
    "Heart": 380,
    "Aorta": 233,
    "Liver": 845,
    "Spleen": 120,
    "Right kidney": 83,
    "Left kidney": 97,
    "Bones": 1076,
}
"""What the weights find by MONAI's own inferer at 3 mm (models/body-ct-organs/training/evaluate.py): new weights, new figures."""

BRAIN: Final = {"models/net.safetensors": "mindgrab"}
CASES: Final[Mapping[str, RealCase]] = {
    "head CT of Debian": RealCase(lambda: files_in(realdata.head_ct_debian_dir()), "brain-extraction", {"Brain": (1504, 0.03)}, BRAIN),
    "head CT of GE, tilted": RealCase(
        lambda: files_in(realdata.ge_head_ct_dir()),
        "brain-extraction",
        {"Brain": (1536, 0.04)},
        BRAIN,
        is_regular=False,
        notes=frozenset({"GantryTiltResampled", "UnevenSpacingResampled"}),
    ),
    "T1, a slice missing": RealCase(
        realdata.adi_t1_files,
        "brain-extraction",
        {"Brain": (1521, 0.04)},
        BRAIN,
        is_regular=False,
        notes=frozenset({"MissingSliceInterpolated"}),
    ),
    "T1, intracranial": RealCase(
        realdata.adi_t1_files,
        "brain-volumes-t1",
        {"Intracranial volume": (1432, 0.02)},
        {"models/model.pt": "deepbet", "models/bbox_model.pt": "deepbet-bbox"},
        is_regular=False,
        notes=frozenset({"MissingSliceInterpolated"}),
    ),
    "T1, structures": RealCase(
        realdata.adi_t1_files,
        "brain-structures-t1",
        {label: (volume, 0.05) for label, volume in SUBCORTICAL_CM3.items()},
        {"models/net.safetensors": "brainchop-subcortical"},
        is_regular=False,
        notes=frozenset({"MissingSliceInterpolated"}),
    ),
    "chest CT, our own weights": RealCase(
        lambda: files_in(realdata.chest_ct_dir()),
        "body-ct-organs",
        {label: (volume, 0.07) for label, volume in ORGANS_CM3.items()},
        {},
        is_regular=False,
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OfflineResult]:
    """Runs a case once, whatever asks for it."""

    @cache
    def run_once(name: str) -> OfflineResult:
        case = CASES[name]
        folder = installed(case)
        model = load_bundle(folder, load_card(folder))
        context = context_for(f"test {name}", run=0, encoded_at_s=1.6e9, ae_title="TEST", device_serial_number="1")
        try:
            return run_offline(case.files(), model, context, tmp_path_factory.mktemp("out"), lambda *_: None)
        finally:
            model.close()

    return run_once


def installed(case: RealCase) -> Path:
    """The model's folder in the repository, its weights in place."""
    folder = MODELS / case.model
    card = load_card(folder)
    for weights in card.weights:
        target = folder / weights.file
        if not target.is_file():
            brought = realdata.weights(case.weights[weights.file])
            named = target.parent / ".origin" / target.name
            named.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(brought, named)
    origin = folder / "models" / ".origin"
    if origin.is_dir():
        install_weights(card, folder, origin=origin)
        shutil.rmtree(origin)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_volumes_are_those_that_others_measured(run: Callable[[str], OfflineResult], name: str) -> None:
    result = run(name).result
    assert result.outcome is Outcome.FOUND
    found = {segment.definition.label: segment.measurements[0].value for segment in result.segments if segment.present}
    for label, (expected_cm3, tolerance) in CASES[name].volumes_cm3.items():
        assert found[label] == pytest.approx(expected_cm3, rel=tolerance), label
    assert {note.code for note in result.notes} >= CASES[name].notes


@pytest.mark.peer
@pytest.mark.parametrize("name", CASES)
def test_validators_find_no_fault(run: Callable[[str], OfflineResult], name: str) -> None:
    """What dciodvfy says of the patient's name in the source images too, it may say of our copy of it."""
    done = run(name)
    seg, sr = done.paths["seg"], done.paths["sr"]
    of_the_source = {fault for fault in iod_faults(CASES[name].files()[0]) if "PatientName" in fault}
    assert set(iod_faults(seg)) <= of_the_source
    assert set(iod_faults(sr)) <= of_the_source
    assert presence_faults(seg) == []
    assert presence_faults(sr) == []
    assert instance_faults(seg) == []
    assert tree_faults(sr) == []
    assert template_faults(sr) == []
    assert consistency_faults([*CASES[name].files(), seg, sr]) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_regular])
def test_dcmqi_decodes_our_own_label_map(run: Callable[[str], OfflineResult], name: str, tmp_path: Path) -> None:
    done = run(name)
    label_map = done.result.label_map
    assert label_map is not None
    (segment,) = decoded_segments(done.paths["seg"], tmp_path)
    k, j, i = np.nonzero(segment.voxels)
    points = segment.patient_from_index @ np.stack([i, j, k, np.ones(i.size)])
    source = label_map.source
    theirs = np.zeros(source.shape, dtype=bool)
    plane = np.searchsorted(source.distances_mm, source.normal @ points[:3] - 1e-3)
    offset = points[:3].T - source.positions_mm[plane]
    rows = np.rint(offset @ source.column_cosine / source.row_spacing_mm).astype(int)
    columns = np.rint(offset @ source.row_cosine / source.column_spacing_mm).astype(int)
    theirs[plane, rows, columns] = True
    assert np.array_equal(theirs, label_map.labels > 0)


@pytest.mark.parametrize("name", ["T1, a slice missing", "T1, structures"])
def test_a_report_on_incomplete_input_says_so(run: Callable[[str], OfflineResult], name: str) -> None:
    report = dcmread(run(name).paths["sr"])
    assert report.CompletionFlag == "PARTIAL"
    assert "missing" in str(report.CompletionFlagDescription).lower()


def labels_of(done: OfflineResult) -> NDArray[np.bool_]:
    assert done.result.label_map is not None
    return done.result.label_map.labels > 0


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_three_models_agree_on_where_the_brain_is(run: Callable[[str], OfflineResult]) -> None:
    """Networks, preprocessing and axis orders of different origin: agreement rules out a flip or a shift."""
    extracted = labels_of(run("T1, a slice missing"))
    structures = labels_of(run("T1, structures"))
    assert dice(extracted, labels_of(run("T1, intracranial"))) > 0.96
    assert (structures & extracted).sum() > 0.98 * structures.sum()


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bfloat16: float32 is used anyway")
def test_bfloat16_gives_the_labels_of_float32(run: Callable[[str], OfflineResult], tmp_path: Path) -> None:
    case = CASES["head CT of Debian"]
    folder = tmp_path / case.model
    shutil.copytree(installed(case), folder)
    configuration = folder / "configs" / "inference.json"
    configuration.write_text(json.dumps(json.loads(configuration.read_text()) | {"cpu_precision": "fp32"}))
    model = load_bundle(folder, load_card(folder))
    volume = read_series(case.files())
    exact = model.predict([volume]).label_map
    assert exact is not None
    assert "bf16" in run("head CT of Debian").result.provenance.engine  # type: ignore[union-attr]
    assert "fp32" in model.provenance.engine
    assert dice(labels_of(run("head CT of Debian")), exact.labels > 0) >= 0.999


def decide(folder: Path, model: str) -> tuple[StudyDecision, dict[str, str]]:
    """The decision on a study, and Series Description by series."""
    series = read_series_headers(files_in(folder))
    decision = decide_study(series, [Route("all", {}, model, ())], load_cards(MODELS))
    return decision, {one.series_instance_uid: one.representative.text("SeriesDescription") for one in series}


def test_the_t1_of_the_brain_study_is_chosen_and_the_t2_is_not() -> None:
    for model in ("brain-volumes-t1", "brain-structures-t1"):
        decision, names = decide(realdata.mr_brain_adi_dir(), model)
        assert [names[s.series_instance_uid] for s in decision.selections] == [realdata.ADI_T1_SERIES.upper()]
        refused = {names[v.series_instance_uid]: v.reason for v in decision.verdicts if not v.accepted}
        assert realdata.ADI_T2_SERIES in refused


def test_the_right_series_of_the_phantom_study_is_chosen_and_every_other_hears_why() -> None:
    """Scout, 5 mm, 1 mm, dose pages: the 1 mm series."""
    decision, names = decide(realdata.phantom_dir(), "brain-extraction")
    (chosen,) = [selection.series_instance_uid for selection in decision.selections]
    assert names[chosen] == "STD BRAIN 1MM, IDOSE"
    reasons = {names[uid]: decision.reason_for(uid) for uid in names if uid != chosen}
    assert "slice spacing 1 mm against 5 mm" in reasons["STD BRAIN 5MM"]
    assert "Secondary Capture" in reasons["EXAM SUMMARY"]
    assert "LOCALIZER" in reasons[""]
