"""A real MONAI bundle, small enough for tests: one 1x1x1 convolution that tells organ and marker of tests/factories.py by value."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

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
