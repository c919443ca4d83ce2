"""Trained folders of nnU-Net: prepared as nnU-Net 2.8.1 prepares, windows as it lays them, installed and run.

The numbers are nnU-Net's own: its DefaultPreprocessor, compute_steps_for_sliding_window and compute_gaussian on the same formulas
(batchgenerators 0.25.5, acvl-utils 0.2.6). Whole predictions of random networks were compared with its nnUNetPredictor where it can be
installed: Dice 0.995 to 1.000 a structure in sixteen settings (docs/how-to/models.md). Its way back to the images
(resample_data_or_seg_to_shape, resample_torch_fornnunet) is written out below with scikit-image and scipy.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from node.errors import BundleInvalid, BundleRefused, UsageError
from node.inference.bundle import load_bundle
from node.inference.engines.torch_engine import TorchEngine
from node.inference.install import convert_child
from node.inference.install.installer import Installation, Wishes, install
from node.inference.nnunet import EvenWindows, PreprocessByPlansd
from node.inference.nnunet_plans import architecture_of, configuration_of
from node.inference.preprocess import NEAREST_ALONG, as_meta_tensor
from node.inference.recipe import Recipe
from node.inference.segment import segment
from node.inference.tail import Tail
from node.modelstore import load_card
from tests.inference.grids import make_volume
from tests.zoo import without_processes

CASES: dict[str, tuple[Any, ...]] = {
    "CT": ((2.5, 0.9, 0.9), (14, 20, 24), (2.0, 1.1, 1.1), 1, ["CTNormalization"], [False], (0, 1, 2),
           (1, 16, 13, 17), (0.27466, 0.88076, 1.46279, 0.73871, -1.77594)),
    "thick slices": ((6.0, 0.9, 0.9), (10, 20, 24), (4.5, 1.1, 1.1), 1, ["NoNormalization"], [False], (0, 1, 2),
                     (1, 12, 13, 17), (68.2444, 69.21458, 128.66035, 96.68549, -72.56801)),
    "MR, two channels": ((2.0, 1.0, 1.0), (12, 20, 22), (1.5, 1.2, 1.2), 2, ["ZScoreNormalization"] * 2, [True, False], (0, 1, 2),
                         (2, 15, 13, 16), (0.00042, 1.00004, 1.43792, 0.48604, -2.47653)),
    "turned": ((2.0, 1.0, 1.2), (12, 20, 22), (1.5, 1.2, 1.2), 1, ["RescaleTo01Normalization"], [False], (1, 0, 2),
               (1, 11, 18, 19), (0.53462, 0.18513, 0.76931, 0.62831, 0.06974)),
}  # fmt: skip
"""Spacing and size of the image (slices, rows, columns), the plans, and what nnU-Net makes of it: shape; mean, deviation, three voxels."""


def image(shape: tuple[int, int, int], channel: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    z, y, x = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape), indexing="ij")
    waves = 100 * np.sin(0.3 * z + channel) + 90 * np.cos(0.21 * y + 0.4 * channel) + 80 * np.sin(0.17 * x)
    return np.where((y >= 4) & (x >= 3) & (z >= 1), waves, 0).astype(np.float32)


def plans_of(target: Any, channels: int, schemes: list[str], masks: list[bool], transpose: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    known = {"mean": 10.0, "std": 90.0, "percentile_00_5": -150.0, "percentile_99_5": 160.0}
    settings = {"spacing": list(target), "patch_size": [16, 16, 16], "normalization_schemes": schemes, "use_mask_for_norm": masks}
    return {
        "transpose_forward": list(transpose),
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {str(channel): known for channel in range(channels)},
        "configurations": {"3d_fullres": settings},
    }


@pytest.mark.parametrize("case", CASES)
def test_images_are_prepared_as_nnunet_prepares_them(case: str, tmp_path: Path) -> None:
    spacing, shape, target, channels, schemes, masks, transpose, expected_shape, expected = CASES[case]
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans_of(target, channels, schemes, masks, transpose)))
    values = np.stack([image(shape, channel) for channel in range(channels)])
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])  # RAS millimetres of (column, row, slice): as DICOM lies, LPS
    given = MetaTensor(torch.from_numpy(values.transpose(0, 3, 2, 1).copy()), affine=torch.from_numpy(affine))
    made = PreprocessByPlansd("image", str(path), "3d_fullres", "LPS")({"image": given})["image"]
    found = made.numpy()
    size = found.shape
    assert size == expected_shape
    some = (found[-1, 2, 3, 4], found[0, size[1] // 2, size[2] // 2, size[3] // 2], found[0, -1, -1, -1])
    assert np.allclose((found.mean(), found.std(), *some), expected, rtol=2e-5, atol=2e-5)
    low = (np.array(size[1:]) - 1) / 2
    order = [2 - axis for axis in transpose]
    middle = np.array([(3 + shape[2] - 1) / 2, (4 + shape[1] - 1) / 2, (1 + shape[0] - 1) / 2])  # of the box that is not zero
    assert np.allclose(made.affine.numpy() @ [*low, 1], affine @ [*middle, 1]), "the middle stays where it is in the patient"
    assert np.allclose(np.linalg.norm(made.affine.numpy()[:3, :3], axis=0), np.array(target), rtol=0.06), order


def test_windows_and_their_weights_are_those_of_nnunet() -> None:
    windows = EvenWindows([32, 32, 32], 2, 0.5, mode="gaussian").lay_windows((40, 56, 33))
    assert windows.starts == ((0, 8), (0, 12, 24), (0, 1))
    assert EvenWindows([32, 32, 32]).lay_windows((90, 20, 32)).starts == ((0, 14, 29, 44, 58), (0,), (0,))
    assert EvenWindows([1, 32, 32]).lay_windows((3, 32, 32)).starts == ((0, 1, 2), (0,), (0,))
    weights = EvenWindows([8, 12, 10]).lay_windows((8, 12, 10)).weights
    assert weights is not None
    some = [float(weights[place]) for place in ((0, 0, 0), (4, 6, 5), (3, 2, 7), (7, 11, 9))]
    assert np.allclose(some, [0.0, 10.0, 0.04819, 0.0], atol=1e-5)
    assert float(weights.min()) > 0


BACK: dict[str, tuple[Any, ...]] = {
    "thick plans": ((6.0, 0.9, 0.9), (16, 36, 40), (4.0, 1.1, 1.1), (0, 1, 2), {}, 0),
    "thick images alone": ((4.0, 1.0, 1.0), (16, 36, 40), (2.5, 1.2, 1.2), (0, 1, 2), {}, 0),
    "thick plans alone, turned": ((2.0, 1.0, 1.0), (24, 36, 40), (1.1, 4.0, 1.1), (1, 0, 2), {}, 1),
    "thick, by the other function": (
        (6.0, 0.9, 0.9), (15, 36, 40), (4.5, 1.1, 1.1), (0, 1, 2), {"resampling_fn_probabilities": "resample_torch_fornnunet"}, 0,
    ),
    "not separated": (
        (6.0, 0.9, 0.9), (16, 36, 40), (4.0, 1.1, 1.1), (0, 1, 2), {"resampling_fn_probabilities_kwargs": {"force_separate_z": False}}, None,
    ),
    "separated though thin": (
        (2.5, 0.9, 0.9), (20, 36, 40), (2.0, 1.1, 1.1), (0, 1, 2), {"resampling_fn_probabilities_kwargs": {"force_separate_z": True}}, 0,
    ),
    "thin": ((2.5, 0.9, 0.9), (20, 36, 40), (2.0, 1.1, 1.1), (0, 1, 2), {}, None),
}  # fmt: skip
"""Spacing and size of the image, spacing of the plans, their order of axes, what else they say, and the axis that is not mixed."""


def brought_back(scores: np.ndarray[Any, Any], shape: tuple[int, ...], axis: int | None) -> np.ndarray[Any, Any]:
    """Answers scores (channels, …) at an image of `shape`: linear, or linear in every slice across `axis` and nearest between them."""
    restored = []
    for channel in scores.astype(np.float64):
        if axis is None:
            restored.append(resize(channel, shape, 1, mode="edge", anti_aliasing=False))
            continue
        flat = tuple(extent for place, extent in enumerate(shape) if place != axis)
        slices = np.stack([resize(one, flat, 1, mode="edge", anti_aliasing=False) for one in np.moveaxis(channel, axis, 0)])
        scale = len(slices) / shape[axis]
        place = np.mgrid[: shape[axis], : flat[0], : flat[1]].astype(np.float64)
        place[0] = scale * (place[0] + 0.5) - 0.5
        restored.append(np.moveaxis(map_coordinates(slices, place, order=0, mode="nearest"), 0, axis))
    return np.stack(restored)


@pytest.mark.parametrize("turn", ["axial", "feet first"])
@pytest.mark.parametrize("case", BACK)
def test_scores_come_back_to_the_images_as_nnunet_brings_them(case: str, turn: str, tmp_path: Path) -> None:
    spacing, shape, target, transpose, said, axis = BACK[case]
    plans = plans_of(target, 1, ["CTNormalization"], [False], transpose)
    plans["configurations"]["3d_fullres"] |= said
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    preprocess = PreprocessByPlansd("image", str(tmp_path / "plans.json"), "3d_fullres", "LPS")
    volume = make_volume(shape, spacing, turn, 5)
    voxels = volume.voxels.copy()
    voxels[:2], voxels[:, :3] = 0, 0  # is cut off
    volume = replace(volume, voxels=voxels)
    torch.manual_seed(1)
    network = torch.nn.Conv3d(1, 4, 3, padding=1)
    recipe = Recipe(Compose([preprocess]), SimpleInferer(), Tail(), lambda: network, loads_torchscript=False)
    found = segment([volume], recipe, TorchEngine(network, device="cpu"))
    assert found.label_map is not None
    prepared = preprocess({"image": as_meta_tensor([volume])})["image"]
    along = prepared.meta.get(NEAREST_ALONG)
    assert (None if along is None else along.axis) == axis
    with torch.inference_mode():
        scores = network(prepared.as_tensor()[None])[0].numpy()
    given = voxels if turn == "axial" else voxels[:, :, ::-1]  # from right to left and from front to back, as DICOM lies
    given = given if turn == "axial" else given[::-1]
    box = [slice(*_ends(given.any(axis=tuple(other for other in range(3) if other != one)))) for one in range(3)]
    cut = [box[one] for one in transpose]
    restored = brought_back(scores, tuple(one.stop - one.start for one in cut), axis)
    expected = np.zeros(tuple(given.shape[one] for one in transpose), np.uint8)
    expected[tuple(cut)] = restored.argmax(axis=0)
    expected = expected.transpose(np.argsort(transpose))
    expected = expected if turn == "axial" else expected[::-1, :, ::-1]
    assert len(np.unique(expected)) == 4
    assert (found.label_map.labels == expected).mean() > 0.9999


def _ends(is_there: np.ndarray[Any, Any]) -> tuple[int, int]:
    places = np.flatnonzero(is_there)
    return int(places[0]), int(places[-1]) + 1


def test_a_plan_that_brings_scores_back_otherwise_is_refused() -> None:
    settings = plans_of((1, 1, 1), 1, ["CTNormalization"], [False])["configurations"]["3d_fullres"]
    for change, message in (
        ({"resampling_fn_probabilities": "no_resampling_hack"}, "no_resampling_hack"),
        ({"resampling_fn_probabilities_kwargs": {"order": 3}}, "order = 3"),
    ):
        with pytest.raises(BundleInvalid, match=message):
            configuration_of({"configurations": {"a": settings | change}}, "a")


def trained(folder: Path, *, folds: int = 2, old: bool = False, regions: bool = False, flat: bool = False) -> Path:
    """A trained folder with random weights, keys as nnU-Net's networks have them: each tensor under several names."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    configuration, dimensions = ("2d", 2) if flat else ("3d_fullres", 3)
    root = folder / "Dataset007_Organs" / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    root.mkdir(parents=True)
    plans = plans_of((2.0, 1.5, 1.5), 1, ["CTNormalization"], [False])
    settings = plans["configurations"].pop("3d_fullres") | {"spacing": [2.0, 1.5, 1.5][-dimensions:], "patch_size": [16] * dimensions}
    kernels, strides = [[3] * dimensions] * 2, [[1] * dimensions, [2] * dimensions]
    if old:
        settings |= {
            "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8, "conv_kernel_sizes": kernels,
            "n_conv_per_stage_encoder": [1, 1], "n_conv_per_stage_decoder": [1], "pool_op_kernel_sizes": strides,
        }  # fmt: skip
    else:
        settings["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 8], "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d", "kernel_sizes": kernels,
                "strides": strides, "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }  # fmt: skip
    plans["configurations"] = {"base": settings, configuration: {"inherits_from": "base"}}
    dataset: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    if regions:
        dataset |= {"labels": {"background": 0, "liver": [1, 2], "liver tumor": [2]}, "regions_class_order": [1, 2]}
    (root / "plans.json").write_text(json.dumps(plans))
    (root / "dataset.json").write_text(json.dumps(dataset))
    name, arguments = architecture_of(configuration_of(plans, configuration))
    layers = {key: getattr(torch.nn, arguments[key]) if arguments[key] else None for key in ("conv_op", "norm_op", "dropout_op", "nonlin")}
    for fold in range(folds):
        torch.manual_seed(fold)
        network = getattr(unet, name)(1, num_classes=2 if regions else 3, **(arguments | layers), deep_supervision=True)
        (root / f"fold_{fold}").mkdir()
        checkpoint = {"network_weights": network.state_dict(), "logging": {"dice": [np.float64(0.5)]}, "trainer_name": "nnUNetTrainer"}
        torch.save(checkpoint, root / f"fold_{fold}" / "checkpoint_final.pth")
    return root


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


def installed(root: Path, models: Path, **wishes: Any) -> Installation:
    models.mkdir(exist_ok=True)
    return install(str(root), models, Wishes(**wishes), lambda _contents, _name: "typed yes")


@pytest.mark.parametrize(("old", "flat"), [(False, False), (True, False), (False, True)])
def test_a_trained_folder_becomes_a_model_whose_folds_are_averaged(tmp_path: Path, old: bool, flat: bool) -> None:
    root = trained(tmp_path, old=old, flat=flat)
    done = installed(root, tmp_path / "models", name="organs")
    assert [(one.label_value, one.type.meaning) for one in done.card.segments] == [(1, "Liver"), (2, "Spleen")]
    assert done.card.inputs[0].modality == ("CT",)
    assert any("2 folds" in note for note in done.notes)
    assert any("not mirrored" in note for note in done.notes)
    assert not list(done.folder.rglob("*.pth"))
    volume = make_volume((8, 20, 22), (3.0, 1.0, 1.0), "axial", 3)
    both = load_bundle(done.folder, load_card(done.folder))
    label_map = both.predict([volume]).label_map
    assert label_map is not None
    assert len(np.unique(label_map.labels)) > 1
    window = torch.rand(1, 1, *(1 if flat else 16, 16, 16))
    singles = [
        load_bundle(one.folder, load_card(one.folder))
        for one in (installed(root, tmp_path / "models", name=f"fold{fold}", folds=(fold,)) for fold in (0, 1))
    ]
    with torch.inference_mode():
        mean = sum(torch.as_tensor(model._engine.infer(window)) for model in singles) / 2
        assert torch.allclose(torch.as_tensor(both._engine.infer(window)), mean, atol=1e-4)


def test_regions_that_lie_in_each_other_are_written_in_their_order(tmp_path: Path) -> None:
    done = installed(trained(tmp_path, folds=1, regions=True), tmp_path / "models")
    assert [(one.label_value, one.type.meaning) for one in done.card.segments] == [(1, "Liver"), (2, "Neoplasm")]
    volume = make_volume((8, 20, 22), (3.0, 1.0, 1.0), "axial", 3)
    label_map = load_bundle(done.folder, load_card(done.folder)).predict([volume]).label_map
    assert label_map is not None
    assert set(np.unique(label_map.labels)) <= {0, 1, 2}
    assert label_map.labels.any()


def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path) -> None:
    plans = plans_of((1, 1, 1), 1, ["CTNormalization"], [False])
    settings = plans["configurations"]["3d_fullres"]
    with pytest.raises(BundleInvalid, match="no configuration '2d' → 3d_fullres"):
        configuration_of(plans, "2d")
    for change, message in (
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"normalization_schemes": ["OddNormalization"]}, "OddNormalization"),
        ({"resampling_fn_data": "resample_torch"}, "resample_torch"),
    ):
        with pytest.raises(BundleInvalid, match=message):
            configuration_of({"configurations": {"a": settings | change}}, "a")
    for layer in ("os.system", "torch.nn.Module", "torch.hub.load"):
        described = {"network_class_name": "a.PlainConvUNet", "arch_kwargs": {"conv_op": layer}, "_kw_requires_import": ["conv_op"]}
        with pytest.raises(BundleInvalid, match="does not know"):
            architecture_of({"architecture": described})
    with pytest.raises(BundleInvalid, match="names the network system"):
        architecture_of({"architecture": {"network_class_name": "os.system", "arch_kwargs": {}}, "x": "os.system"})


def test_absent_folds_and_hostile_checkpoints_leave_nothing(tmp_path: Path) -> None:
    root = trained(tmp_path, folds=1)
    with pytest.raises(UsageError, match=r"fold_3/checkpoint_final\.pth is absent → fold_0"):
        installed(root, tmp_path / "models", folds=(3,))
    with pytest.raises(BundleInvalid, match="--checkpoint"):
        installed(root, tmp_path / "models", checkpoint="checkpoint_latest.pth")
    with pytest.raises(UsageError, match="no orientation"):
        installed(root, tmp_path / "models", orientation="UP")
    torch.save(torch.nn.Conv3d(1, 1, 1), root / "fold_0" / "checkpoint_final.pth")
    with pytest.raises((BundleRefused, convert_child.Refused)):
        installed(root, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())
