"""A bundle gives what its parts give, and is refused when it is not what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

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
    import hashlib

    card = folder / "card.toml"
    old = load_card(folder).weights[0].sha256
    card.write_text(card.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(BundleInvalid, match="pickles are never loaded"):
        load_bundle(folder, load_card(folder))


def test_weights_that_do_not_fit_the_network_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "models")
    edit(folder, network_def={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 4, "kernel_size": 1})
    with pytest.raises(BundleInvalid, match="does not fit network_def"):
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


@pytest.mark.parametrize("before_inversion", [True, False])
def test_classes_are_compared_between_voxels_as_the_bundle_says(tmp_path: Path, before_inversion: bool) -> None:
    """What is interpolated back: probabilities where softmax stands before Invertd, else the network's own numbers."""
    folder = make_bundle(tmp_path / "models")
    softmax, invert = {"_target_": "Activationsd", "keys": "pred", "softmax": True}, {"_target_": "Invertd", "keys": "pred"}
    discrete = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    order = [softmax, invert, discrete] if before_inversion else [invert, softmax, discrete]
    edit(folder, postprocessing={"_target_": "Compose", "transforms": order})
    series = make_ct_series(tmp_path / "ct", slices=12, rows=32, columns=32)
    values = load_bundle(folder, load_card(folder)).score([read_series(series.paths)]).values
    assert np.allclose(values.sum(axis=0), 1.0) == before_inversion
