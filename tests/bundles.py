"""A real MONAI bundle, small enough for tests: one 1x1x1 convolution that tells organ and marker of tests/factories.py by value."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file

from node.domain.volume import Volume
from node.inference.preprocess import as_meta_tensor
from node.inference.recipe import read_recipe
from tests.realdata import data_dir

ORGAN_FROM: Final = 145.0
MARKER_FROM: Final = 625.0

CARD: Final = """
name = "{name}"
version = "{version}"
title = "Organ and marker by value"
manufacturer = "radnode tests"
intended_use = "Tests only."
training_data = "None: two thresholds written by hand."
performance = "Exact by construction."
licence = "Apache-2.0"

[[weights]]
file = "models/model.safetensors"
format = "safetensors"
sha256 = "{sha256}"
source = "https://example.invalid/none"

[[inputs]]
modality = ["CT"]
slices = {{ min = 5 }}

[[segments]]
label_value = 1
label = "Organ"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "10200004", scheme = "SCT", meaning = "Liver" }}
rgb = [200, 80, 60]

[[segments]]
label_value = 2
label = "Marker"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "64033007", scheme = "SCT", meaning = "Kidney" }}
rgb = [60, 120, 220]
"""


def make_bundle(
    models_dir: Path, name: str = "thresholds", *, version: str = "1.0.0", slow: bool = False, organ_from: float = ORGAN_FROM
) -> Path:
    """Writes the bundle and its card into `models_dir/name`; a slow one infers for some seconds (overlapping windows)."""
    folder = models_dir / name
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    weights = folder / "models" / "model.safetensors"
    save_file(
        {
            "weight": torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1),
            "bias": torch.tensor([0.0, -organ_from, -organ_from - MARKER_FROM]),
        },
        weights,
    )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "card.toml").write_text(CARD.format(name=name, version=version, sha256=digest))
    (folder / "configs" / "metadata.json").write_text(json.dumps(_metadata(name, version)))
    (folder / "configs" / "inference.json").write_text(json.dumps(_inference(slow)))
    return folder


def _metadata(name: str, version: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "monai_version": "1.5.0",
        "pytorch_version": "2.6.0",
        "task": "thresholds",
        "description": "Organ and marker by value.",
        "network_data_format": {
            "inputs": {
                "image": {"type": "image", "format": "hounsfield", "num_channels": 1, "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
            },
            "outputs": {
                "pred": {"type": "image", "format": "segmentation", "num_channels": 3, "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
            },
        },
    }


def _inference(slow: bool) -> dict[str, Any]:
    inferer: dict[str, Any] = {"_target_": "SimpleInferer"}
    if slow:
        inferer = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 1, "overlap": 0.8}
    return {
        "bundle_root": ".",
        "image_key": "image",
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
                {"_target_": "EnsureTyped", "keys": "@image_key"},
            ],
        },
        "inferer": inferer,
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    }


# ── bundles of the Model Zoo, with weights at random ────────────────────────


def shared_bundle(name: str) -> Path:
    """Answers a bundle of ../shared/bundles, or skips the test."""
    folder = data_dir().parent / "bundles" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def copy_bundle(name: str, models_dir: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Copies a bundle of ../shared/bundles; `changes` maps ids (`inferer#roi_size`) of its configuration to new values."""
    folder = models_dir / name
    shutil.copytree(shared_bundle(name), folder)
    path = folder / "configs" / "inference.json"
    content = json.loads(path.read_text())
    for id_, value in (changes or {}).items():
        *parents, last = id_.split("#")
        place = content
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[last] = value
    path.chmod(0o644)
    path.write_text(json.dumps(content, indent=4))
    return folder


def write_random_weights(folder: Path, images: Sequence[Volume], *, seed: int = 0, crop: int = 48) -> None:
    """Writes models/model.pt, as MONAI reads it, and models/model.safetensors, as radnode does: the same weights at random.

    The last convolution is scaled so that on `images` every channel has mean 0 and spread 1: every class wins somewhere.
    """
    torch.manual_seed(seed)
    recipe = read_recipe(folder)
    network = recipe.make_network().eval()
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)][-1]
    prepared = recipe.preprocessing({recipe.image_key: as_meta_tensor(images)})[recipe.image_key]
    middle = prepared.as_tensor()[None, :, :crop, :crop, :crop].float()
    padding = [step for size in reversed(middle.shape[2:]) for step in (0, -size % 16)]
    with torch.inference_mode():
        output = network(torch.nn.functional.pad(middle, padding, mode="replicate")).movedim(1, 0).flatten(1)
        spread = output.std(dim=1).clamp(min=1e-6)
        assert last.bias is not None
        if len(spread) > 2:
            last.weight /= spread[:, None, None, None, None]
            last.bias.copy_((last.bias - output.mean(dim=1)) / spread)
        else:
            last.bias -= output.mean(dim=1)
    (folder / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "models" / "model.safetensors")


def write_card(folder: Path, segments: Mapping[int, str], *, modality: str = "CT", channels: Sequence[str] = ()) -> None:
    """Writes a card for a bundle with safetensors: label values and labels, and the inputs of a network with several."""
    digest = hashlib.sha256((folder / "models" / "model.safetensors").read_bytes()).hexdigest()
    head = CARD.format(name=folder.name, version="1.0.0", sha256=digest).partition("[[inputs]]")[0]
    inputs = "".join(
        f'[[inputs]]\nmodality = ["{modality}"]\n' + (f'channel = "{channel}"\n' if channel else "") for channel in channels or [""]
    )
    structures = "".join(
        f'[[segments]]\nlabel_value = {value}\nlabel = "{label}"\n'
        'category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }\n'
        'type = { value = "10200004", scheme = "SCT", meaning = "Liver" }\n'
        for value, label in segments.items()
    )
    (folder / "card.toml").write_text(head + inputs + structures)
