"""A MONAI bundle as a model of ours: its preprocessing, network and inferer run as configured; its input and tail are ours.

The volume comes from memory, not from a file, and the scores go to `restore` and not through Invertd: transforms of the bundle
that read, invert, discretise or save are recognised and left out; what is not recognised is refused by name.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from safetensors import SafetensorError
from safetensors.torch import load_file

from node.domain.findings import Findings
from node.domain.modelcard import ModelCard, WeightsFile
from node.domain.result import Provenance
from node.domain.volume import LabelMap, Scores, Volume
from node.errors import BundleInvalid, NodeError
from node.inference.engines import Engine
from node.inference.engines.torch_engine import TorchEngine
from node.inference.islands import fill_holes, keep_largest_component
from node.inference.restore import restore_labels, restore_probability
from node.inference.weights import require_weights

IMAGE: Final = "image"
PREDICTION: Final = "pred"

_READING: Final = frozenset({"LoadImaged", "EnsureChannelFirstd"})
_OURS: Final = frozenset({"Invertd", "SaveImaged", "EnsureTyped", "CopyItemsd"})
_RAS_FROM_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Tail:
    """What the bundle does to the network's output, as far as we know it."""

    activation: str
    """softmax, sigmoid or nothing: what the output goes through before it is brought back to the source grid."""
    is_probability: bool
    """A single channel, cut at one half."""
    largest_component_of: tuple[int, ...]
    """Labels of which only the largest connected component is kept."""
    holes_filled_in: tuple[int, ...]
    """Labels whose enclosed holes become that label, after that."""

    def activate(self, values: torch.Tensor) -> None:
        """Changes (channels, i, j, k) in place."""
        if self.activation == "sigmoid":
            values.sigmoid_()
        elif self.activation == "softmax":
            for plane in values.unbind(dim=1):
                plane.copy_(plane.softmax(dim=0))


class Bundle:
    """A loaded model, warm."""

    def __init__(self, card: ModelCard, engine: Engine, parts: "_Parts") -> None:
        """Use `load_bundle`."""
        self.card = card
        self._engine = engine
        self._parts = parts

    @property
    def provenance(self) -> Provenance:
        """What made the scores."""
        return Provenance(
            engine=self._engine.describe(),
            weights_sha256=tuple(weights.sha256 for weights in self.card.weights),
            device_uid=self.card.device_uid,
        )

    def predict(self, images: Sequence[Volume], progress: Callable[[float], None] = lambda _: None) -> Findings:
        """Answers what the network outlines on the grid of the first of `images`."""
        progress(0.0)
        began = time.perf_counter()
        scores = self.score(images)
        inferred = time.perf_counter()
        label_map = self.tail(LabelMap(restore_labels(scores, images[0].source), images[0].source))
        stages = {"network": inferred - began, "restore": time.perf_counter() - inferred}
        progress(1.0)
        probability = partial(restore_probability, scores, images[0].source) if scores.is_probability else None
        return Findings(label_map, probability=probability, stages=stages)

    def score(self, images: Sequence[Volume]) -> Scores:
        """Answers the scores of every class on the grid that the bundle's preprocessing makes."""
        (volume,) = images
        prepared: MetaTensor = self._parts.preprocessing({IMAGE: as_meta_tensor(volume)})[IMAGE]
        affine = np.asarray(prepared.affine, dtype=np.float64)
        with torch.inference_mode():
            output = self._parts.inferer(prepared.as_tensor()[None].float(), self._engine.infer)
            values = torch.as_tensor(output)[0].float()
            self._parts.tail.activate(values)
        return Scores(values.numpy(), _RAS_FROM_LPS @ affine, is_probability=self._parts.tail.is_probability)

    def tail(self, label_map: LabelMap) -> LabelMap:
        """Answers the labels after what the bundle's postprocessing does to labels."""
        labels = label_map.labels
        for label in self._parts.tail.largest_component_of:
            labels = keep_largest_component(labels, label)
        for label in self._parts.tail.holes_filled_in:
            labels = fill_holes(labels, label)
        return LabelMap(labels, label_map.source)

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    inferer: Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]
    tail: Tail


