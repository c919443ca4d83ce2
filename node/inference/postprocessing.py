"""Reads the `postprocessing` of a bundle as a Tail: what is understood is said there, what is not is refused by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from monai.bundle import ConfigParser

from node.errors import BundleInvalid
from node.inference.configuration import Component, components
from node.inference.label_steps import apply_function, fill_holes, keep_largest, remove_small_objects
from node.inference.prompts import POST, label_step
from node.inference.tail import Decided, Decision, LabelStep, ScoreStep, Tail

PREDICTION: Final = "pred"

_NOTHING_TO_DO: Final = frozenset(
    "SaveImage EnsureType CopyItems ToTensor ToDevice ToNumpy CastToType DeleteItems SelectItems SplitDim Identity DataStats "
    "FromMetaTensor ToMetaTensor EnsureChannelFirst AddChannel".split()
)
"""They read, save, move or copy: that is radnode's own work, or changes no voxel."""

_POINTWISE: Final = frozenset({"LabelFilter", "MapLabelValue", "Lambda"})
_UNDERSTOOD: Final = (
    "Activationsd, AsDiscreted, Invertd, KeepLargestConnectedComponentd, FillHolesd, RemoveSmallObjectsd, LabelFilterd, "
    "MapLabelValued, Lambdad, SaveImaged"
)


_ROUNDED_UP: Final = float(np.nextafter(np.float32(0.5), np.float32(1.0)))
"""The least number that torch rounds to 1: one half goes to the even 0."""


@dataclass
class _Reading:
    """What was understood so far."""

    is_inverted: bool = False
    decision: Decision | None = None
    decides_first: bool = False
    scores: tuple[list[ScoreStep], list[ScoreStep]] = field(default_factory=lambda: ([], []))
    labels: tuple[list[LabelStep], list[LabelStep]] = field(default_factory=lambda: ([], []))
    """Before and after the way back."""
    notes: list[str] = field(default_factory=list)
    prompts: tuple[int, ...] = ()


def postprocessing_items(parser: ConfigParser) -> list[Component]:
    """Answers what a bundle does after its network, in its order."""
    return components(parser, "postprocessing") if parser.get("postprocessing") else []


def read_tail(parser: ConfigParser, items: Sequence[Component] | None = None, *, prompts: Sequence[int] = ()) -> Tail:
    """Answers the tail of a bundle; without postprocessing the class with the highest score wins.

    `items`: what of its postprocessing is left to do, where the network does some of it. `prompts`: what a network is asked for that
    takes prompts.
    """
    reading = _Reading(prompts=tuple(prompts))
    items = postprocessing_items(parser) if items is None else items
    built = [(item, _keys(item, parser)) for item in items]
    key = _prediction_key(built)
    saves_resampled = False
    for item, keys in built:
        if item.name in _NOTHING_TO_DO:
            saves_resampled |= item.name == "SaveImage" and key in keys and _parameter(item, parser, "resample") is True
        elif key not in keys:
            raise _refusal(item, f"it works on {', '.join(keys) or 'nothing'} and not on the network's answer {key}")
        elif item.name == "Activations":
            _read_activation(reading, item, parser)
        elif item.name == "AsDiscrete":
            _read_decision(reading, item, parser)
        elif item.name == POST and reading.prompts and reading.decision is None:
            reading.decision = Decision()
            reading.decides_first = not reading.is_inverted
            reading.labels[reading.is_inverted].append(label_step(item.told, reading.prompts))
        elif item.name == "Invert":
            _read_inversion(reading, item, parser)
        else:
            _read_label_step(reading, item, parser, key)
    return _tail(reading, saves_resampled=saves_resampled)


def _read_activation(reading: _Reading, item: Component, parser: ConfigParser) -> None:
    if reading.decision is not None:
        raise _refusal(item, "it stands after the labels are decided")
    steps = reading.scores[reading.is_inverted]
    if _parameter(item, parser, "sigmoid"):
        steps.append(ScoreStep("sigmoid", torch.Tensor.sigmoid_))
    if _parameter(item, parser, "softmax"):
        if _options(item, parser).get("dim", 0) != 0:
            raise _refusal(item, "its softmax is not over the channels")
        steps.append(ScoreStep("softmax", _softmax))
    other = _parameter(item, parser, "other")
    if other is not None:
        steps.append(ScoreStep(item.told, other))


