"""Classifiers, detectors and networks of landmarks: bundles of MONAI's kind answer what the same parts of MONAI answer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from monai.apps.detection.transforms.dictionary import AffineBoxToWorldCoordinated, ConvertBoxModed
from monai.data import MetaTensor
from pydicom import dcmread
from safetensors.torch import save_file

from node.domain.states import Outcome
from node.domain.volume import VolumeGeometry
from node.errors import BundleInvalid, CardInvalid
from node.inference.bundle import Bundle, load_bundle
from node.inference.detect import Detector
from node.inference.image_reader import read_images
from node.inference.recipe import CLASSIFICATION, read_recipe
from node.inference.series_reader import read_series
from node.modelstore import load_card
from node.pipeline import context_for, run_offline
from tests.bundles import CARD, copy_bundle
from tests.conformance.other_objects import radiograph
from tests.factories import make_ct_series
from tests.torchvision_ops import require_torchvision

READING = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
CODE = '{ value = "10200004", scheme = "SCT", meaning = "Liver" }'
CLASSES = f"""
[[evaluations]]
concept = {CODE}
answers = [{{ channel = 0, label = "low", code = {CODE} }}, {{ channel = 1, label = "high", code = {CODE} }}]
"""
DETECTIONS = f"""
[[detections]]
class_index = 0
label = "Nodule"
category = {CODE}
type = {CODE}
min_score = 0.0
"""


def write_bundle(folder: Path, configuration: Mapping[str, Any], outputs: str, *, modality: str = "CT", seed: int = 0) -> torch.nn.Module:
    """Writes a bundle with random weights and its card; answers the network."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(configuration))
    (folder / "configs" / "metadata.json").write_text("{}")
    return write_weights(folder, outputs, modality=modality, seed=seed)


def write_weights(folder: Path, outputs: str, *, modality: str, seed: int = 0, last_by: float = 1.0) -> torch.nn.Module:
    """`last_by` scales the last layer: random weights of a deep network answer numbers that no sigmoid tells apart."""
    torch.manual_seed(seed)
    network = read_recipe(folder, task=CLASSIFICATION).make_network().eval()
    [*_, last] = [module for module in network.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d))]
    with torch.no_grad():
        last.weight *= last_by
    (folder / "models").mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "models" / "model.safetensors")
    digest = hashlib.sha256((folder / "models" / "model.safetensors").read_bytes()).hexdigest()
    head = CARD.format(name=folder.name, version="1", sha256=digest).partition("[[inputs]]")[0]
    reads = 'reads = "images"\n' if modality != "CT" else ""
    weights = head.index("[[weights]]")
    (folder / "card.toml").write_text(f'{head[:weights]}{reads}{head[weights:]}[[inputs]]\nmodality = ["{modality}"]\n{outputs}')
    return network


# ── classifiers ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", ""])
def test_a_classifier_of_volumes_answers_the_questions_of_its_card(tmp_path: Path, activation: str) -> None:
    network = write_bundle(
        tmp_path / "grade",
        {
            "network_def": "$torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3), torch.nn.AdaptiveMaxPool3d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))",
            "imports": ["$import torch"],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [*READING, {"_target_": "ScaleIntensityd", "keys": "image"}, {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16, 12]}],
            },
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [{"_target_": "Activationsd", "keys": "pred", activation: True}] if activation else [],
            },
        },
        CLASSES,
    )  # fmt: skip
    volume = read_series(make_ct_series(tmp_path / "ct", slices=12, rows=24, columns=20).paths)
    model = load_bundle(tmp_path / "grade", load_card(tmp_path / "grade"))
    (evaluation,) = model.predict([volume]).evaluations
    assert isinstance(model, Bundle)
    prepared = model.recipe.preprocessing(
        {"image": MetaTensor(torch.from_numpy(volume.voxels.transpose(2, 1, 0)[None].copy()), affine=torch.eye(4))}
    )["image"]
    with torch.inference_mode():
        output = network(prepared.as_tensor()[None])[0]
    expected = torch.sigmoid(output) if activation == "sigmoid" else torch.softmax(output, dim=0)
    expected = expected / expected.sum()  # the two answers exclude each other
    np.testing.assert_allclose(evaluation.probabilities, expected, atol=1e-4)
    assert evaluation.answer.label == ("low", "high")[int(output.argmax())]
    assert evaluation.image is None


