"""What radnode takes from a MONAI bundle: how to prepare, what to run, how to end."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import Compose, MapTransform

from node.errors import BundleInvalid, NodeError
from node.inference.configuration import components, importable, network_key, open_configuration
from node.inference.postprocessing import read_activation, read_tail
from node.inference.tail import Tail

SEGMENTATION: Final = "segmentation"
CLASSIFICATION: Final = "classification"
DETECTION: Final = "detection"
LANDMARKS: Final = "landmarks"
IMAGE: Final = "image"

Answer = TypeVar("Answer")

_NO_NETWORK: Final = "its configuration names no network_def, and its card no weights of format torchscript"


def _unchanged(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True, slots=True)
class Recipe:
    """A bundle's configuration, understood."""

    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    """A Compose of MONAI without what reads files: {image_key: MetaTensor (channels, i, j, k)} to the same."""
    inferer: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]
    """An inferer of MONAI: (1, channels, i, j, k) and the network to the output."""
    tail: Tail
    make_network: Callable[[], torch.nn.Module]
    """The network with the weights it was born with, anew at each call."""
    loads_torchscript: bool
    """The network brings its weights along: nothing is to be loaded into it."""
    image_key: str = IMAGE
    in_channels: int = 1
    """What the images hold before preprocessing."""
    spatial_dims: int = 3
    task: str = SEGMENTATION
    activation: Callable[[torch.Tensor], torch.Tensor] = _unchanged
    """Of a classifier: its answer (channels,) to probabilities."""
    cpu_precision: str = "fp32"
    weights_key_map: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of keys in the weights file, and those that the network uses for them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a bundle keeps its weights, by its own words."""

    path: Path
    key: str
    """Under which the file may hold the state of the network, `model` most of the time; some files hold the state alone."""


def read_recipe(folder: Path, *, task: str = SEGMENTATION, torchscript: Path | None = None) -> Recipe:
    """Answers what the configuration in `folder` says. Nothing of its data sets, handlers or evaluators is evaluated.

    `torchscript` is a file that holds the whole network, where the configuration does not build it.
    A bundle is code: its configuration may hold expressions.

    Raises
    ------
    BundleInvalid
        When a part is missing or not understood.
    """
    return guarded(folder, lambda: _read(folder, task, torchscript))


def find_checkpoint(folder: Path) -> Checkpoint:
    """Answers where the weights of an unmodified bundle lie: what its CheckpointLoader reads, else models/model.pt."""
    return guarded(folder, lambda: _checkpoint(open_configuration(folder), folder))


def _read(folder: Path, task: str, torchscript: Path | None) -> Recipe:
    parser = open_configuration(folder)
    key = network_key(parser)
    has_jit = key is not None and "jit.load" in str(parser[key])
    if key is None and torchscript is None:
        raise BundleInvalid(f"{folder.name}: {_NO_NETWORK}")
    whole = torchscript if not has_jit else None
    preprocessing, image_key = _preprocessing(parser)
    return Recipe(
        preprocessing=preprocessing,
        inferer=parser.get_parsed_content("inferer") if parser.get("inferer") and task != DETECTION else SimpleInferer(),
        tail=read_tail(parser) if task == SEGMENTATION else Tail(),
        activation=read_activation(parser) if task == CLASSIFICATION else _unchanged,
        make_network=lambda: guarded(folder, lambda: _network(folder, whole)),
        loads_torchscript=has_jit or whole is not None,
        image_key=image_key,
        in_channels=_in_channels(parser, key),
        spatial_dims=_spatial_dims(parser, key),
        task=task,
        cpu_precision=str(parser.get("cpu_precision", "fp32")),
        weights_key_map=dict(parser.get("weights_key_map", {})),
    )


def guarded(folder: Path, work: Callable[[], Answer]) -> Answer:
    """Answers what `work` does with a bundle's configuration; whatever it raises is the bundle's fault."""
    try:
        with importable(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names and defaults that MONAI has changed since the bundle was written
            return work()
    except NodeError:
        raise
    except Exception as error:
        # A configuration can raise anything; whatever it was, the bundle is at fault and the cause is chained.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise BundleInvalid(f"the bundle {folder.name} cannot be built: {type(cause).__name__}: {cause}") from error


def _network(folder: Path, torchscript: Path | None) -> torch.nn.Module:
    if torchscript is not None:
        script: torch.nn.Module = torch.jit.load(str(torchscript), map_location="cpu")  # type: ignore[no-untyped-call]
        return script
    parser = open_configuration(folder)
    network = parser.get_parsed_content(str(network_key(parser)))
    if not isinstance(network, torch.nn.Module):
        raise BundleInvalid(f"{network_key(parser)} of {folder.name} is a {type(network).__name__} and no network")
    return network


def _preprocessing(parser: ConfigParser) -> tuple[Compose, str]:
    """Answers the preprocessing of the image, and under which key it works."""
    if not parser.get("preprocessing"):
        return Compose([]), IMAGE
    built = [(item, item.build(parser)) for item in components(parser, "preprocessing")]
    for item, transform in built:
        if type(transform).__module__.startswith("monai.") and not isinstance(transform, (MapTransform, Compose)):
            raise BundleInvalid(f"preprocessing holds {item.told}, which takes no dictionary → its dictionary form, {item.told}d")
    keys = [_keys_of(transform) for _, transform in built]
    image_key = IMAGE if not any(keys) or any(IMAGE in of for of in keys) else next(of[0] for of in keys if of)
    kept = []
    for (_, transform), of in zip(built, keys, strict=True):
        if image_key in of or not of:
            if len(of) > 1:
                transform.allow_missing_keys = True  # a label or the like: there is none
            kept.append(transform)
    return Compose(kept), image_key


def _keys_of(transform: object) -> tuple[str, ...]:
    """Answers what a transform works on; a bundle's own may hold one word, where MONAI's hold several."""
    keys = getattr(transform, "keys", ())
    return (keys,) if isinstance(keys, str) else tuple(map(str, keys)) if isinstance(keys, (list, tuple)) else ()


def _in_channels(parser: ConfigParser, key: str | None) -> int:
    inputs = parser.get("_meta_::network_data_format::inputs", None) or {}
    first: Any = next(iter(inputs.values()), {}) if isinstance(inputs, dict) else {}
    if isinstance(first, dict) and isinstance(first.get("num_channels"), int):
        return int(first["num_channels"])
    return _argument(parser, key, "in_channels", 1)


def _spatial_dims(parser: ConfigParser, key: str | None) -> int:
    return _argument(parser, key, "spatial_dims", 3)


def _argument(parser: ConfigParser, key: str | None, name: str, default: int) -> int:
    raw = parser[key] if key is not None else None
    if isinstance(raw, dict) and name in raw:
        return int(parser.get_parsed_content(f"{key}::{name}"))
    return default


def _checkpoint(parser: ConfigParser, folder: Path) -> Checkpoint:
    """Loaders stand by themselves, among the handlers, or anywhere: the first whose file is the network's."""
    for id_ in _loaders(parser.get(), ""):
        load_dict = parser[f"{id_}::load_dict"] if "load_dict" in parser[id_] else {"model": ""}
        path = Path(str(parser.get_parsed_content(f"{id_}::load_path")))
        name = next(iter(load_dict), "model") if isinstance(load_dict, dict) else "model"
        return Checkpoint(path if path.is_absolute() else folder / path, str(name))
    return Checkpoint(folder / "models" / "model.pt", "model")


def _loaders(value: Any, id_: str) -> list[str]:
    """Answers the ids of every CheckpointLoader of a configuration."""
    if isinstance(value, dict):
        if str(value.get("_target_", "")).rpartition(".")[2] == "CheckpointLoader":
            return [id_]
        return [found for key, item in value.items() for found in _loaders(item, f"{id_}::{key}" if id_ else str(key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _loaders(item, f"{id_}::{index}")]
    return []
