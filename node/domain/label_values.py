"""Which number stands for which structure after a bundle's postprocessing, as far as its configuration says so in plain words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_BRATS: Final = frozenset({"tumor core", "whole tumor", "enhancing tumor"})
_BRATS_RESTS: Final = {"tumor core": "non-enhancing tumor core", "whole tumor": "edema", "enhancing tumor": "enhancing tumor"}
"""What remains of each of the nested regions once the regions inside it have a label of their own."""


def label_values(names: Mapping[int, str], postprocessing: Any) -> dict[int, str]:
    """Answers label value → name, from the names of the network's channels and the raw postprocessing of the configuration.

    - one class a voxel (argmax): the number of the channel
    - a function that writes numbers where channels are set (BraTS): its numbers; the name is that of the channel, or what is left of it
    - channels that may overlap (a threshold): the number of the channel and one
    - a table of values (MapLabelValued): its targets
    """
    steps = _steps(postprocessing)
    written = [pairs for step in steps if (pairs := _written(step))]
    if written:
        rest = _BRATS_RESTS if {name.lower() for name in names.values()} == _BRATS else {}
        return {value: rest.get(names.get(channel, "").lower(), names.get(channel, f"channel {channel}")) for channel, value in written[-1]}
    labels = dict(names)
    decisions = [step for step in steps if _kind(step).startswith("AsDiscrete")]
    if any(_kind(step).startswith("Activations") and step.get("sigmoid") is True for step in steps) and not any(
        step.get("argmax") is True for step in decisions
    ):
        labels = {channel + 1: name for channel, name in names.items()}
    for step in steps:
        if (
            _kind(step).startswith("MapLabelValue")
            and isinstance(step.get("orig_labels"), list)
            and isinstance(step.get("target_labels"), list)
        ):
            to = dict(zip(step["orig_labels"], step["target_labels"], strict=False))
            labels = {int(to.get(value, value)): name for value, name in labels.items()}
    return labels


def prompts(labels: Iterable[int], configuration: Mapping[str, Any]) -> frozenset[int] | None:
    """Answers which labels a network can be asked for that takes prompts (VISTA3D), None for one that takes none.

    Left out are labels that stand for several others (`subclass`), and those that the bundle takes out of `everything_labels`.
    """
    text = str(configuration)
    if "VistaPostTransform" not in text:
        return None
    groups = configuration.get("subclass")
    left_out = {int(key) for key in groups if str(key).isdigit()} if isinstance(groups, Mapping) else set()
    everything = configuration.get("everything_labels")
    if isinstance(everything, list):
        return frozenset(int(one) for one in everything) - left_out
    taken_out = re.search(r"-\s*(?:set\(\s*\[|\{)([\d,\s]+)", str(everything or ""))
    if taken_out is not None:
        left_out |= {int(one) for one in taken_out[1].replace(",", " ").split()}
    return frozenset(labels) - left_out - {0}


def _steps(postprocessing: Any) -> Sequence[Mapping[str, Any]]:
    transforms = postprocessing.get("transforms", []) if isinstance(postprocessing, Mapping) else postprocessing
    return [step for step in transforms if isinstance(step, Mapping)] if isinstance(transforms, list) else []


def _kind(step: Mapping[str, Any]) -> str:
    return str(step.get("_target_", "")).rpartition(".")[2]


def _written(step: Mapping[str, Any]) -> list[tuple[int, int]]:
    """`torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, …))`: pairs of channel and number, in the order of their rank."""
    if not _kind(step).startswith("Lambda"):
        return []
    found = re.findall(r"where\(\s*\w+\[\[?\s*(\d+)\s*\]?\]\s*(?:>|>=|==)\s*[\d.]+\s*,\s*(\d+)", str(step.get("func", "")))
    return [(int(channel), int(value)) for channel, value in found]