def test_the_mammography_bundle_of_the_zoo_judges_each_image_from_dicom_to_a_gated_report(tmp_path: Path) -> None:
    require_torchvision()
    folder = copy_bundle("breast_density_classification", tmp_path)
    network = write_weights(folder, CLASSES, modality="CR", last_by=1e-11)
    radiograph(tmp_path / "cr")
    images = read_images(list((tmp_path / "cr").glob("*.dcm")))
    model = load_bundle(folder, load_card(folder))
    context = context_for("zoo", run=0, encoded_at_s=0.0, ae_title="TEST", device_serial_number="1")
    done = run_offline(list((tmp_path / "cr").glob("*.dcm")), model, context, tmp_path / "out", lambda *_: None)
    (evaluation,) = done.result.evaluations
    assert done.result.outcome is Outcome.FOUND
    told = [item.ConceptCodeSequence[0].CodeMeaning for container in dcmread(done.paths["sr"]).ContentSequence
            for item in container.get("ContentSequence", []) if item.ValueType == "CODE"]  # fmt: skip
    assert evaluation.answer.code.meaning in told
    gray = torch.from_numpy(images[0].voxels[0].T.copy())  # columns first, as MONAI's readers of pictures have it
    scaled = ((gray - gray.min()) / (gray.max() - gray.min()))[None].repeat(3, 1, 1)[None]
    with torch.inference_mode():
        output = torch.sigmoid(network(torch.nn.functional.interpolate(scaled, size=(299, 299), mode="area")))[0]
    np.testing.assert_allclose(evaluation.probabilities, output[:2] / output[:2].sum(), atol=1e-4)
    assert evaluation.probabilities != pytest.approx(output[:2].tolist(), abs=1e-3)
    assert evaluation.image == images[0].source.planes[0]
    model.close()


def test_a_card_that_asks_for_more_than_the_network_answers_is_refused(tmp_path: Path) -> None:
    write_bundle(
        tmp_path / "one",
        {"network_def": "$torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))", "imports": ["$import torch"]},
        CLASSES,
    )  # fmt: skip
    volume = read_series(make_ct_series(tmp_path / "ct", slices=6, rows=16, columns=16).paths)
    with pytest.raises(BundleInvalid, match="asks for channel 1, the network answers 1"):
        load_bundle(tmp_path / "one", load_card(tmp_path / "one")).predict([volume])


# ── detectors ───────────────────────────────────────────────────────────────