def _read_decision(reading: _Reading, item: Component, parser: ConfigParser) -> None:
    argmax, threshold = _parameter(item, parser, "argmax"), _parameter(item, parser, "threshold")
    to_onehot, rounding = _parameter(item, parser, "to_onehot"), _parameter(item, parser, "rounding")
    if _options(item, parser).get("dim", 0) != 0:
        raise _refusal(item, "its argmax is not over the channels")
    if reading.decision is not None:
        # what is decided already: thresholds and roundings of labels, the argmax of a one-hot form
        transform = item.build(parser)
        step = LabelStep(item.told, partial(apply_function, function=partial(_call, transform, PREDICTION), name=item.told))
        reading.labels[reading.is_inverted].append(_renamed(step, transform))
        return
    if argmax:
        reading.decision = Decision(is_one_hot=to_onehot is not None)
    elif to_onehot is not None:
        raise _refusal(item, "to_onehot of scores that were not decided")
    elif threshold is not None or rounding is not None:
        reading.decision = Decision(threshold=float(threshold) if threshold is not None else _ROUNDED_UP)
    else:
        return
    reading.decides_first |= not reading.is_inverted
    if argmax and threshold is not None:
        at_least = partial(_at_least, float(threshold))
        reading.labels[reading.is_inverted].append(LabelStep(item.told, partial(apply_function, function=at_least, name=item.told)))


def _read_inversion(reading: _Reading, item: Component, parser: ConfigParser) -> None:
    if reading.is_inverted:
        raise _refusal(item, "it stands there twice")
    if _parameter(item, parser, "post_func") is not None:
        raise _refusal(item, "its post_func → a Lambdad after it")
    reading.is_inverted = True
    is_nearest = _parameter(item, parser, "nearest_interp", default=True)
    if reading.decision is None and is_nearest:
        reading.decides_first = True  # the nearest voxel's scores decide as they do there
    elif reading.decision is not None and not is_nearest:
        reading.notes.append("labels decided on the network's grid are brought back by the nearest neighbour, not interpolated")


def _read_label_step(reading: _Reading, item: Component, parser: ConfigParser, key: str) -> None:
    apply: Callable[[Decided], Decided]
    if item.name == "KeepLargestConnectedComponent":
        names = ("applied_labels", "is_onehot", "independent", "connectivity", "num_components")
        apply = partial(keep_largest, **_parameters(item, parser, names))
    elif item.name == "FillHoles":
        apply = partial(fill_holes, **_parameters(item, parser, ("applied_labels", "connectivity")))
    elif item.name == "RemoveSmallObjects":
        if _parameter(item, parser, "by_measure"):
            raise _refusal(item, "by_measure → give min_size in voxels")
        apply = partial(remove_small_objects, **_parameters(item, parser, ("min_size", "connectivity", "independent_channels")))
    elif item.name in _POINTWISE:
        function = partial(_call, item.build(parser), key)
        if reading.decision is None and item.name == "Lambda" and not reading.is_inverted:
            reading.scores[0].append(ScoreStep(item.told, function))
            return
        apply = partial(apply_function, function=function, name=item.told)
    else:
        raise _refusal(item, "")
    if reading.decision is None:
        raise _refusal(item, "it stands before the labels are decided (AsDiscreted)")
    reading.labels[reading.is_inverted].append(LabelStep(item.told, apply))


def _tail(reading: _Reading, *, saves_resampled: bool) -> Tail:
    scores_first, scores_last = (list(steps) for steps in reading.scores)
    labels_first, labels_last = (list(steps) for steps in reading.labels)
    decision = reading.decision
    if decision is None:
        decision = Decision(threshold=0.5 if any(step.name == "sigmoid" for step in (*scores_first, *scores_last)) else None)
        reading.decides_first &= reading.is_inverted
    decides_first = reading.decides_first
    if not reading.is_inverted:
        # SaveImaged takes the labels to the grid of the file, by the nearest neighbour; where nobody does, scores are brought back
        decides_first = saves_resampled and reading.decision is not None
        if not decides_first:
            labels_first, labels_last = [], labels_first
    if decides_first:
        scores_first, scores_last = [*scores_first, *scores_last], []
    elif scores_last and scores_last[-1].name == "softmax" and decision.threshold is None:
        scores_last.pop()  # keeps the order of the classes
    if decides_first and scores_first and scores_first[-1].name == "softmax" and decision.threshold is None:
        scores_first.pop()
    return Tail(
        tuple(scores_first), tuple(scores_last), decision, decides_first, tuple(labels_first), tuple(labels_last), tuple(reading.notes)
    )


