"""What a MONAI bundle loads, by the raw text of its configuration: one image, or several that become channels later."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

IMAGE: Final = "image"
"""The usual name of the one image."""

_TRUTHS: Final = ("label", "mask", "seg", "truth")
"""In the names of what a bundle loads beside its images, to judge itself by."""


def channel_keys(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """Answers the names of images that a bundle loads apart from each other, in order; nothing where it loads one image.

    Several phases of one examination are an example: `artery`, `vein`, `excret`, put together by a later transform.
    """
    names = list(dict.fromkeys(name for name in _loaded(configuration, configuration) if not any(truth in name for truth in _TRUTHS)))
    return () if len(names) < 2 or IMAGE in names else tuple(names)


def finds_channels(configuration: Mapping[str, Any]) -> bool:
    """Answers whether a bundle puts a channel before the axes of the image that it has loaded."""
    text = str(configuration.get("preprocessing"))
    return any(name in text for name in ("EnsureChannelFirst", "AddChannel", "AsChannelFirst", "ensure_channel_first"))


def switched_steps(configuration: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Answers the transforms before the network that a setting switches on or off, each with that setting; readers of files are none.

    Which setting is right may hang on where the images come from: LUNA16 as it was published, or resampled beforehand.
    """
    steps = configuration.get("preprocessing")
    transforms = steps.get("transforms") if isinstance(steps, Mapping) else steps
    found = []
    for step in transforms if isinstance(transforms, list) else []:
        switch = step.get("_disabled_") if isinstance(step, Mapping) else None
        name = str(step.get("_target_", "")).rpartition(".")[2] if isinstance(step, Mapping) else ""
        if isinstance(switch, str) and "@" in switch and not name.startswith("LoadImage"):
            found.append((name, _setting_of(switch, configuration)))
    return tuple(found)


def _setting_of(switch: str, configuration: Mapping[str, Any], depth: int = 3) -> str:
    """Answers the plain value that an expression hangs on: `$(not @whether_raw)` hangs on whether_raw."""
    match = re.search(r"@(\w+)", switch)
    if match is None:
        return switch
    value = configuration.get(match[1])
    return _setting_of(value, configuration, depth - 1) if depth and isinstance(value, str) and "@" in value else match[1]


def _loaded(value: Any, configuration: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(value, Mapping):
        if str(value.get("_target_", "")).rpartition(".")[2] in {"LoadImaged", "LoadImageD", "LoadImageDict"}:
            yield from _names(value.get("keys"), configuration)
        else:
            for item in value.values():
                yield from _loaded(item, configuration)
    elif isinstance(value, list):
        for item in value:
            yield from _loaded(item, configuration)


def _names(keys: Any, configuration: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(keys, str) and keys.startswith("@"):
        followed = configuration.get(keys[1:])
        yield from _names(followed, {}) if not isinstance(followed, str) or not followed.startswith("@") else ()
    elif isinstance(keys, str):
        yield keys
    elif isinstance(keys, list):
        for key in keys:
            yield from _names(key, configuration)