def load_bundle(folder: Path, card: ModelCard, *, device: str = "cpu", threads: int = 0) -> Bundle:
    """Loads a bundle with the weights that its card names.

    A bundle is code: its configuration may hold expressions. Only bundles in the node's own models folder are loaded.

    Raises
    ------
    WeightsMissing, WeightsMismatch
        Before anything of the weights is read.
    BundleInvalid
        When a part is missing or not understood.
    """
    require_weights(card, folder)
    try:
        with _importable(folder):
            parser = _read(folder)
            network = _network(parser, card, folder)
            parts = _parse(parser)
            precision = str(parser.get("cpu_precision", "fp32"))
    except NodeError:
        raise
    except Exception as error:
        # A configuration can raise anything; whatever it was, the bundle is at fault and the cause is chained.
        raise BundleInvalid(f"the bundle {folder.name} cannot be built: {type(error).__name__}: {error}") from error
    return Bundle(card, TorchEngine(network, device=device, threads=threads, cpu_precision=precision), parts)


def _read(folder: Path) -> ConfigParser:
    configuration, metadata = folder / "configs" / "inference.json", folder / "configs" / "metadata.json"
    for path in (configuration, metadata):
        if not path.is_file():
            raise BundleInvalid(f"{path} is absent: a MONAI bundle has configs/inference.json and configs/metadata.json")
    parser = ConfigParser()
    parser.read_config(configuration)
    parser.read_meta(metadata)
    parser["bundle_root"] = str(folder)
    return parser


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the bundle's expressions import its own `scripts`, as MONAI does, and forgets them: bundles share that name."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
            del sys.modules[name]


def _network(parser: ConfigParser, card: ModelCard, folder: Path) -> torch.nn.Module:
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    weights = card.weights[0]
    if weights.format == "safetensors":
        if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
            raise BundleInvalid(f"network_def of {folder.name} loads TorchScript, its card names no weights of format torchscript")
        _load_safetensors(network, folder / weights.file, weights, parser.get("weights_key_map", {}))
    return network


def _load_safetensors(network: torch.nn.Module, path: Path, weights: WeightsFile, key_map: Mapping[str, str]) -> None:
    """`key_map` maps a prefix of the file's keys to the prefix that the network uses."""
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise BundleInvalid(f"{path} is no safetensors file: pickles are never loaded") from error
    renamed = {_renamed(key, key_map): value for key, value in state.items()}
    try:
        network.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise BundleInvalid(f"{weights.file} does not fit network_def: {error}") from error


def _renamed(key: str, key_map: Mapping[str, str]) -> str:
    for old, new in key_map.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _parse(parser: ConfigParser) -> _Parts:
    from monai.transforms import Compose

    preprocessing = parser.get_parsed_content("preprocessing")
    transforms = preprocessing.transforms if isinstance(preprocessing, Compose) else [preprocessing]
    ours = Compose([transform for transform in transforms if type(transform).__name__ not in _READING])
    inferer = parser.get_parsed_content("inferer") if "inferer" in parser else SimpleInferer()
    return _Parts(ours, inferer, _tail(parser.get("postprocessing", {}).get("transforms", [])))


def _tail(transforms: Sequence[Mapping[str, Any]]) -> Tail:
    activation = ""
    is_probability = is_inverted = False
    largest: tuple[int, ...] = ()
    filled: tuple[int, ...] = ()
    for transform in transforms:
        name = str(transform.get("_target_", "")).rpartition(".")[2]
        if name in _OURS or transform.get("_disabled_") is True:
            is_inverted |= name == "Invertd"
        elif name == "Activationsd" and transform.get("sigmoid"):
            activation = "sigmoid"
        elif name == "Activationsd" and transform.get("softmax"):
            activation = "" if is_inverted else "softmax"  # softmax keeps the order of the classes, but not between voxels
        elif name == "AsDiscreted" and transform.get("argmax"):
            is_probability = False
        elif name == "AsDiscreted" and transform.get("threshold") == 0.5:
            is_probability = True
        elif name == "KeepLargestConnectedComponentd" and not filled:
            largest = _labels_of(transform)
        elif name == "FillHolesd":
            filled = _labels_of(transform)
        else:
            raise BundleInvalid(f"postprocessing holds {name or 'something nameless'}, which radnode cannot do yet")
    return Tail(activation, is_probability, largest, filled)


def _labels_of(transform: Mapping[str, Any]) -> tuple[int, ...]:
    applied = transform.get("applied_labels", [1])
    return (applied,) if isinstance(applied, int) else tuple(applied)


def as_meta_tensor(volume: Volume) -> MetaTensor:
    """Answers a volume as MONAI has it: shape (1, slices, rows, columns), the affine in RAS millimetres.

    `meta["modality"]` tells the bundle's own transforms what the values are (CT: Hounsfield units).
    """
    affine = torch.from_numpy(_RAS_FROM_LPS @ volume.geometry.patient_from_voxel)
    return MetaTensor(torch.from_numpy(volume.voxels[None]), affine=affine, meta={"modality": volume.modality})
