"""Bundles as the Model Zoo has them, small: configurations, a script, weights as pickles; and trained folders as nnU-Net leaves them."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from node.errors import BundleRefused
from node.inference.install import convert, convert_child, trial, trial_child

SHARED = Path(__file__).parents[2] / "shared" / "bundles"


def make_source(folder: Path, *, network: dict[str, Any] | None = None, state: Any = None, file: str = "models/model.pt") -> Path:
    """Writes a bundle of one 1x1x1 convolution with its weights as a pickle; `state` is saved instead where given."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    configuration = {
        "imports": ["$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "network_def": network or {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        "network": "$@network_def.to(torch.device('cpu'))",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            ],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key", "nearest_interp": False},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "./eval"},
            ],
        },
        "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"},
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(configuration))
    (folder / "configs" / "metadata.json").write_text(json.dumps(_metadata()))
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    torch.save(make_state() if state is None else state, folder / file)
    return folder


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an installation open weights and try the bundle in this process; those of their own are tried in test_install.py."""

    def run(module: str, job: Mapping[str, Any], _limits: object, *, files: Sequence[int] = ()) -> dict[str, Any]:
        if module == trial.CHILD:
            return trial_child.perform(job)
        parts = [{**part, "descriptor": os.dup(part["descriptor"])} for part in job.get("inputs", ())]
        alone = {"descriptor": os.dup(job["descriptor"])} if "descriptor" in job else {}
        try:
            return {"isolated": True, **convert_child.perform({**job, **alone, "inputs": parts})}
        except convert_child.Refused as refused:
            raise BundleRefused(str(refused)) from refused

    monkeypatch.setattr(convert, "run_confined", run)
    monkeypatch.setattr(trial, "run_confined", run)


def make_state() -> dict[str, torch.Tensor]:
    """The weights of the convolution: organ from 145, marker from 770 (tests/factories.py)."""
    return {"weight": torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1), "bias": torch.tensor([0.0, -145.0, -770.0])}


def _metadata() -> dict[str, Any]:
    entry = {"type": "image", "num_channels": 1, "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
    names = {"0": "background", "1": "liver", "2": "left kidney"}
    return {
        "version": "0.3.1",
        "name": "Liver and kidney",
        "authors": "somebody",
        "intended_use": "Tests.",
        "network_data_format": {
            "inputs": {"image": {**entry, "format": "hounsfield", "modality": "CT", "channel_def": {"0": "image"}}},
            "outputs": {"pred": {**entry, "format": "segmentation", "num_channels": 3, "channel_def": names}},
        },
    }


def make_from_shared(name: str, folder: Path, changes: dict[str, Any]) -> Path:
    """Copies a bundle of ../shared and gives it random weights as a pickle; `changes` make its network small."""
    from monai.bundle import ConfigParser

    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent")
    for path in (SHARED / name).rglob("*"):
        if path.is_file():
            (folder / path.relative_to(SHARED / name)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(SHARED / name))
    path = folder / "configs" / "inference.json"
    configuration = json.loads(path.read_text())
    configuration["network_def"] |= changes
    path.write_text(json.dumps(configuration))
    torch.manual_seed(1)
    if configuration["network_def"]["_target_"] == "TorchVisionFCModel":  # torchvision is not everywhere: its weights are names here
        state = {"features.fc.weight": torch.rand(4, 8), "features.fc.bias": torch.rand(4)}
    else:
        parser = ConfigParser(configuration)
        state = parser.get_parsed_content("network_def").state_dict()
    (folder / "models").mkdir()
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, folder / "models" / "model.pt")
    return folder
