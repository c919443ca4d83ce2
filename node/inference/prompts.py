"""Networks that are told what to look for (VISTA3D): without clicks, asked for the structures that the card names.

Such a network answers one channel a prompt, and background is where none of them is positive. Before the channels a channel of zeros is
put, so that the class with the highest score decides as it does everywhere else.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer

from node.errors import BundleInvalid
from node.inference.configuration import Component
from node.inference.tail import LARGEST_VALUE, Decided, LabelStep

POST: Final = "VistaPostTransform"
"""The transform of MONAI that makes labels of a prompted network's answer."""

EVERYTHING: Final = ("everything_labels", "evaluator::hyper_kwargs::everything_labels")
"""Where a bundle says what it looks for when nobody asks for anything."""

_ASKED: Final[tuple[str, ...]] = ("sliding_window_inference", "SlidingWindowInferer", "SlidingWindowInfererAdapt")
"""What a bundle's inferer may call of MONAI."""


class _Asked(Exception):
    """Carries what an inferer asked of MONAI's sliding window."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = options


def read_prompts(parser: ConfigParser, items: Sequence[Component], wanted: Sequence[int]) -> tuple[int, ...]:
    """Answers the classes that a network is asked for: `wanted`, else all that the bundle looks for; nothing where it needs no prompts."""
    if not any(item.name == POST for item in items):
        return ()
    given = list(wanted)
    if not given:
        key = next((key for key in EVERYTHING if key in parser), None)
        given = list(parser.get_parsed_content(key)) if key is not None else []
    prompts = tuple(sorted({int(one) for one in given}))
    if not prompts:
        raise BundleInvalid(
            "the network has to be told what to look for, and neither card nor configuration names a label → [[segments]] in card.toml"
        )
    if prompts[0] < 1 or prompts[-1] > LARGEST_VALUE or len(prompts) > LARGEST_VALUE:
        raise BundleInvalid(f"labels to look for lie between {prompts[0]} and {prompts[-1]} → 1 to {LARGEST_VALUE}")
    return prompts


def prompted(network: torch.nn.Module, prompts: Sequence[int]) -> torch.nn.Module:
    """Answers a network that always looks for the same classes."""
    return Prompted(network, prompts)


def label_step(name: str, prompts: Sequence[int]) -> LabelStep:
    """Answers the step from the number of a channel to the label that was asked for."""
    table = np.zeros(LARGEST_VALUE + 1, dtype=np.uint8)
    table[1 : len(prompts) + 1] = prompts

    def apply(decided: Decided) -> Decided:
        return replace(decided, values=table[decided.values])

    return LabelStep(name, apply)


def sliding_window_of(inferer: Any, prompts: Sequence[int]) -> SlidingWindowInferer:
    """Answers the sliding window that a bundle's own inferer lays; it is asked itself, with stand-ins for what it calls of MONAI.

    Raises BundleInvalid where it does not work by MONAI's sliding window.
    """
    names: dict[str, Any] = getattr(type(inferer).__call__, "__globals__", {})
    originals: dict[str, Any] = {name: names[name] for name in _ASKED if name in names}
    names.update({name: _StandIn(original) for name, original in originals.items()})
    try:
        inferer(
            torch.zeros(1, 1, 8, 8, 8), _Stub(),
            point_coords=None, point_labels=None, class_vector=torch.tensor(list(prompts))[:, None], labels=None, label_set=None,
        )  # fmt: skip
    except _Asked as answer:
        options = answer.options
    else:
        raise BundleInvalid(
            f"{type(inferer).__name__} does not use MONAI's sliding window: radnode cannot ask it for labels without clicks "
            "→ an inferer that calls monai.inferers.sliding_window_inference, or `python -m monai.bundle run`"
        )
    finally:
        names.update(originals)
    kept = ("roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval")
    return SlidingWindowInferer(**{name: options[name] for name in kept if name in options})


class _StandIn:
    """In the place of MONAI's function or class for sliding windows: raises `_Asked` when it would run."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._made_of: dict[str, Any] | None = None

    def __call__(self, *given: Any, **named: Any) -> "_StandIn":
        if inspect.isclass(self._original) and self._made_of is None:
            made = _StandIn(self._original)
            made._made_of = dict(inspect.signature(self._original).bind(*given, **named).arguments)
            return made
        raise _Asked(self._made_of if self._made_of is not None else inspect.signature(self._original).bind(*given, **named).arguments)


class _Stub(torch.nn.Module):
    """What a bundle's inferer looks at before it lays windows."""

    def __init__(self) -> None:
        super().__init__()
        self.point_head = torch.nn.Module()
        self.point_head.last_supported = LARGEST_VALUE + 1  # type: ignore[assignment]


class Prompted(torch.nn.Module):
    """A network with its prompts: an image to scores, background first."""

    def __init__(self, network: torch.nn.Module, prompts: Sequence[int]) -> None:
        """Use `prompted`."""
        super().__init__()
        self.network = network
        self.prompts: torch.Tensor
        self.register_buffer("prompts", torch.tensor(list(prompts), dtype=torch.long)[:, None], persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Answers (windows, 1 + prompts, i, j, k)."""
        scores = self.network(image, class_vector=self.prompts, transpose=True)
        return torch.cat([torch.zeros_like(scores[:, :1]), scores], dim=1)

    def extra_repr(self) -> str:
        """Answers what an engine that was made of this network is told apart by."""
        return f"prompts={self.prompts.flatten().tolist()}"
