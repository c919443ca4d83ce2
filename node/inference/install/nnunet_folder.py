"""A trained folder of nnU-Net v2 (plans.json, dataset.json, fold_*/checkpoint_final.pth) becomes a bundle of ours."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import BundleInvalid, UsageError
from node.files import write_durably
from node.inference.install.contents import read_configuration
from node.inference.install.source import copy_file
from node.inference.nnunet_plans import architecture_of, configuration_of, has_regions, heads_of

MIRRORING: Final = "inference_allowed_mirroring_axes"
"""Key of a checkpoint: the axes along which nnU-Net mirrors at test time; none for some trainers."""

NOT_MIRRORED: Final = (
    "images are not mirrored at test time, which nnU-Net does by default: eight times faster, labels differ a little at the edges"
)

PLANS: Final = "nnunet/plans.json"
DATASET: Final = "nnunet/dataset.json"

_MR_CHANNELS: Final = re.compile(r"\b(mri?|t1\w*|t2\w*|flair|adc|dwi|pd\w*|t1ce|t1gd)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainedBundle:
    """What was made of a trained folder."""

    configuration: Mapping[str, Any]
    metadata: Mapping[str, Any]
    checkpoints: tuple[Path, ...]
    notes: tuple[str, ...]


def is_trained_folder(root: Path) -> bool:
    """Answers whether a folder is one of nnU-Net's."""
    return (root / "plans.json").is_file() and not (root / "configs" / "metadata.json").is_file()


def write_bundle(
    root: Path, target: Path, *, folds: Sequence[int] = (), checkpoint: str = "checkpoint_final.pth", orientation: str = ""
) -> TrainedBundle:
    """Writes configuration and metadata of a bundle into `target` and answers them with the checkpoints to convert.

    Raises
    ------
    BundleInvalid
        When a part is absent, or asks for what radnode cannot do.
    """
    plans, dataset = _table(root / "plans.json"), _table(root / "dataset.json")
    name = _configuration_name(root, plans)
    settings = configuration_of(plans, name)
    architecture_of(settings)
    checkpoints = _checkpoints(root, folds, checkpoint)
    axes = _orientation(plans, orientation)
    for path, kept in ((root / "plans.json", PLANS), (root / "dataset.json", DATASET)):
        copy_file(path, target / kept)
    configuration = _configuration(name, settings, dataset, len(checkpoints), axes)
    metadata = _metadata(root, dataset, settings, name)
    for content, file_name in ((configuration, "inference.json"), (metadata, "metadata.json")):
        write_durably(target / "configs" / file_name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    return TrainedBundle(configuration, metadata, checkpoints, _notes(plans, axes, orientation, len(checkpoints)))


def _table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleInvalid(f"{path.name} is absent: a trained folder of nnU-Net has plans.json, dataset.json and fold_*")
    table = read_configuration(path)
    if not isinstance(table, dict):
        raise BundleInvalid(f"{path.name} holds no table")
    return table


def _configuration_name(root: Path, plans: Mapping[str, Any]) -> str:
    """`nnUNetTrainer__nnUNetPlans__3d_fullres`: the folder's name ends with the configuration."""
    last = root.name.rpartition("__")[2]
    known = list(plans.get("configurations", {}))
    if last in known:
        return last
    if "3d_fullres" in known:
        return "3d_fullres"
    if len(known) == 1:
        return str(known[0])
    raise BundleInvalid(
        f"{root.name} does not tell its configuration → name the folder TRAINER__PLANS__CONFIGURATION, of {', '.join(known)}"
    )


def _checkpoints(root: Path, folds: Sequence[int], checkpoint: str) -> tuple[Path, ...]:
    there = sorted(path.parent for path in root.glob(f"fold_*/{checkpoint}"))
    wanted = (
        [root / f"fold_{fold}" for fold in folds] if folds else [path for path in there if re.fullmatch(r"fold_\d+", path.name)] or there
    )
    absent = [path.name for path in wanted if path not in there]
    if absent:
        raise UsageError(f"{absent[0]}/{checkpoint} is absent → {', '.join(path.name for path in there) or 'no fold has one'}")
    if not wanted:
        raise BundleInvalid(f"no fold has {checkpoint}: fold_0/{checkpoint} is absent → --checkpoint checkpoint_best.pth, if that is there")
    return tuple(path / checkpoint for path in wanted)


def _orientation(plans: Mapping[str, Any], wished: str) -> str:
    if wished:
        if re.fullmatch(r"[RL][AP][SI]", wished) is None:
            raise UsageError(f"{wished!r} is no orientation → three letters such as RAS, LPS or LAS")
        return wished
    return "RAS" if "Reorient" in str(plans.get("image_reader_writer", "")) else "LPS"


def _configuration(name: str, settings: Mapping[str, Any], dataset: Mapping[str, Any], folds: int, axes: str) -> dict[str, Any]:
    patch = [int(extent) for extent in settings["patch_size"]]
    window = {"roi_size": [1, *patch][-3:], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.125}
    inferer = {"_target_": "node.inference.nnunet.EvenWindows", **window}
    return {
        "image_key": "image",
        "plans": f"$@bundle_root + '/{PLANS}'",
        "dataset_json": f"$@bundle_root + '/{DATASET}'",
        "network_def": {
            "_target_": "node.inference.nnunet.build_network",
            "plans": "@plans", "dataset": "@dataset_json", "configuration": name, "folds": folds,
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@image_key"},
                {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
                {
                    "_target_": "node.inference.nnunet.PreprocessByPlansd",
                    "keys": "@image_key", "plans": "@plans", "configuration": name, "orientation": axes,
                },
            ],
        },
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(dataset)},
    }  # fmt: skip


