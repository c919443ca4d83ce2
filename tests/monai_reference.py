"""Small bundles of our own, and what `monai.bundle run` makes of them: the reference for whatever a bundle may hold."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from safetensors.torch import save_file
from scipy import ndimage

from node.domain.volume import LabelMap, Volume
from tests.bundles import CARD


def textured(seed: int) -> Any:
    """Answers an edit of a series that lays smooth noise over it, the same from slice to slice."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=(64, 64, 64)), 2.5)
    noise *= 120 / noise.std()

    def edit(dataset: Dataset, index: int) -> None:
        pixels = np.frombuffer(dataset.PixelData, dtype="<u2").reshape(dataset.Rows, dataset.Columns)
        changed = np.clip(pixels + noise[index, : dataset.Rows, : dataset.Columns], 0, 4095)
        dataset.PixelData = changed.astype("<u2").tobytes()

    return edit


def write_nifti(volume: Volume, path: Path) -> Path:
    """Writes a volume as converters from DICOM write it: columns, rows, slices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.patient_from_voxel[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), affine), path)
    return path


def step(name: str, keys: Any = "image", /, **arguments: Any) -> dict[str, Any]:
    """Answers a transform as a configuration has it."""
    return {"_target_": name, "keys": keys, **arguments}


def inverted(*, nearest: bool = False, keys: Any = "pred", of: str = "image") -> dict[str, Any]:
    """Answers the step that brings something back."""
    return step("Invertd", keys, transform="@preprocessing", orig_keys=of, nearest_interp=nearest)


def window(edge: int) -> torch.Tensor:
    """Answers smooth noise between 0 and 1, the same each time."""
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(edge, edge, edge)), 2.0)
    return torch.from_numpy((noise - noise.min()) / (noise.max() - noise.min())).float()[None, None]


def balanced(channels: int, outputs: int, seed: int) -> torch.nn.Conv3d:
    """Answers a convolution with weights at random, of which every channel wins somewhere on an image between 0 and 1."""
    torch.manual_seed(seed)
    convolution = torch.nn.Conv3d(channels, outputs, 3, padding=1)
    with torch.no_grad():
        answer = convolution(torch.cat([window(24), torch.zeros(1, channels - 1, 24, 24, 24)], dim=1) if channels > 1 else window(24))
        middle = answer[:, :, 2:-2, 2:-2, 2:-2].transpose(0, 1).flatten(1)
        convolution.weight /= middle.std(dim=1)[:, None, None, None, None]
        assert convolution.bias is not None
        convolution.bias.copy_((convolution.bias - middle.mean(dim=1)) / middle.std(dim=1))
    return convolution


def write_bundle(
    folder: Path,
    *,
    network: Mapping[str, Any] | str,
    states: Mapping[str, Mapping[str, torch.Tensor]],
    preprocessing: Sequence[Any],
    postprocessing: Sequence[Any],
    loaded: Sequence[str] = ("image",),
    scripts: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """Writes a bundle as authors write them. `states` maps files of models/ to weights; `loaded` are the images that it reads."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    read = [step("LoadImaged", list(loaded), image_only=False), step("EnsureChannelFirstd", list(loaded))]
    configuration = {
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/out'",
        "device": "$torch.device('cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [*read, *preprocessing]},
        "inferer": {"_target_": "SimpleInferer"},
        "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [*postprocessing, step("SaveImaged", "pred", output_dir="@output_dir", separate_folder=False, resample=False)],
        },
        "handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'", "load_dict": {"model": "@network"}}],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader", "network": "@network",
            "inferer": "@inferer", "postprocessing": "@postprocessing", "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
        **more,
    }  # fmt: skip
    entry = {"type": "image", "num_channels": len(loaded), "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
    names = {"0": "background", **{str(value): f"structure {value}" for value in range(1, 6)}}
    form = {
        "inputs": {"image": {**entry, "format": "hounsfield", "modality": "CT", "channel_def": {"0": "image"}}},
        "outputs": {"pred": {**entry, "format": "segmentation", "num_channels": len(names), "channel_def": names}},
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(configuration, indent=1))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1.0.0", "name": "test", "network_data_format": form}))
    for name, text in (scripts or {}).items():
        (folder / "scripts").mkdir(exist_ok=True)
        (folder / "scripts" / "__init__.py").touch()
        (folder / "scripts" / name).write_text(text)
    for name, state in states.items():
        torch.save(dict(state), folder / "models" / name)
    return folder


def write_model(folder: Path, state: Mapping[str, torch.Tensor], labels: Sequence[int], channels: Sequence[str] = ()) -> None:
    """Writes what makes a bundle a model of ours: weights as safetensors and a card."""
    path = folder / "models" / "model.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    head = CARD.format(name=folder.name, version="1.0.0", sha256=hashlib.sha256(path.read_bytes()).hexdigest()).partition("[[inputs]]")[0]
    inputs = "".join('[[inputs]]\nmodality = ["CT"]\n' + (f'channel = "{channel}"\n' if channel else "") for channel in channels or [""])
    structures = "".join(
        f'[[segments]]\nlabel_value = {value}\nlabel = "structure {value}"\n'
        'category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }\n'
        'type = { value = "10200004", scheme = "SCT", meaning = "Liver" }\n'
        for value in labels
    )
    (folder / "card.toml").write_text(head + inputs + structures)


def run_monai(folder: Path, images: Mapping[str, Path]) -> NDArray[np.int64]:
    """Answers what `monai.bundle run` writes for images of these names: (slices, rows, columns), or with the channels before them."""
    import monai.bundle

    from node.inference.configuration import importable

    output = folder.parent / f"{folder.name}-out"
    with importable(folder):
        monai.bundle.run(
            config_file=str(folder / "configs" / "inference.json"),
            meta_file=str(folder / "configs" / "metadata.json"),
            bundle_root=str(folder),
            output_dir=str(output),
            **{"dataset#data": [{name: str(path) for name, path in images.items()}]},
        )
    (written,) = output.glob("*.nii.gz")
    return np.asarray(nibabel.load(written).dataobj).astype(np.int64).transpose().squeeze()


def assert_equal_labels(label_map: LabelMap, expected: NDArray[np.int64], label_values: Sequence[int]) -> None:
    """Dice at least 0.999 and volumes within 0.1 % for every label, none of which is absent."""
    for value in label_values:
        ours, theirs = label_map.mask(value), expected == value
        assert theirs.any(), f"label {value} is nowhere: a degenerate case"
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert dice >= 0.999, f"label {value}: Dice {dice:.5f} of {theirs.sum()} voxels"
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.001 * theirs.sum(), f"label {value}: {ours.sum()} and {theirs.sum()} voxels"
