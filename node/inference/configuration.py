"""The files of a MONAI bundle, unmodified, as a parser that evaluates only what it is asked for.

What a Model Zoo bundle holds beside a model (paths of data sets, loaders, handlers, evaluators, savers) is never evaluated here.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser

from node.errors import BundleInvalid
from node.inference.configuration_files import OVERRIDES
from node.inference.plain_pickles import numpy_globals

NAMES: Final = ("inference", "infer", "predict")
SUFFIXES: Final = (".json", ".yaml", ".yml")

NETWORKS: Final = ("network_def", "net_def", "model_def", "network", "net", "model")
"""Where bundles say what their network is, the plain network first."""

READERS: Final = frozenset({"LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst"})
"""Transforms that read files or find the channels: the volume comes from DICOM, its channels first."""

_CUDA_DEVICE: Final = re.compile(r"torch\.device\(\s*(['\"])cuda(:\d+)?\1\s*\)")
_REFERENCE: Final = re.compile(r"^\$?@([A-Za-z_][\w:#]*)\s*$")

_OBSOLETE: Final[Mapping[str, frozenset[str]]] = {"SwinUNETR": frozenset({"img_size"})}
"""Arguments that MONAI has dropped since some bundles of the Model Zoo were written, and that changed nothing."""


_DROPPED_BY_NUMPY: Final = {
    "product": np.prod,
    "cumproduct": np.cumprod,
    "alltrue": np.all,
    "sometrue": np.any,
    "float_": np.float64,
    "Inf": np.inf,
}
"""Names that numpy 2 has dropped since some bundles of the Model Zoo were written."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Lets the bundle's expressions import its own `scripts`, as MONAI does, and forgets them: bundles share that name.

    They are compiled from what was trusted: compiled files beside them are neither read nor written. What they load with torch may hold
    arrays of numpy (DiNTS: search_code.pt), as it could when they were written; and numpy has the names that it had.
    """
    dropped = {name: value for name, value in _DROPPED_BY_NUMPY.items() if name not in vars(np)}
    paths = [str(folder), str(folder / "scripts")]
    before, bytecode = set(sys.modules), (sys.dont_write_bytecode, sys.pycache_prefix)
    sys.dont_write_bytecode, sys.pycache_prefix = True, str(folder / "no-bytecode")
    sys.path[:0] = paths
    vars(np).update(dropped)
    try:
        with torch.serialization.safe_globals(numpy_globals()):
            yield
    finally:
        sys.dont_write_bytecode, sys.pycache_prefix = bytecode
        for name in dropped:
            vars(np).pop(name, None)
        for path in paths:
            sys.path.remove(path)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}/") or name.partition(".")[0] == "scripts":
                del sys.modules[name]


def open_configuration(folder: Path) -> ConfigParser:
    """Answers the inference configuration of a bundle with its metadata; `bundle_root` is its folder, devices are the CPU.

    Raises BundleInvalid when there is none, or several and none under the usual name.
    """
    metadata = folder / "configs" / "metadata.json"
    configuration = configuration_file(folder)
    if not metadata.is_file():
        raise BundleInvalid(f"{metadata} is absent: a MONAI bundle has a configuration and metadata.json in configs")
    parser = ConfigParser()
    parser.read_config(configuration)
    parser.read_meta(metadata)
    content = parser.get()
    if not isinstance(content, dict):
        raise BundleInvalid(f"{configuration} holds no keys and values")
    for id_, value in _overrides(folder).items():
        parser[id_.replace("#", "::")] = value
    content = parser.get()
    prepared = _prepared(content)
    prepared["bundle_root"] = str(folder)
    prepared["device"] = "$torch.device('cpu')"
    parser.set(prepared)
    return parser


def _overrides(folder: Path) -> dict[str, Any]:
    path = folder / "configs" / OVERRIDES
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def configuration_file(folder: Path) -> Path:
    """Answers the file that says how the bundle infers."""
    configs = folder / "configs"
    for name in NAMES:
        for suffix in SUFFIXES:
            if (configs / f"{name}{suffix}").is_file():
                return configs / f"{name}{suffix}"
    found = sorted(
        path
        for path in configs.glob("*infer*")
        if path.suffix in SUFFIXES and not any(word in path.stem for word in ("trt", "gpu", "evaluate"))
    )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise BundleInvalid(f"{configs} holds {names} and no inference.json → name the one to use inference{found[0].suffix}")
    raise BundleInvalid(f"{configs} holds no inference.json (or .yaml): a MONAI bundle says there how it infers")


def network_key(parser: ConfigParser) -> str | None:
    """Answers where the configuration says what the network is; None where it does not (TorchScript alone)."""
    return next((key for key in NETWORKS if parser.get(key)), None)


@dataclass(frozen=True, slots=True)
class Component:
    """An item of a list of components: what it is called and where it stands."""

    name: str
    """Of the class, without its module and without the `d` of dictionary transforms."""
    told: str
    """As the bundle calls it."""
    id: str
    value: Any = None
    """The object itself, where the list was an expression."""

    def build(self, parser: ConfigParser) -> Any:
        """Answers the object."""
        return self.value if self.value is not None else parser.get_parsed_content(self.id)


def components(parser: ConfigParser, id_: str) -> list[Component]:
    """Answers the items of a list, or of a Compose, that are not disabled; references are followed, expressions evaluated."""
    raw = parser[id_]
    if isinstance(raw, str) and (reference := _REFERENCE.match(raw)):
        return components(parser, reference[1].replace("#", "::"))
    if isinstance(raw, dict) and "transforms" in raw:
        return components(parser, f"{id_}::transforms")
    if isinstance(raw, dict):
        return _listed(parser, [id_])
    if isinstance(raw, list):
        return _listed(parser, [f"{id_}::{index}" for index in range(len(raw))])
    value = parser.get_parsed_content(id_)
    values = value if isinstance(value, (list, tuple)) else getattr(value, "transforms", [value])
    return [_of_object(item, id_) for item in values if item is not None]


def base_name(name: str) -> str:
    """Answers the name of a transform without module and without `d`, `D` or `Dict` at its end."""
    return re.sub(r"(?<=[a-z0-9])(d|D|Dict)$", "", name.rpartition(".")[2])


def is_dictionary_form(name: str) -> bool:
    """Answers whether a transform of this name works on dictionaries, by MONAI's custom: its name ends in d. A Pad does so by chance."""
    return re.search(r"(?<!Pa)d$|D$|Dict$", name) is not None


