"""plans.json and dataset.json of nnU-Net v2, as far as they say how a trained network infers. Plain values: neither torch nor nnU-Net."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from node.errors import BundleInvalid

ARCHITECTURES: Final = {
    name: f"dynamic_network_architectures.architectures.{module}"
    for name, module in (("PlainConvUNet", "unet"), ("ResidualEncoderUNet", "unet"), ("ResidualUNet", "unet"))
}
"""Networks of the package dynamic-network-architectures."""

LAYER_KEYS: Final = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Arguments of a network that are layers."""

SCHEMES: Final = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")

SPLINES: Final = "resample_data_or_seg_to_shape"
BY_TORCH: Final = "resample_torch_fornnunet"

_KNOWN_WAYS_BACK: Final[Mapping[str, tuple[object, ...]]] = {
    "is_seg": (False,), "order": (1,), "order_z": (0, 1), "mode": ("linear",), "aniso_axis_mode": ("nearest-exact",),
}  # fmt: skip
"""Arguments of theirs that change the scores, and the values that are done equally."""

ANISOTROPY: Final = 3.0
"""Slices thicker than this many times the pixels are resampled slice by slice, and by the nearest slice across."""

_LAYERS: Final = frozenset({
    "Conv2d", "Conv3d", "InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LeakyReLU", "ReLU", "GELU", "SiLU", "ELU",
    "Dropout", "Dropout2d", "Dropout3d",
})  # fmt: skip
"""Layers of torch.nn that plans may name."""


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Answers a configuration of plans.json with what it inherits.

    Raises BundleInvalid for what radnode cannot do.
    """
    found: dict[str, Any] = {}
    seen: set[str] = set()
    following: str | None = name
    while following:
        if following in seen or following not in plans.get("configurations", {}):
            raise BundleInvalid(f"plans.json has no configuration {following!r} → {', '.join(plans.get('configurations', {}))}")
        seen.add(following)
        found = {**plans["configurations"][following], **found}
        following = plans["configurations"][following].get("inherits_from")
    if found.get("previous_stage"):
        raise BundleInvalid(f"{name} is the second stage of a cascade, which radnode cannot do → install 3d_fullres or 3d_lowres")
    absent = [key for key in ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm") if key not in found]
    if absent:
        raise BundleInvalid(f"plans.json does not say {absent[0]} of {name}: it is none of nnU-Net v2")
    odd = [scheme for scheme in found["normalization_schemes"] if scheme not in SCHEMES]
    if odd:
        raise BundleInvalid(f"plans.json normalises by {odd[0]}, which radnode cannot do")
    for key in ("resampling_fn_data", "preprocessor_name"):
        if found.get(key, "") not in {"", "resample_data_or_seg_to_shape", "DefaultPreprocessor"}:
            raise BundleInvalid(f"plans.json says {key} = {found[key]}, which radnode cannot do")
    _refuse_odd_way_back(found)
    return found


def _refuse_odd_way_back(settings: Mapping[str, Any]) -> None:
    """Both functions of nnU-Net bring scores back linearly, and by the nearest slice where slices are thick."""
    name = settings.get("resampling_fn_probabilities", SPLINES)
    if name not in {SPLINES, BY_TORCH}:
        raise BundleInvalid(f"plans.json says resampling_fn_probabilities = {name}, which radnode cannot do")
    given = settings.get("resampling_fn_probabilities_kwargs") or {}
    for key, known in _KNOWN_WAYS_BACK.items():
        if key in given and given[key] not in known:
            raise BundleInvalid(f"plans.json brings probabilities back with {key} = {given[key]}, which radnode cannot do")


def nearest_axis_back(settings: Mapping[str, Any], spacing: Sequence[float], original: Sequence[float]) -> int | None:
    """Answers the axis along which scores on a grid of `spacing` come back to the `original` one by the nearest slice.

    None where they come back linearly along all.
    """
    given = settings.get("resampling_fn_probabilities_kwargs") or {}
    forced = given.get("force_separate_z")
    if forced is False or given.get("order_z", 0) != 0:
        return None
    if forced or is_anisotropic(spacing):
        return _widest_axis(spacing)
    return _widest_axis(original) if is_anisotropic(original) else None


def thick_axis(spacing: Sequence[float]) -> int | None:
    """Answers the one axis along which voxels are more than three times as large as along another."""
    return _widest_axis(spacing) if is_anisotropic(spacing) else None


def is_anisotropic(spacing: Sequence[float]) -> bool:
    """Answers whether slices are thick."""
    return bool(max(spacing) / min(spacing) > ANISOTROPY)


def _widest_axis(spacing: Sequence[float]) -> int | None:
    """None where two are equally wide."""
    widest = [axis for axis, one in enumerate(spacing) if max(spacing) / one == 1]
    return widest[0] if len(widest) == 1 else None


def heads_of(dataset: Mapping[str, Any]) -> int:
    """Answers how many channels the network's output has."""
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if has_regions(dataset):
        return len(dataset["regions_class_order"])
    return len(labels)


def has_regions(dataset: Mapping[str, Any]) -> bool:
    """Answers whether structures overlap in training: each output channel is a set of labels then."""
    return any(isinstance(value, list) and len(value) > 1 for value in dataset["labels"].values())


def architecture_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Answers the class of the network and its arguments, from plans of either format; layers by their names in torch.nn.

    Raises BundleInvalid for classes and layers that radnode does not know: a name is never imported from wherever it points to.
    """
    if "architecture" in settings:
        described = settings["architecture"]
        arguments = dict(described["arch_kwargs"])
        for key in described.get("_kw_requires_import", ()):
            arguments[key] = _layer(arguments.get(key))
        return _known(str(described["network_class_name"]).rpartition(".")[2]), arguments
    name = _known(str(settings["UNet_class_name"]))
    stages, dimensions = len(settings["n_conv_per_stage_encoder"]), len(settings["patch_size"])
    features = [min(settings["UNet_base_num_features"] * 2**stage, settings["unet_max_num_features"]) for stage in range(stages)]
    return name, {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": _layer(f"Conv{dimensions}d"),
        "kernel_sizes": settings["conv_kernel_sizes"],
        "strides": settings["pool_op_kernel_sizes"],
        ("n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"): settings["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": _layer(f"InstanceNorm{dimensions}d"),
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _known(name: str) -> str:
    if name not in ARCHITECTURES:
        raise BundleInvalid(f"plans.json names the network {name}, which radnode cannot build → {', '.join(ARCHITECTURES)}")
    return name


def _layer(path: str | None) -> str | None:
    if path is None:
        return None
    name = path.rpartition(".")[2]
    if name not in _LAYERS or (path != name and not path.startswith("torch.nn.")):
        raise BundleInvalid(f"plans.json builds its network of {path}, which radnode does not know")
    return name
