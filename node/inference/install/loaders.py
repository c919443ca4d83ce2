"""Which files of weights a bundle loads, and into what, by the raw text of its configuration: one network, an ensemble, or its own way."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from node.errors import BundleInvalid

_REFERENCE: Final = re.compile(r"@([A-Za-z_]\w*)")
_INDEX: Final = re.compile(r"@\w+(?:\[|#|::)(\d+)")


@dataclass(frozen=True, slots=True)
class _Loader:
    path: str
    """The text that says which file."""
    networks: tuple[str, ...]
    """What the text says it is loaded into."""
    index: int
    """Where that is one of a list: which."""


def member_files(configuration: Mapping[str, Any], weights: Sequence[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """Answers the file of weights of each network of an ensemble, in the order of its networks; nothing where there is one network.

    Raises BundleInvalid where that cannot be told.
    """
    evaluator = configuration.get("evaluator")
    networks = evaluator.get("networks") if isinstance(evaluator, Mapping) else None
    if networks is None:
        return ()
    names = [name for text in _followed(networks, configuration) for name in _REFERENCE.findall(text)]
    loaders = list(_loaders(configuration))
    if len(names) > 1 and all(any(name in loader.networks for loader in loaders) for name in names):
        loaders = [next(loader for loader in loaders if name in loader.networks) for name in names]
    else:
        loaders.sort(key=lambda loader: loader.index)  # of one list of networks; without indices they stay in their order
    if len(loaders) < 2:
        raise BundleInvalid(
            f"the evaluator runs several networks and {len(loaders)} CheckpointLoader says where weights are → a loader for each network"
        )
    return tuple(_file(loader, configuration, weights) for loader in loaders)


def own_loader(configuration: Mapping[str, Any], file: PurePosixPath) -> str:
    """Answers the id of the expression by which a bundle puts a file into its network by a function of its own, '' where it has none."""
    if list(_loaders(configuration)):
        return ""
    steps = configuration.get("initialize")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        text = str(step)
        names = _REFERENCE.findall(text)
        if (
            text.startswith("$")
            and file.name in " ".join(_followed(text, configuration))
            and {"network", "network_def", "net"} & set(names)
        ):
            return f"initialize::{index}"
    return ""


def _file(loader: _Loader, configuration: Mapping[str, Any], weights: Sequence[PurePosixPath]) -> PurePosixPath:
    told = " ".join(_followed(loader.path, configuration))
    found = sorted((name for name in weights if name.name in told), key=lambda name: -len(name.name))
    if not found:
        raise BundleInvalid(f"the weights {loader.path!r} of the ensemble are not in this bundle → put the file there, install again")
    return found[0]


def _followed(value: Any, configuration: Mapping[str, Any], depth: int = 3) -> Iterator[str]:
    """Yields a text, and what the names in it stand for where that is text."""
    if isinstance(value, list):
        for item in value:
            yield from _followed(item, configuration, depth)
    elif isinstance(value, str):
        yield value
        for name in _REFERENCE.findall(value):
            if depth and isinstance(configuration.get(name), (str, list)) and not str(configuration[name]).startswith("$copy"):
                yield from _followed(configuration[name], configuration, depth - 1)


def _loaders(value: Any) -> Iterator[_Loader]:
    if isinstance(value, Mapping):
        if str(value.get("_target_", "")).rpartition(".")[2] == "CheckpointLoader":
            into = value.get("load_dict")
            texts = [str(one) for one in into.values()] if isinstance(into, Mapping) else [str(into)]
            index = next((int(found[1]) for text in texts if (found := _INDEX.search(text))), 0)
            yield _Loader(str(value.get("load_path", "")), tuple(name for text in texts for name in _REFERENCE.findall(text)), index)
            return
        for item in value.values():
            yield from _loaders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _loaders(item)