def _postprocessing(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key", "nearest_interp": False}
    if not has_regions(dataset):
        return [invert, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
    function = "torch.zeros_like(x[[0]])"
    for channel, value in enumerate(dataset["regions_class_order"]):  # a later region is written over an earlier one
        function = f"torch.where(x[[{channel}]] > 0, {int(value)}, {function})"
    return [
        invert,
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda x: {function}"},
    ]


def _metadata(root: Path, dataset: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    channels = {str(key): str(value) for key, value in (dataset.get("channel_names") or dataset.get("modality") or {"0": "image"}).items()}
    first = next(iter(channels.values()))
    modality = "CT" if re.search(r"\bct\b", first, re.IGNORECASE) else "MR" if _MR_CHANNELS.search(first) else first
    patch = [int(extent) for extent in settings["patch_size"]]
    title = str(dataset.get("name") or re.sub(r"^Dataset\d+_", "", root.parent.name))
    entry = {"type": "image", "spatial_shape": [1, *patch][-3:], "dtype": "float32", "is_patch_data": True}
    inputs = {**entry, "format": "magnitude", "modality": modality, "num_channels": len(channels), "channel_def": channels}
    outputs = {**entry, "format": "segmentation", "num_channels": heads_of(dataset), "channel_def": _names(dataset)}
    return {
        "name": f"{title} (nnU-Net {name})",
        "task": f"{title} segmentation",
        "description": str(dataset.get("description") or f"A model that nnU-Net v2 trained on {title}"),
        "authors": str(dataset.get("authors") or dataset.get("reference") or "not stated"),
        "data_source": str(dataset.get("reference") or root.parent.name),
        "license": str(dataset.get("licence") or dataset.get("license") or ""),
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }


def _names(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Channel of the output → name; of regions, those of the trainer in their order, without background."""
    named = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if not has_regions(dataset):
        return {str(value): name for name, value in sorted(named.items(), key=lambda pair: int(_single(pair[1])))}
    regions = [name for name, value in named.items() if value not in (0, [0])]
    return {str(channel): name for channel, name in enumerate(regions)}


def _single(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _notes(plans: Mapping[str, Any], axes: str, wished: str, folds: int) -> tuple[str, ...]:
    notes = [
        f"{folds} folds are averaged" if folds > 1 else "one fold",
    ]
    if not wished and axes == "LPS":
        notes.append(
            f"the images are turned to {axes}, as DICOM lies: plans.json ({plans.get('image_reader_writer', 'no reader')}) does not say how the"
            " training images lay → --orientation, if they lay otherwise (nibabel's canonical files: RAS)"
        )
    return tuple(notes)