def _prediction_key(items: list[tuple[Component, list[str]]]) -> str:
    """Answers under which name the network's answer goes: `pred`, or what the first transform of scores works on."""
    for item, keys in items:
        if item.name in {"Activations", "AsDiscrete", "Invert"} and PREDICTION not in keys:
            return keys[0] if keys else PREDICTION
        if PREDICTION in keys:
            break
    return PREDICTION


def _keys(item: Component, parser: ConfigParser) -> list[str]:
    if item.name == "Compose":
        raise _refusal(item, "a Compose inside another → one list")
    keys = item.value.keys if item.value is not None and hasattr(item.value, "keys") else None
    if keys is None and item.value is None and "keys" in parser[item.id]:
        keys = parser.get_parsed_content(f"{item.id}::keys")
    if keys is None:
        if item.name in _NOTHING_TO_DO:
            return []
        raise _refusal(item, "it has no keys: an array transform → its dictionary form")
    return [keys] if isinstance(keys, str) else [str(key) for key in keys]


def _parameter(item: Component, parser: ConfigParser, name: str, *, default: Any = None) -> Any:
    """Answers an argument of a transform; of one a key, the first."""
    if item.value is not None:
        held = [getattr(item.value, part, None) for part in ("converter", "saver", "filler", "lambda_func")]
        owner = next((owner for owner in (item.value, *held) if owner is not None and hasattr(owner, name)), None)
        value = default if owner is None else getattr(owner, name)
    elif name in parser[item.id]:
        value = parser.get_parsed_content(f"{item.id}::{name}")
    else:
        return default
    per_key = ("argmax", "threshold", "to_onehot", "rounding", "sigmoid", "softmax", "other", "nearest_interp", "post_func")
    if name in per_key and isinstance(value, (list, tuple)):
        value = value[0] if value else default
    return value


def _parameters(item: Component, parser: ConfigParser, names: tuple[str, ...]) -> dict[str, Any]:
    given = {name: _parameter(item, parser, name) for name in names}
    for name in ("applied_labels",):
        if isinstance(given.get(name), int):
            given[name] = [given[name]]
    return {name: value for name, value in given.items() if value is not None}


def _options(item: Component, parser: ConfigParser) -> dict[str, Any]:
    """Answers further arguments of an activation or a decision: the axis of the channels."""
    if item.value is not None:
        return dict(getattr(getattr(item.value, "converter", None), "kwargs", {}))
    return {name: parser.get_parsed_content(f"{item.id}::{name}") for name in ("dim",) if name in parser[item.id]}


def _renamed(step: LabelStep, transform: Any) -> LabelStep:
    """Answers the step for a transform whose key may be another one than ours."""
    return LabelStep(step.name, partial(apply_function, function=partial(_call, transform, transform.keys[0]), name=step.name))


def _call(transform: Any, key: str, channels: torch.Tensor) -> Any:
    return transform({key: channels})[key]


def _at_least(threshold: float, channels: torch.Tensor) -> torch.Tensor:
    return (channels >= threshold).float()


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """In place and plane by plane: no second copy of all classes."""
    for plane in scores.unbind(dim=1):
        plane.copy_(plane.softmax(dim=0))
    return scores


def _refusal(item: Component, why: str) -> BundleInvalid:
    reason = f" ({why})" if why else ""
    return BundleInvalid(
        f"postprocessing holds {item.told}{reason}, which radnode cannot do yet → radnode understands {_UNDERSTOOD}; "
        "what else a bundle does to labels can stand in a Lambdad"
    )


# ── classifiers ─────────────────────────────────────────────────────────────


def read_activation(parser: ConfigParser) -> Callable[[torch.Tensor], torch.Tensor]:
    """Answers what makes probabilities of the network's answer: as the postprocessing says, else softmax (of one channel: sigmoid)."""
    for item in postprocessing_items(parser):
        if item.name != "Activations":
            continue
        built = item.build(parser)
        converter = getattr(built, "converter", None)
        if converter is None:
            raise BundleInvalid(f"postprocessing holds {item.told} in a form that radnode does not read → give softmax or sigmoid")
        chosen = {name: bool(getattr(built, name)[0]) for name in ("sigmoid", "softmax")}
        if chosen["sigmoid"]:
            return torch.sigmoid
        if chosen["softmax"]:
            return _softmax_of
    return _usual_activation


def _softmax_of(values: torch.Tensor) -> torch.Tensor:
    return torch.softmax(values, dim=0)


def _usual_activation(values: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(values) if len(values) == 1 else _softmax_of(values)
