"""What radnode does not do itself MONAI does, with the labels of `monai.bundle run`: ensembles, DeepEdit, several images, own transforms."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from node.domain.findings import Findings
from node.domain.volume import Volume
from node.errors import BundleInvalid, OutsideIntendedUse
from node.inference.bundle import in_ranges, load_bundle
from node.inference.engines.onnx_export import network_digest
from node.inference.recipe import read_recipe
from node.inference.series_reader import read_series
from node.modelstore import load_card
from tests.factories import SeriesOptions, make_ct_series
from tests.monai_reference import assert_equal_labels, balanced, inverted, run_monai, step, textured, write_bundle, write_model, write_nifti

SERIES: Final[SeriesOptions] = {"slices": 20, "rows": 34, "columns": 30, "spacing_mm": (3.0, 1.25, 1.5), "orientation": "coronal"}
"""Numbers that NIfTI keeps exactly: where a pixel lies in the middle between two voxels, the last digit decides which is nearest."""
SCALED: Final = step("ScaleIntensityRanged", a_min=-200, a_max=400, b_min=0.0, b_max=1.0, clip=True)
TURNED: Final = step("Orientationd", axcodes="RAS")
SPACED: Final = step("Spacingd", pixdim=[2.0, 1.75, 1.75], mode="bilinear")
SOFTMAX, SIGMOID = step("Activationsd", "pred", softmax=True), step("Activationsd", "pred", sigmoid=True)
ARGMAX: Final = step("AsDiscreted", "pred", argmax=True)
CONVOLUTION: Final = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Volume, Path]]:
    """Two series on one grid, as DICOM and as NIfTI."""
    root = tmp_path_factory.mktemp("studies")
    volumes = [read_series(make_ct_series(root / f"s{n}", edit=textured(n), series=f"s{n}", **SERIES).paths) for n in range(2)]
    return [(volume, write_nifti(volume, root / f"image{n}.nii")) for n, volume in enumerate(volumes)]


def both(
    folder: Path,
    studies: list[tuple[Volume, Path]],
    state: Mapping[str, torch.Tensor],
    names: tuple[str, ...] = ("image",),
    labels: int = 2,
) -> tuple[Findings, Any]:
    """Answers what radnode and what MONAI find."""
    expected = run_monai(folder, {name: path for name, (_, path) in zip(names, studies, strict=False)})
    write_model(folder, state, range(1, labels + 1), names if len(names) > 1 else ())
    bundle = load_bundle(folder, load_card(folder))
    return bundle.predict([volume for volume, _ in studies[: len(names)]]), expected


def assert_equal(findings: Findings, expected: Any, labels: int = 2) -> None:
    assert findings.label_map is not None
    assert_equal_labels(findings.label_map, expected, range(1, labels + 1))


def test_deepedit_outlines_without_clicks(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    """Its preprocessing adds a channel of guidance for every label, and shrinks the image by areas."""
    names = {"one": 1, "two": 2, "background": 0}
    network = balanced(4, 3, seed=1)
    folder = write_bundle(
        tmp_path / "deepedit",
        network={**CONVOLUTION, "in_channels": "$1 + len(@label_names)"},
        states={"model.pt": network.state_dict()},
        label_names=names,
        preprocessing=[
            TURNED, SCALED,
            {"_target_": "AddGuidanceFromPointsDeepEditd", "ref_image": "image", "guidance": "guidance", "label_names": "@label_names"},
            step("Resized", spatial_size=[24, 26, 22], mode="area"),
            {"_target_": "ResizeGuidanceMultipleLabelDeepEditd", "guidance": "guidance", "ref_image": "image"},
            step("AddGuidanceSignalDeepEditd", guidance="guidance", number_intensity_ch=1), step("EnsureTyped"),
        ],
        postprocessing=[step("EnsureTyped", "pred"), SOFTMAX, inverted(), ARGMAX],
    )  # fmt: skip
    findings, expected = both(folder, studies, network.state_dict())
    assert_equal(findings, expected)
    assert "Resized with mode area is undone by MONAI" in findings.provenance_notes[0]


def test_images_that_are_loaded_apart_are_inputs_of_the_card(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    keys = ("artery", "vein")
    network = balanced(2, 2, seed=2)
    folder = write_bundle(
        tmp_path / "phases",
        network={**CONVOLUTION, "in_channels": 2, "out_channels": 2},
        states={"model.pt": network.state_dict()},
        loaded=keys,
        preprocessing=[{**one, "keys": list(keys)} for one in (TURNED, SPACED, SCALED)] + [step("ConcatItemsd", list(keys), name="image")],
        postprocessing=[inverted(of="artery"), SIGMOID, step("AsDiscreted", "pred", threshold=0.5)],
    )
    findings, expected = both(folder, studies, network.state_dict(), keys)
    assert findings.label_map is not None
    for channel, mask in enumerate(expected):
        assert_equal_labels(findings.label_map, mask * (channel + 1), [channel + 1])
    assert read_recipe(folder).as_monai is not None


OWN: Final = """
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

