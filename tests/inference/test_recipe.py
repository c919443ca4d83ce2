"""A bundle's configuration is read unmodified, with all that is in the way of it in the Model Zoo."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer

from node.errors import BundleInvalid
from node.inference.recipe import CLASSIFICATION, find_checkpoint, read_recipe

NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
POST = [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]


def bundle(folder: Path, name: str = "inference.json", **content: Any) -> Path:
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1", "network_data_format": {}}))
    content = {"network_def": NETWORK, "postprocessing": {"_target_": "Compose", "transforms": POST}} | content
    text = json.dumps(content) if name.endswith("json") else yaml.safe_dump(content)
    (folder / "configs" / name).write_text(text)
    return folder


def compose(*transforms: Any) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def names(recipe: Any) -> list[str]:
    return [type(transform).__name__ for transform in recipe.preprocessing.transforms]


@pytest.mark.parametrize("name", ["inference.json", "inference.yaml", "infer.yml", "inference_autoencoder.json"])
def test_the_configuration_may_have_any_usual_name(tmp_path: Path, name: str) -> None:
    folder = bundle(tmp_path / "b", name)
    (folder / "configs" / "inference_trt.json").write_text("{}")
    (folder / "configs" / "train.json").write_text("{}")
    assert isinstance(read_recipe(folder).make_network(), torch.nn.Conv3d)


def test_several_configurations_without_the_usual_name_are_named(tmp_path: Path) -> None:
    bundle(tmp_path / "b", "inference_a.json")
    with pytest.raises(BundleInvalid, match=r"inference_a.json, inference_b.yaml and no inference.json → name the one to use"):
        read_recipe(bundle(tmp_path / "b", "inference_b.yaml"))


@pytest.mark.parametrize("missing", ["inference.json", "metadata.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = bundle(tmp_path / "b")
    (folder / "configs" / missing).unlink()
    with pytest.raises(BundleInvalid, match=missing):
        read_recipe(folder)


@pytest.mark.parametrize("key", ["network", "net", "model"])
def test_the_network_may_stand_under_another_name(tmp_path: Path, key: str) -> None:
    recipe = read_recipe(bundle(tmp_path / "b", network_def={}, **{key: NETWORK}))
    assert isinstance(recipe.make_network(), torch.nn.Conv3d)
    assert recipe.make_network() is not recipe.make_network()


def test_a_bundle_without_a_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="names no network_def"):
        read_recipe(bundle(tmp_path / "b", network_def={}))


def test_what_is_not_needed_is_never_evaluated(tmp_path: Path) -> None:
    """Data sets, savers and handlers ask for files and packages that are not here."""
    folder = bundle(
        tmp_path / "b",
        imports=["$import no_such_package as pd", "$import glob"],
        **{"import": ["$import no_other_package"]},
        datalist="$list(pd.read_csv('absent.csv').t2)",
        dataset={"_target_": "no_such_package.Dataset", "data": "@datalist"},
        evaluator={"_target_": "no_such_package.Evaluator", "dataset": "@dataset"},
        handlers=[{"_target_": "no_such_package.Handler"}],
        preprocessing=compose({"_target_": "LoadImaged", "keys": "image", "reader": "ITKReader"}),
        postprocessing=compose(*POST, {"_target_": "no_such_package.SaveImaged", "keys": "pred", "output_dir": "$datalist"}),
    )
    assert names(read_recipe(folder)) == []


def test_reading_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    folder = bundle(
        tmp_path / "b",
        image_key="image",
        displayable_configs={"spacing": 3.0},
        first=[
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "AddChanneld", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key", "channel_dim": 2},
        ],
        second=[{"_target_": "Spacingd", "keys": ["@image_key"], "pixdim": "@displayable_configs#spacing"}],
        preprocessing={"_target_": "Compose", "transforms": "$@first + @second"},
    )
    recipe = read_recipe(folder)
    assert names(recipe) == ["Spacingd"]
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4, dtype=torch.float64) * 1.5)
    assert recipe.preprocessing({"image": image})["image"].shape == (1, 2, 2, 2)


def test_labels_that_are_not_there_are_no_hindrance(tmp_path: Path) -> None:
    transforms = compose(
        {"_target_": "ScaleIntensityd", "keys": "img"},
        {"_target_": "Orientationd", "keys": ["img", "label"], "axcodes": "RAS"},
        {"_target_": "AsDiscreted", "keys": "label", "to_onehot": 2},
    )
    recipe = read_recipe(bundle(tmp_path / "b", preprocessing=transforms))
    assert recipe.image_key == "img"
    assert set(recipe.preprocessing({"img": MetaTensor(torch.rand(1, 3, 3, 3))})) == {"img"}


def test_transforms_of_arrays_among_others_are_refused_by_name(tmp_path: Path) -> None:
    transforms = compose({"_target_": "ScaleIntensity"}, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"})
    with pytest.raises(BundleInvalid, match="ScaleIntensity, which takes no dictionary as the others do → its dictionary form"):
        read_recipe(bundle(tmp_path / "b", preprocessing=transforms))


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([{"_target_": "Transpose", "indices": [2, 0, 1, 3]}, {"_target_": "ScaleIntensity"}], (6, 4, 5, 1)),
        ([{"_target_": "EnsureChannelFirst"}, {"_target_": "ScaleIntensity"}], (1, 4, 5, 6)),
        ([{"_target_": "EnsureType"}], (4, 5, 6)),
    ],
)
def test_transforms_of_arrays_see_the_axes_of_a_file(tmp_path: Path, steps: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
    recipe = read_recipe(bundle(tmp_path / "b", preprocessing=compose({"_target_": "LoadImage", "image_only": True}, *steps)))
    image = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0])))
    prepared = recipe.preprocessing({"image": image})["image"]
    assert tuple(prepared.shape) == shape
    assert torch.equal(prepared.affine, image.affine)


def test_names_that_numpy_has_dropped_are_there_for_bundles_and_for_nobody_else(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", imports=["$import numpy as np"], network_def="$torch.nn.Conv3d(1, int(np.product([2, 3])), 1)")
    assert read_recipe(folder).make_network().out_channels == 6
    assert not hasattr(np, "product")


def test_scripts_of_the_bundle_are_its_own(tmp_path: Path) -> None:
    """Two bundles may both have scripts.net: each gets its own."""
    for number in (1, 2):
        folder = bundle(tmp_path / f"b{number}", network_def={"_target_": "scripts.net.Net"})
        (folder / "scripts").mkdir()
        (folder / "scripts" / "__init__.py").write_text("")
        (folder / "scripts" / "net.py").write_text(
            f"import torch\nclass Net(torch.nn.Conv3d):\n    def __init__(self): super().__init__({number}, 2, 1)\n"
        )
    made = [read_recipe(tmp_path / f"b{number}").make_network().in_channels for number in (1, 2)]
    assert made == [1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_bundle_that_insists_on_cuda_is_read_without(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", codes="$torch.zeros(2, device=torch.device('cuda'))", network_def="$torch.nn.Conv3d(1, len(@codes), 1)")
    assert read_recipe(folder).make_network().out_channels == 2


def test_arguments_that_monai_has_dropped_are_dropped(tmp_path: Path) -> None:
    network = {"_target_": "SwinUNETR", "img_size": 96, "in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": [1, 1, 1, 1]}
    assert type(read_recipe(bundle(tmp_path / "b", network_def=network)).make_network()).__name__ == "SwinUNETR"


def test_inferer_and_dimensions_are_those_of_the_bundle(tmp_path: Path) -> None:
    assert isinstance(read_recipe(bundle(tmp_path / "a")).inferer, SimpleInferer)
    flat = {"_target_": "UNet", "spatial_dims": 2, "in_channels": "$1 + 1", "out_channels": 2, "channels": [4, 8], "strides": [2]}
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8]}
    recipe = read_recipe(bundle(tmp_path / "b", network_def=flat, inferer=inferer))
    assert (recipe.spatial_dims, recipe.in_channels) == (2, 2)
    assert isinstance(recipe.inferer, SlidingWindowInferer)


def test_only_segmentations_need_a_tail_that_is_understood(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", postprocessing=compose({"_target_": "ClipBoxToImaged", "box_keys": "box"}))
    read_recipe(folder, task=CLASSIFICATION)
    with pytest.raises(BundleInvalid, match="ClipBoxToImaged"):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("content", "file", "key"),
    [
        ({}, "models/model.pt", "model"),
        ({"handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/a.pt'", "load_dict": {"net": "@network"}}]},
         "models/a.pt", "net"),
        ({"modelname": "$'low.pt' if True else 'high.pt'",
          "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/' + @modelname"}}, "models/low.pt", "model"),
    ],
)  # fmt: skip
def test_the_checkpoint_is_what_the_bundles_loader_reads(tmp_path: Path, content: dict[str, Any], file: str, key: str) -> None:
    found = find_checkpoint(bundle(tmp_path / "b", **content))
    assert (found.path, found.key) == (tmp_path / "b" / file, key)
