"""Equal to the reference: a bundle's labels are those that `monai.bundle run` writes for a NIfTI of the same volume."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from node.domain.volume import LabelMap, Volume
from node.inference.bundle import load_bundle
from node.inference.series_reader import read_series
from node.modelstore import load_card
from node.pipeline import Analysis, Stopwatch, conclude, context_for, encode, read_source_headers
from tests.bundles import copy_bundle, write_card, write_random_weights
from tests.factories import SeriesOptions, make_ct_series, make_mr_series
from tests.monai_reference import textured, write_nifti

pytestmark = [pytest.mark.data, pytest.mark.slow]

RUNS: Final = """
import json, sys
import monai.bundle
for run in json.load(open(sys.argv[1])):
    monai.bundle.run(**run)
"""
REFERENCE_TIMEOUT_S: Final = 240
AXIAL_FLIPPED: Final = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Case:
    """A bundle and a study: what radnode reads, and the same as NIfTI."""

    folder: Path
    series: tuple[tuple[Path, ...], ...]
    volumes: tuple[Volume, ...]
    written: Path
    run: Mapping[str, Any]


def make_case(folder: Path, name: str, changes: Mapping[str, Any], options: Sequence[SeriesOptions], segments: Mapping[int, str]) -> Case:
    make = make_ct_series if len(options) == 1 else make_mr_series
    series = [make(folder / f"dicom{n}", edit=textured(n), series=f"series{n}", **of) for n, of in enumerate(options)]
    volumes = tuple(read_series(of.paths) for of in series)
    bundle = copy_bundle(name, folder, changes)
    write_random_weights(bundle, volumes)
    channels = [f"channel {n}" for n in range(len(options))] if len(options) > 1 else []
    write_card(bundle, segments, modality=volumes[0].modality, channels=channels)
    paths = [str(write_nifti(volume, folder / "nifti" / f"image{n}.nii")) for n, volume in enumerate(volumes)]
    run = {
        "config_file": str(bundle / "configs" / "inference.json"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "bundle_root": str(bundle),
        "output_dir": str(folder / "out"),
        "device": "$torch.device('cpu')",
        "dataloader#num_workers": 0,
        "separate_folder": False,
        "dataset#data": [{"image": paths if len(paths) > 1 else paths[0]}],
    }
    written = folder / "out" / f"image0_{json.loads((bundle / 'configs' / 'inference.json').read_text())['output_postfix']}.nii.gz"
    return Case(bundle, tuple(of.paths for of in series), volumes, written, run)


GRID: Final[SeriesOptions] = {"slices": 20, "rows": 48, "columns": 40, "spacing_mm": (3.07, 1.3, 1.4)}
HALVES: Final[SeriesOptions] = {"slices": 24, "rows": 40, "columns": 36, "spacing_mm": (2.5, 2.0, 0.75), "orientation": AXIAL_FLIPPED}
"""Brought to 1.5 mm and back, every other column lies in the middle between two voxels: rounding has to be the reference's."""
SMALL: Final[SeriesOptions] = {"slices": 24, "rows": 32, "columns": 40, "spacing_mm": (1.0, 1.0, 1.0)}
SAGITTAL: Final[SeriesOptions] = {"slices": 24, "rows": 30, "columns": 34, "spacing_mm": (1.87, 1.3, 1.4), "orientation": "sagittal"}
OBLIQUE: Final[SeriesOptions] = {"slices": 18, "rows": 34, "columns": 30, "spacing_mm": (2.9, 1.3, 1.3), "orientation": "oblique"}


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "keys": "pred", **arguments}


SOFTMAX, SIGMOID = transform("Activationsd", softmax=True), transform("Activationsd", sigmoid=True)
ARGMAX: Final = transform("AsDiscreted", argmax=True)
LINEAR, NEAREST = (
    transform("Invertd", transform="@preprocessing", orig_keys="@image_key", nearest_interp=nearest) for nearest in (False, True)
)
SAVE: Final = transform("SaveImaged", output_dir="@output_dir", output_postfix="@output_postfix", separate_folder=False)

TAILS: Final[Mapping[str, tuple[int, SeriesOptions, list[dict[str, Any]]]]] = {
    "overlapping structures": (3, GRID, [SIGMOID, LINEAR, transform("AsDiscreted", threshold=0.4), SAVE]),
    "structures cut before they are brought back": (2, SAGITTAL, [SIGMOID, transform("AsDiscreted", threshold=0.6), NEAREST, SAVE]),
    "one probability, largest part, holes": (
        1, OBLIQUE,
        [SIGMOID, LINEAR, transform("AsDiscreted", threshold=0.45), transform("KeepLargestConnectedComponentd"), transform("FillHolesd"), SAVE],
    ),
    "parts and holes on the network's grid": (
        4, SAGITTAL,
        [ARGMAX, transform("KeepLargestConnectedComponentd", applied_labels=[1, 2], connectivity=1),
         transform("FillHolesd", applied_labels=[1]), NEAREST, SAVE],
    ),
    "labels filtered, mapped, small ones dropped": (
        5, GRID,
        [SOFTMAX, LINEAR, ARGMAX, transform("KeepLargestConnectedComponentd", applied_labels=[1, 3], independent=False, num_components=2),
         transform("LabelFilterd", applied_labels=[1, 3, 4]), transform("MapLabelValued", orig_labels=[0, 1, 3, 4], target_labels=[0, 7, 2, 9]),
         transform("RemoveSmallObjectsd", min_size=900, independent_channels=False), SAVE],
    ),
    "one-hot classes": (
        4, GRID,
        [transform("AsDiscreted", argmax=True, to_onehot=4), transform("KeepLargestConnectedComponentd", applied_labels=[1, 3]),
         NEAREST, ARGMAX, SAVE],
    ),
    "nobody brings them back but the file": (3, GRID, [SOFTMAX, ARGMAX, {**SAVE, "resample": True}]),
    "a function that looks at neighbours": (
        3, SAGITTAL, [LINEAR, ARGMAX, transform("Lambdad", func="$lambda x: torch.flip(x, (1,)) * (x > 0)"), SAVE],
    ),
}  # fmt: skip