class Halved(MapTransform):
    def __call__(self, data):
        data = dict(data)
        image = data["image"]
        affine = image.affine.clone()
        affine[:, :3] *= 2
        meta = {**image.meta, "kept": np.asarray(image.shape[1:]), "affine_before": image.affine.numpy()}
        data["image"] = MetaTensor(image.as_tensor()[:, ::2, ::2, ::2], affine=affine, meta=meta)
        return data

class Doubled(MapTransform):
    def __call__(self, data):
        data = dict(data)
        answer = data["pred"]
        size = [int(extent) for extent in np.asarray(answer.meta["kept"]).reshape(-1)]
        labels = answer.as_tensor().argmax(dim=0)
        for axis in range(3):
            labels = labels.repeat_interleave(2, dim=axis).narrow(axis, 0, size[axis])
        meta = {key: value for key, value in answer.meta.items() if key not in ("kept", "affine_before")}
        affine = torch.as_tensor(np.asarray(answer.meta["affine_before"]).reshape(4, 4))
        data["pred"] = MetaTensor(labels[None].float(), affine=affine, meta=meta)
        return data
"""


def test_transforms_of_the_bundles_own_bring_the_answer_back(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    """They keep in the image's metadata what they need after the network."""
    network = balanced(1, 3, seed=3)
    folder = write_bundle(
        tmp_path / "own",
        network=CONVOLUTION,
        states={"model.pt": network.state_dict()},
        scripts={"steps.py": OWN},
        preprocessing=[SCALED, step("scripts.steps.Halved")],
        postprocessing=[step("scripts.steps.Doubled", "pred")],
    )
    findings, expected = both(folder, studies, network.state_dict())
    assert_equal(findings, expected)


def test_what_monai_knows_and_radnode_does_not_runs_by_monai(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    network = balanced(1, 3, seed=4)
    folder = write_bundle(
        tmp_path / "median",
        network=CONVOLUTION,
        states={"model.pt": network.state_dict()},
        preprocessing=[TURNED, SPACED, SCALED],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.4, "mode": "gaussian"},
        postprocessing=[step("MedianSmoothd", "pred", radius=1), inverted(), ARGMAX],
    )
    findings, expected = both(folder, studies, network.state_dict())
    assert_equal(findings, expected)
    assert "MedianSmoothd" in findings.provenance_notes[0]


