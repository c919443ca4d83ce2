"""What radnode takes from a MONAI bundle: how to prepare, what to run, how to end."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import Compose, MapTransform

from node.domain.bundle_inputs import IMAGE, channel_keys, finds_channels
from node.errors import BundleInvalid, NodeError
from node.inference.arrays import on_arrays
from node.inference.as_monai import AsMonai, build_postprocessing, decides, prediction_of, settle, usual_decision, why_not_ours
from node.inference.configuration import Component, components, importable, is_dictionary_form, network_key, open_configuration
from node.inference.ensemble import NETWORKS, make_ensemble, read_ensemble
from node.inference.postprocessing import PREDICTION, postprocessing_items, read_activation, read_tail
from node.inference.prompts import prompted, read_prompts, sliding_window_of
from node.inference.tail import Tail

SEGMENTATION: Final = "segmentation"
CLASSIFICATION: Final = "classification"
DETECTION: Final = "detection"
LANDMARKS: Final = "landmarks"
Answer = TypeVar("Answer")

_NO_NETWORK: Final = (
    "its configuration names no network_def, and its card no weights of format torchscript → radnode runs networks with what comes before "
    "and after them; a bundle that is a program of its own runs by `python -m monai.bundle run`"
)


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
    prompts: tuple[int, ...] = ()
    """What the network is asked for, where it answers only what it is asked."""
    as_monai: AsMonai | None = None
    """Of a segmentation whose pre- and postprocessing MONAI does, and why."""

    def finished(self, network: torch.nn.Module) -> torch.nn.Module:
        """Answers a network that has its weights as it is run."""
        return prompted(network, self.prompts) if self.prompts else network


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a bundle keeps its weights, by its own words."""

    path: Path
    key: str
    """Under which the file may hold the state of the network, `model` most of the time; some files hold the state alone."""


def read_recipe(folder: Path, *, task: str = SEGMENTATION, torchscript: Path | None = None, wanted: Sequence[int] = ()) -> Recipe:
    """Answers what the configuration in `folder` says. Nothing of its data sets, handlers or evaluators is evaluated.

    `torchscript` is a file that holds the whole network, where the configuration does not build it. `wanted` are the labels that a
    network is asked for, where it answers only what it is asked.
    A bundle is code: its configuration may hold expressions.

    Raises
    ------
    BundleInvalid
        When a part is missing or not understood.
    """
    return guarded(folder, lambda: _read(folder, task, torchscript, wanted))


def find_checkpoint(folder: Path) -> Checkpoint:
    """Answers where the weights of an unmodified bundle lie: what its CheckpointLoader reads, else models/model.pt."""
    return guarded(folder, lambda: _checkpoint(open_configuration(folder), folder))


def _read(folder: Path, task: str, torchscript: Path | None, wanted: Sequence[int]) -> Recipe:
    parser = open_configuration(folder)
    key = network_key(parser)
    has_jit = key is not None and "jit.load" in str(parser[key])
    if key is None and torchscript is None and NETWORKS not in parser:
        raise BundleInvalid(f"{folder.name}: {_NO_NETWORK}")
    whole = torchscript if not has_jit else None
    preprocessing, image_key = _preprocessing(parser)
    inferer = parser.get_parsed_content("inferer") if parser.get("inferer") and task != DETECTION else SimpleInferer()
    recipe = Recipe(
        preprocessing=preprocessing,
        inferer=inferer,
        tail=Tail(),
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
    return _with_ending(recipe, parser, wanted) if task == SEGMENTATION else recipe


def _with_ending(recipe: Recipe, parser: ConfigParser, wanted: Sequence[int]) -> Recipe:
    """Answers the recipe of a segmentation with what comes after its network: as radnode does it, else as MONAI does."""
    items = postprocessing_items(parser)
    prompts = read_prompts(parser, items, wanted)
    if prompts:
        recipe = replace(recipe, prompts=prompts, inferer=sliding_window_of(recipe.inferer, prompts))  # type: ignore[arg-type]
    ensemble = read_ensemble(parser, items)
    mean = ensemble.mean if ensemble is not None else None
    inverts = any(item.name == "Invert" for item in items)
    keys = channel_keys(parser.get())
    left = [item for item in items if mean is None or item is not mean.item]
    why, tail = "", Tail()
    try:
        tail = read_tail(parser, left, prompts=prompts)
    except BundleInvalid as refusal:
        if prompts:
            raise
        why = str(refusal).partition(" → ")[0]
    if ensemble is not None and mean is None:
        why = f"the answers of {len(ensemble.keys)} networks meet after the inferer"
    elif keys:
        why = f"it loads {', '.join(keys)} apart"
    why = why or why_not_ours(recipe.preprocessing, tail, inverts=inverts)
    if not why:
        return replace(recipe, tail=tail)
    if prompts:
        raise BundleInvalid(f"a network that takes prompts is run by radnode itself, and it cannot here: {why}")
    answers = (PREDICTION,) if ensemble is None else ensemble.keys if mean is None else (mean.output_key,)
    whole = settle([item.build(parser) for item in components(parser, "preprocessing")]) if keys else recipe.preprocessing
    try:
        post = build_postprocessing(parser, left, answers)
    except NodeError:
        raise
    except Exception as error:
        # whatever a bundle's own transform raises when it is made: both reasons are told
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        raise BundleInvalid(f"{why}; MONAI cannot build it either: {type(cause).__name__}: {cause}") from error
    can_decide = decides(left, post.transforms)
    return replace(
        recipe,
        as_monai=AsMonai(
            reason=why,
            preprocessing=whole,
            postprocessing=post,
            image_key=IMAGE if keys else recipe.image_key,
            channel_keys=keys,
            prediction_keys=answers,
            prediction=prediction_of(parser, items, answers),
            inverts=inverts,
            decision=None if can_decide else usual_decision(post.transforms),
        ),
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
    ensemble = read_ensemble(parser, postprocessing_items(parser))
    if ensemble is not None:
        return make_ensemble(parser, ensemble)
    network = parser.get_parsed_content(str(network_key(parser)))
    if not isinstance(network, torch.nn.Module):
        raise BundleInvalid(f"{network_key(parser)} of {folder.name} is a {type(network).__name__} and no network")
    return network


def _preprocessing(parser: ConfigParser) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], str]:
    """Answers the preprocessing of the image, and under which key it works."""
    if not parser.get("preprocessing"):
        return Compose([]), IMAGE
    built = [(item, item.build(parser)) for item in components(parser, "preprocessing")]
    arrays = [item for item, transform in built if _takes_arrays(item, transform)]
    if arrays and len(arrays) == len(built):
        return on_arrays([transform for _, transform in built], has_channels=finds_channels(parser.get())), IMAGE
    if arrays:
        told = arrays[0].told
        raise BundleInvalid(f"preprocessing holds {told}, which takes no dictionary as the others do → its dictionary form, {told}d")
    keys = [_keys_of(transform) for _, transform in built]
    image_key = IMAGE if not any(keys) or any(IMAGE in of for of in keys) else next(of[0] for of in keys if of)
    kept = []
    for (_, transform), of in zip(built, keys, strict=True):
        if image_key in of or not of:
            if len(of) > 1:
                transform.allow_missing_keys = True  # a label or the like: there is none
            kept.append(transform)
    return Compose(kept), image_key


def _takes_arrays(item: Component, transform: object) -> bool:
    is_dictionary = isinstance(transform, (MapTransform, Compose)) or is_dictionary_form(item.told)
    return type(transform).__module__.startswith("monai.") and not is_dictionary


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