def _listed(parser: ConfigParser, ids: list[str]) -> list[Component]:
    found = []
    for id_ in ids:
        raw = parser[id_]
        if isinstance(raw, dict) and "_target_" in raw:
            disabled = parser.get_parsed_content(f"{id_}::_disabled_") if "_disabled_" in raw else False
            if str(disabled).strip().lower() != "true":
                target = str(raw["_target_"])
                found.append(Component(base_name(target), target.rpartition(".")[2], id_))
        else:
            value = parser.get_parsed_content(id_)
            found += [_of_object(item, id_) for item in (value if isinstance(value, list) else [value]) if item is not None]
    return found


def _of_object(value: Any, id_: str) -> Component:
    name = type(value).__name__
    return Component(base_name(name), name, id_, value)


def _prepared(value: Any) -> Any:
    """Answers the configuration with the CPU for CUDA, without arguments that MONAI dropped, and with nothing to download."""
    if isinstance(value, str) and value.startswith("$") and not torch.cuda.is_available():
        return _CUDA_DEVICE.sub("torch.device('cpu')", value)
    if isinstance(value, list):
        return [_prepared(item) for item in value]
    if not isinstance(value, dict):
        return value
    target = base_name(str(value.get("_target_", "")))
    prepared = {key: _prepared(item) for key, item in value.items() if key not in _OBSOLETE.get(target, ())}
    if target in READERS:
        prepared["_disabled_"] = True
    if "_target_" in value and prepared.get("pretrained") is True:
        prepared["pretrained"] = False  # weights come with the bundle: nothing is fetched from elsewhere
    return prepared
