"""Ensembles of MONAI (`EnsembleEvaluator`): several networks that see the same image.

They run as one network. Where the postprocessing begins with the mean of their answers, that network answers the mean: windows are
averaged before they are put together, which gives the same sums. Else it answers all of them as channels, one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from monai.bundle import ConfigParser

from node.errors import BundleInvalid
from node.inference.configuration import Component

NETWORKS: Final = "evaluator::networks"
PREDICTION_KEYS: Final = "evaluator::pred_keys"

_MERELY_TYPES: Final = frozenset("EnsureType CastToType ToTensor ToDevice Identity".split())


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What a configuration says of its networks."""

    keys: tuple[str, ...]
    """Under which each network's answer goes on."""
    mean: "Mean | None" = None
    """None: they are kept apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The first step of a postprocessing, where it is the mean of all answers."""

    item: Component
    output_key: str
    weights: torch.Tensor | None
    """(networks) or (networks, channels); None: all count the same."""


def read_ensemble(parser: ConfigParser, items: Sequence[Component]) -> Ensemble | None:
    """Answers the ensemble of a configuration, None where there is one network; `items` are the postprocessing."""
    if NETWORKS not in parser:
        return None
    networks = _networks(parser)
    keys = parser.get_parsed_content(PREDICTION_KEYS) if PREDICTION_KEYS in parser else None
    names = tuple(map(str, keys)) if keys is not None else tuple(f"pred_{index}" for index in range(len(networks)))
    if len(names) != len(networks):
        raise BundleInvalid(f"the ensemble has {len(networks)} networks and {len(names)} pred_keys → one key a network")
    first = next((item for item in items if item.name not in _MERELY_TYPES), None)
    if first is None or first.name != "MeanEnsemble":
        return Ensemble(names)
    transform = first.build(parser)
    is_of_all = sorted(map(str, transform.keys)) == sorted(names)
    weights = transform.ensemble.weights
    if not is_of_all or (weights is not None and weights.ndim > 2):
        return Ensemble(names)
    order = [list(map(str, transform.keys)).index(name) for name in names]
    return Ensemble(names, Mean(first, str(transform.output_key), None if weights is None else weights[order]))


def make_ensemble(parser: ConfigParser, ensemble: Ensemble) -> torch.nn.Module:
    """Answers the networks of a configuration as one, with the weights they were born with."""
    return Together(_networks(parser), ensemble.mean)


def _networks(parser: ConfigParser) -> list[torch.nn.Module]:
    found = parser.get_parsed_content(NETWORKS)
    networks = list(found) if isinstance(found, (list, tuple)) else [found]
    others = [type(one).__name__ for one in networks if not isinstance(one, torch.nn.Module)]
    if others or not networks:
        raise BundleInvalid(f"{NETWORKS.replace('::', '#')} holds {', '.join(others) or 'nothing'} and no networks → a list of them")
    if len({id(one) for one in networks}) < len(networks):
        raise BundleInvalid(
            f"{NETWORKS.replace('::', '#')} names one network several times: all would have the same weights "
            "→ a network of its own each, for example copy.deepcopy(@network_def)"
        )
    return networks


class Together(torch.nn.Module):
    """Several networks as one; its weights are called networks.0.…, networks.1.…, in the order of the configuration."""

    def __init__(self, networks: Sequence[torch.nn.Module], mean: Mean | None) -> None:
        """`mean` None: their answers become channels, one network after the other."""
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
        self.is_averaged = mean is not None
        shares = torch.ones(len(networks)) if mean is None or mean.weights is None else mean.weights.float()
        shares = shares / shares.mean(dim=0, keepdim=True) / len(networks)
        self.shares: torch.Tensor
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answers the weighted mean of the networks' answers, or all of them."""
        if not self.is_averaged:
            return torch.cat([network(image) for network in self.networks], dim=1)
        total: torch.Tensor | None = None
        for index, network in enumerate(self.networks):
            answer = network(image)
            share = self.shares[index].reshape(1, -1, *[1] * (answer.ndim - 2))
            total = answer * share if total is None else total + answer * share
        assert total is not None  # noqa: S101 - there is no ensemble of no networks
        return total

    def extra_repr(self) -> str:
        """Answers what an engine that was made of these networks is told apart by."""
        return f"is_averaged={self.is_averaged}, shares={self.shares.tolist()}"