def make_tail_case(folder: Path, channels: int, options: SeriesOptions, transforms: list[dict[str, Any]]) -> Case:
    """The spleen bundle with a single convolution for its network and another tail."""
    changes = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": channels, "kernel_size": 3, "padding": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing#transforms": transforms,
    }
    return make_case(folder, "spleen_ct_segmentation", changes, [options], {value: f"structure {value}" for value in range(1, 10)})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Every segmentation bundle of ../shared/bundles, and every kind of tail, run by MONAI: all in one process, it takes long to start."""
    root = tmp_path_factory.mktemp("reference")
    whole_body = {value: f"structure {value}" for value in range(1, 105)}
    made = {
        "spleen": make_case(root / "spleen", "spleen_ct_segmentation", {"inferer#roi_size": [32, 32, 32]}, [GRID], {1: "Spleen"}),
        "whole body": make_case(
            root / "whole", "wholeBody_ct_segmentation",
            {"inferer#roi_size": [32, 32, 32], "network_def#init_filters": 8}, [HALVES], whole_body,
        ),
        "brain tumour": make_case(
            root / "brats", "brats_mri_segmentation", {"inferer#roi_size": [32, 32, 24]}, [SMALL] * 4,
            {1: "Core", 2: "Oedema", 4: "Enhancing"},
        ),
    }  # fmt: skip
    made |= {name: make_tail_case(root / f"tail{number}", *tail) for number, (name, tail) in enumerate(TAILS.items())}
    runs = root / "runs.json"
    runs.write_text(json.dumps([dict(case.run) for case in made.values()]))
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(runs)], capture_output=True, text=True, timeout=REFERENCE_TIMEOUT_S, check=False, cwd=root
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return made


def reference_labels(case: Case) -> NDArray[np.int64]:
    """Answers what MONAI wrote, in the order of the source: (slices, rows, columns), or with the channels before them."""
    return np.asarray(nibabel.load(case.written).dataobj).astype(np.int64).transpose()


def assert_equal_labels(label_map: LabelMap, expected: NDArray[np.int64], label_values: Sequence[int]) -> None:
    """Dice at least 0.999 and volumes within 0.1 % for every label."""
    for value in label_values:
        ours, theirs = label_map.mask(value), expected == value
        dice = 2 * (ours & theirs).sum() / max(ours.sum() + theirs.sum(), 1)
        assert ours.sum() == theirs.sum() == 0 or dice >= 0.999, f"label {value}: Dice {dice:.5f} of {theirs.sum()} voxels"
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.001 * theirs.sum(), f"label {value}: {ours.sum()} and {theirs.sum()} voxels"


@pytest.mark.parametrize(("name", "classes"), [("spleen", 1), ("whole body", 90), ("brain tumour", 3)])
def test_a_bundle_gives_the_labels_of_monai_from_dicom_to_gated_evidence(
    cases: dict[str, Case], tmp_path: Path, name: str, classes: int
) -> None:
    case = cases[name]
    card = load_card(case.folder)
    bundle = load_bundle(case.folder, card)
    findings = bundle.predict(case.volumes)
    assert findings.label_map is not None
    expected = reference_labels(case)
    values = [segment.label_value for segment in card.segments]
    assert len(set(np.unique(expected)) & set(values)) >= classes, "the weights at random make a degenerate case"
    assert_equal_labels(findings.label_map, expected, values)
    sources = read_source_headers([path for paths in case.series for path in paths])
    analysis = Analysis(conclude(bundle, findings, case.volumes), case.volumes[0], sources, findings.probability)
    context = context_for("reference", run=0, encoded_at_s=0.0, ae_title="TEST", device_serial_number="1")
    evidence = encode(analysis, context, tmp_path, Stopwatch(lambda _step, _fraction: None))
    assert {item.role for item in evidence} == {"seg", "sr"}


@pytest.mark.parametrize("name", TAILS)
def test_every_kind_of_tail_gives_the_labels_of_monai(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    label_map = load_bundle(case.folder, load_card(case.folder)).predict(case.volumes).label_map
    assert label_map is not None
    expected = reference_labels(case).squeeze()
    if expected.ndim == 4:
        assert expected.any(axis=(1, 2, 3)).all()
        for channel, mask in enumerate(expected):
            assert_equal_labels(label_map, mask * (channel + 1), [channel + 1])
        assert set(np.unique(label_map.labels)) <= set(range(max(len(label_map.members), len(expected) + 1)))
        return
    values = set(np.unique(expected).tolist()) - {0}
    assert values, "the weights at random make a degenerate case"
    assert_equal_labels(label_map, expected, sorted(values))
    assert set(np.unique(label_map.labels).tolist()) - {0} == values
