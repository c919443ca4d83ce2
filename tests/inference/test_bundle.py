"""A bundle gives what its parts give, and is refused when it is not what it says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from node.errors import BundleInvalid, EngineError
from node.inference.bundle import load_bundle
from node.inference.series_reader import read_series
from node.modelstore import load_card
from tests.bundles import make_bundle
from tests.factories import make_ct_series


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal", "oblique"])
@pytest.mark.parametrize("slow", [False, True])
def test_labels_are_those_of_the_thresholds(tmp_path: Path, orientation: str, slow: bool) -> None:
    """With a network that looks at one voxel, the labels are the thresholded source itself, whatever the orientation."""
    folder = make_bundle(tmp_path / "models", slow=slow)
    series = make_ct_series(tmp_path / "ct", orientation=orientation, slices=12, rows=32, columns=32)
    volume = read_series(series.paths)
    label_map = load_bundle(folder, load_card(folder)).predict([volume]).label_map
    assert label_map is not None
    labels = label_map.labels
    expected = (volume.voxels > 145).astype(np.uint8) + (volume.voxels > 625)
    assert (labels != expected).mean() < 1e-4


def edit(folder: Path, **changes: object) -> None:
    path = folder / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    path = folder / "models" / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, path)
    card = folder / "card.toml"
    old = load_card(folder).weights[0].sha256
    card.write_text(card.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(BundleInvalid, match="pickles are never loaded"):
        load_bundle(folder, load_card(folder))


def test_weights_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    edit(folder, network_def={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 4, "kernel_size": 1})
    with pytest.raises(
        BundleInvalid, match=r"does not fit the network of .*: \d+ tensors? (is|are) .* → these weights belong to another network"
    ):
        load_bundle(folder, load_card(folder))


def test_an_unknown_postprocessing_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    edit(folder, postprocessing={"_target_": "Compose", "transforms": [{"_target_": "MedianSmoothd", "keys": "pred"}]})
    with pytest.raises(BundleInvalid, match="MedianSmoothd"):
        load_bundle(folder, load_card(folder))


def test_a_broken_configuration_names_its_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    edit(folder, network_def="$no_such_name()")
    with pytest.raises(BundleInvalid, match="the bundle thresholds cannot be built"):
        load_bundle(folder, load_card(folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_absent_device_says_what_to_do(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    with pytest.raises(EngineError, match="torch sees no CUDA device"):
        load_bundle(folder, load_card(folder), device="cuda:0")


def test_torchscript_is_refused_unless_the_card_says_so(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    torch.jit.save(torch.jit.script(torch.nn.Conv3d(1, 3, 1)), folder / "models" / "other.pt")
    edit(folder, network_def="$torch.jit.load(@bundle_root + '/models/other.pt')", imports=["$import torch"])
    with pytest.raises(BundleInvalid, match="its card names no weights of format torchscript"):
        load_bundle(folder, load_card(folder))


def test_the_number_of_images_is_that_of_the_card(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    volume = read_series(make_ct_series(tmp_path / "ct", slices=6, rows=16, columns=16).paths)
    with pytest.raises(BundleInvalid, match="takes 1 images on one grid, 2 came"):
        load_bundle(folder, load_card(folder)).predict([volume, volume])


def test_torchscript_alone_is_a_network(tmp_path: Path) -> None:
    """A bundle exported as TorchScript needs no network_def, and one that has it is not asked for it."""
    folder = make_bundle(tmp_path / "models")
    state = load_file(folder / "models" / "model.safetensors")
    network = torch.nn.Conv3d(1, 3, 1)
    network.load_state_dict(state)
    path = folder / "models" / "model.ts"
    torch.jit.save(torch.jit.script(network), path)
    card = folder / "card.toml"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = card.read_text().replace(load_card(folder).weights[0].sha256, digest).replace("model.safetensors", "model.ts")
    card.write_text(text.replace('format = "safetensors"', 'format = "torchscript"'))
    volume = read_series(make_ct_series(tmp_path / "ct", slices=12, rows=32, columns=32).paths)
    maps = []
    for definition in (json.loads((folder / "configs" / "inference.json").read_text())["network_def"], {}):
        edit(folder, network_def=definition, network=None)
        maps.append(load_bundle(folder, load_card(folder)).predict([volume]).label_map)
    assert maps[0] is not None
    assert maps[1] is not None
    assert set(np.unique(maps[0].labels)) == {0, 1, 2}
    assert np.array_equal(maps[0].labels, maps[1].labels)