RETINANET: Mapping[str, Any] = {
    "imports": ["$from monai.apps.detection.utils import anchor_utils", "$from monai.apps.detection.networks import retinanet_network"],
    "anchor_generator": "$anchor_utils.AnchorGeneratorWithAnchorShape(feature_map_scales=[1, 2], base_anchor_shapes=[[6, 8, 4], [8, 6, 5]])",
    "backbone": {
        "_target_": "ResNet", "block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 16, 32], "n_input_channels": 1,
        "conv1_t_stride": [2, 2, 1], "conv1_t_size": 7,
    },
    "feature_extractor": "$retinanet_network.resnet_fpn_feature_extractor(@backbone, 3, False, [1], None)",
    "network_def": {
        "_target_": "RetinaNet", "spatial_dims": 3, "num_classes": 1, "num_anchors": 2, "feature_extractor": "@feature_extractor",
        "size_divisible": [16, 16, 8],
    },
    "network": "$@network_def.to(@device)",
    "detector": {"_target_": "RetinaNetDetector", "network": "@network", "anchor_generator": "@anchor_generator", "spatial_dims": 3, "num_classes": 1},
    "detector_ops": [
        "$@detector.set_target_keys(box_key='box', label_key='label')",
        "$@detector.set_box_selector_parameters(score_thresh=0.0, topk_candidates_per_level=20, nms_thresh=0.2, detections_per_img=5)",
    ],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            *READING, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1024, "a_max": 300, "b_min": 0, "b_max": 1, "clip": True},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_boxes_lie_in_the_patient_where_monai_says(tmp_path: Path, orientation: str) -> None:
    require_torchvision()
    write_bundle(tmp_path / "nodules", RETINANET, DETECTIONS)
    series = make_ct_series(tmp_path / "ct", slices=16, rows=32, columns=32, orientation=orientation)
    volume = read_series(series.paths)
    model = load_bundle(tmp_path / "nodules", load_card(tmp_path / "nodules"))
    assert isinstance(model, Detector)
    detections = model.predict([volume]).detections
    assert 2 <= len(detections) <= 5
    assert [one.score for one in detections] == sorted((one.score for one in detections), reverse=True)

    from node.inference.classify import prepare

    prepared = prepare([volume], model.recipe)
    with torch.inference_mode():
        answer = model._detector([prepared.as_tensor().float()])[0]
    data = {"box": answer["box"], "image": prepared, "image_meta_dict": {"affine": prepared.affine}}
    data = AffineBoxToWorldCoordinated(box_keys="box", box_ref_image_keys="image", affine_lps_to_ras=False)(data)
    data = ConvertBoxModed(box_keys="box", src_mode="xyzxyz", dst_mode="cccwhd")(data)
    best = int(answer["label_scores"].argmax())
    if orientation == "axial":  # MONAI's boxes stay parallel to the axes of the world
        centre_ras = np.asarray(data["box"][best][:3])
        sizes = np.asarray(data["box"][best][3:])
        inside = bool((answer["box"][best] >= 0).all() and (answer["box"][best][3:] <= torch.tensor(prepared.shape[1:])).all())
        if inside:
            np.testing.assert_allclose(detections[0].centre_mm, centre_ras * [-1, -1, 1], atol=1e-3)
            np.testing.assert_allclose(np.abs(np.array(detections[0].half_axes_mm)).sum(axis=0) * 2, np.abs(sizes), atol=1e-3)
    for detection in detections:
        index = np.linalg.inv(volume.geometry.patient_from_voxel) @ np.array([*detection.centre_mm, 1.0])
        assert np.all(index[:3] >= -0.51)
        assert np.all(index[:3] <= np.array(volume.voxels.shape) - 0.49)


def test_a_bundle_without_a_detector_is_refused(tmp_path: Path) -> None:
    require_torchvision()
    write_bundle(tmp_path / "none", {key: value for key, value in RETINANET.items() if not key.startswith("detector")}, DETECTIONS)
    with pytest.raises(BundleInvalid, match="names no network_def and detector"):
        load_bundle(tmp_path / "none", load_card(tmp_path / "none"))


# ── landmarks ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orientation", ["axial", "coronal", "oblique"])
def test_a_landmark_is_where_its_heat_map_is_highest(tmp_path: Path, orientation: str) -> None:
    outputs = f'[[landmarks]]\nchannel = 0\nlabel = "Tip"\ntype = {CODE}\n[[landmarks]]\nchannel = 1\nlabel = "None"\ntype = {CODE}\n'
    folder = tmp_path / "tips"
    write_bundle(
        folder,
        {
            "network_def": "$torch.nn.Conv3d(1, 2, 1)", "imports": ["$import torch"],
            "preprocessing": {"_target_": "Compose", "transforms": [*READING, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}]},
        },
        outputs,
    )  # fmt: skip
    save_file({"weight": torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1, 1), "bias": torch.zeros(2)}, folder / "models" / "model.safetensors")
    digest = hashlib.sha256((folder / "models" / "model.safetensors").read_bytes()).hexdigest()
    card = (folder / "card.toml").read_text()
    old = card.partition('sha256 = "')[2][:64]
    (folder / "card.toml").write_text(card.replace(old, digest))
    volume = read_series(make_ct_series(tmp_path / "ct", slices=10, rows=20, columns=18, orientation=orientation).paths)
    volume.voxels[:] = np.minimum(volume.voxels, 500)
    volume.voxels[6, 11, 4] = 4000
    (landmark,) = load_bundle(folder, load_card(folder)).predict([volume]).landmarks
    np.testing.assert_allclose(landmark.position_mm, (volume.geometry.patient_from_voxel @ [6, 11, 4, 1])[:3], atol=1e-3)
    assert landmark.definition.label == "Tip"