ENSEMBLES: Final = {
    "mean of scores": [step("MeanEnsembled", ["first", "second"], output_key="pred", weights=[0.7, 0.3]), SOFTMAX, inverted(), ARGMAX],
    "mean of probabilities": [
        {**SOFTMAX, "keys": ["first", "second"]}, step("MeanEnsembled", ["first", "second"], output_key="pred"), inverted(), ARGMAX,
    ],
    "votes": [
        step("AsDiscreted", ["first", "second"], argmax=True), step("VoteEnsembled", ["first", "second"], output_key="pred", num_classes=3),
        inverted(nearest=True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_networks_of_an_ensemble_judge_together(tmp_path: Path, studies: list[tuple[Volume, Path]], kind: str) -> None:
    networks = [balanced(1, 3, seed=seed) for seed in (5, 6)]
    loaders = [
        {"_target_": "CheckpointLoader", "load_path": f"$@bundle_root + '/models/{name}.pt'", "load_dict": {name: f"@{name}"}}
        for name in ("second", "first")
    ]
    folder = write_bundle(
        tmp_path / "ensemble",
        network=CONVOLUTION,
        states={f"{name}.pt": network.state_dict() for name, network in zip(("first", "second"), networks, strict=True)},
        imports=["$import copy"],
        first="$@network_def",
        second="$copy.deepcopy(@network_def)",
        preprocessing=[TURNED, SPACED, SCALED],
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
        postprocessing=ENSEMBLES[kind],
        handlers=loaders,
        evaluator={
            "_target_": "EnsembleEvaluator", "device": "@device", "val_data_loader": "@dataloader", "networks": ["@first", "@second"],
            "pred_keys": ["first", "second"], "inferer": "@inferer", "postprocessing": "@postprocessing", "val_handlers": "@handlers",
        },
    )  # fmt: skip
    state = {f"networks.{n}.{key}": value for n, network in enumerate(networks) for key, value in network.state_dict().items()}
    findings, expected = both(folder, studies, state)
    assert_equal(findings, expected)
    assert (read_recipe(folder).as_monai is None) == (kind == "mean of scores")


def test_an_engine_of_networks_that_count_otherwise_is_another_engine(tmp_path: Path) -> None:
    digests = set()
    for number, weights in enumerate((None, [0.7, 0.3], [0.3, 0.7])):
        folder = write_bundle(
            tmp_path / f"e{number}", network=CONVOLUTION, states={}, preprocessing=[], imports=["$import copy"],
            first="$@network_def", second="$copy.deepcopy(@network_def)",
            postprocessing=[step("MeanEnsembled", ["pred_0", "pred_1"], output_key="pred", weights=weights), ARGMAX],
            evaluator={"_target_": "EnsembleEvaluator", "networks": ["@first", "@second"]},
        )  # fmt: skip
        torch.manual_seed(0)
        digests.add(network_digest(read_recipe(folder).make_network()))
    assert len(digests) == 3


def test_one_network_under_two_names_is_no_ensemble(tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "twice",
        network=CONVOLUTION,
        states={},
        preprocessing=[],
        postprocessing=[step("MeanEnsembled", ["pred_0", "pred_1"], output_key="pred"), ARGMAX],
        evaluator={"_target_": "EnsembleEvaluator", "networks": ["@network", "@network_def"]},
    )
    with pytest.raises(BundleInvalid, match=r"names one network several times.*→ a network of its own each"):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("ends_with", "told"), [("x[:1] * 0.37", "numbers between the labels"), ("(x[:1] * 9).round().abs()", "is an image and no labels")]
)
def test_a_postprocessing_that_ends_with_an_image_is_refused_when_it_runs(
    tmp_path: Path, studies: list[tuple[Volume, Path]], ends_with: str, told: str
) -> None:
    network = balanced(1, 2, seed=7)
    folder = write_bundle(
        tmp_path / "image",
        network={**CONVOLUTION, "out_channels": 2},
        states={"model.pt": network.state_dict()},
        preprocessing=[SCALED],
        postprocessing=[step("MedianSmoothd", "pred", radius=1), step("Lambdad", "pred", func=f"$lambda x: {ends_with}")],
    )
    write_model(folder, network.state_dict(), [1])
    with pytest.raises(BundleInvalid, match=told):
        load_bundle(folder, load_card(folder)).predict([studies[0][0]])


def test_what_a_bundles_own_transform_raises_is_told(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    network = balanced(1, 2, seed=8)
    folder = write_bundle(
        tmp_path / "broken",
        network={**CONVOLUTION, "out_channels": 2},
        states={"model.pt": network.state_dict()},
        scripts={"steps.py": "class Broken:\n    def __call__(self, data):\n        raise KeyError('no_such_key')\n"},
        preprocessing=[SCALED],
        postprocessing=[{"_target_": "scripts.steps.Broken"}],
    )
    write_model(folder, network.state_dict(), [1])
    with pytest.raises(BundleInvalid, match="own transforms fail on this study: KeyError: 'no_such_key'"):
        load_bundle(folder, load_card(folder)).predict([studies[0][0]])


def test_labels_that_the_card_does_not_name_are_left_out(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    network = balanced(1, 4, seed=9)
    folder = write_bundle(
        tmp_path / "fewer",
        network={**CONVOLUTION, "out_channels": 4},
        states={"model.pt": network.state_dict()},
        preprocessing=[SCALED],
        postprocessing=[ARGMAX],
    )
    expected = run_monai(folder, {"image": studies[0][1]})
    write_model(folder, network.state_dict(), [1, 3])
    findings = load_bundle(folder, load_card(folder)).predict([studies[0][0]])
    assert findings.label_map is not None
    assert_equal_labels(findings.label_map, expected, [1, 3])
    assert set(np.unique(findings.label_map.labels).tolist()) == {0, 1, 3}
    assert findings.provenance_notes[-1] == "labels that the card does not name were left out: 2"


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([2], "2"), ([1, 3, 4], "1, 3 to 4"), ([*range(2, 105)], "2 to 104"), ([1, 3, 5], "1, 3, 5")]
)
def test_many_labels_are_named_as_a_person_would(numbers: list[int], words: str) -> None:
    assert in_ranges(numbers) == words


def test_a_volume_that_a_network_cannot_halve_is_declined_and_not_tried_again(tmp_path: Path, studies: list[tuple[Volume, Path]]) -> None:
    network = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 4, 4], "strides": [2, 2]}
    folder = write_bundle(tmp_path / "halves", network=network, states={}, preprocessing=[SCALED], postprocessing=[ARGMAX])
    write_model(folder, read_recipe(folder).make_network().state_dict(), [1])
    with pytest.raises(OutsideIntendedUse, match="a volume of 30x34x20 voxels does not suit it"):
        load_bundle(folder, load_card(folder)).predict([studies[0][0]])


def test_settings_of_a_person_stand_over_those_of_the_author(tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "set", network=CONVOLUTION, states={}, preprocessing=[], postprocessing=[ARGMAX],
        overlap=0.25, inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": "@overlap"},
    )  # fmt: skip
    (folder / "configs" / "overrides.json").write_text(json.dumps({"overlap": 0.5, "inferer#roi_size": [8, 8, 8]}))
    inferer: Any = read_recipe(folder).inferer
    assert (inferer.overlap, inferer.roi_size) == (0.5, [8, 8, 8])