FRAMES: Final = """
import torch

class Brightest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        rows = image.shape[-1]
        place = image.flatten(1).argmax(dim=1)
        found = torch.stack([place // rows, place % rows], dim=1).float() * self.scale
        return torch.stack([found, torch.zeros_like(found)], dim=2)

class EachFrame:
    def __call__(self, inputs, network):
        return torch.stack([network(inputs[..., frame]) for frame in range(inputs.shape[-1])], dim=1)
"""


def test_points_of_a_network_of_frames_lie_in_each_image(tmp_path: Path) -> None:
    """Its preprocessing takes the image as a file has it: columns, rows, slices, frames."""
    steps = [
        {"_target_": "LoadImage", "image_only": True},
        {"_target_": "Transpose", "indices": [2, 0, 1, 3]},
        {"_target_": "ScaleIntensity"},
    ]
    outputs = 'reads = "images"\n' + "".join(f'[[landmarks]]\nchannel = {n}\nlabel = "P{n}"\ntype = {CODE}\n' for n in range(2))
    folder = tmp_path / "frames"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "frames.py").write_text(FRAMES)
    configuration = {
        "network_def": {"_target_": "scripts.frames.Brightest"},
        "inferer": {"_target_": "scripts.frames.EachFrame"},
        "preprocessing": {"_target_": "Compose", "transforms": steps},
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(configuration))
    (folder / "configs" / "metadata.json").write_text("{}")
    (folder / "models").mkdir()
    save_file({"scale": torch.ones(1)}, folder / "models" / "model.safetensors")
    digest = hashlib.sha256((folder / "models" / "model.safetensors").read_bytes()).hexdigest()
    head, _, _ = CARD.format(name="frames", version="1", sha256=digest).partition("[[weights]]")
    weights = CARD.format(name="frames", version="1", sha256=digest).partition("[[weights]]")[2].partition("[[segments]]")[0]
    (folder / "card.toml").write_text(head + 'reads = "images"\n[[weights]]' + weights + outputs.partition("\n")[2])
    volume = read_series(make_ct_series(tmp_path / "ct", slices=5, rows=20, columns=18, orientation="oblique").paths)
    volume.voxels[:] = np.minimum(volume.voxels, 500)
    volume.voxels[3, 11, 4] = 4000
    image = replace(
        volume,
        voxels=volume.voxels[3:4],
        geometry=VolumeGeometry((1, 20, 18), volume.geometry.patient_from_voxel @ _moved_by(3)),
        source=replace(volume.source, planes=volume.source.planes[3:4]),
    )
    (landmark,) = load_bundle(folder, load_card(folder)).predict([image]).landmarks
    np.testing.assert_allclose(landmark.position_mm, (volume.geometry.patient_from_voxel @ [3, 11, 4, 1])[:3], atol=1e-3)
    assert landmark.definition.label == "P0"


def _moved_by(slices: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = slices
    return matrix


def test_a_card_that_reports_nothing_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "mute", {"network_def": "$torch.nn.Conv3d(1, 2, 1)", "imports": ["$import torch"]}, "")
    with pytest.raises(CardInvalid, match="what the model reports"):
        load_card(tmp_path / "mute")
