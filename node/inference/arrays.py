"""Preprocessing that takes an image itself, and no dictionary with images in it."""

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Compose, Transpose

from node.domain.bundle_inputs import IMAGE


def on_arrays(transforms: Sequence[Any], *, has_channels: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers array transforms as one that takes a dictionary.

    Without `has_channels` they see the axes as a file has them: columns, rows, slices, and one more for the frames where they ask for it.
    """
    compose = Compose(list(transforms))
    axes = max((len(transform.indices) for transform in transforms if isinstance(transform, Transpose) and transform.indices), default=0)

    def apply(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, IMAGE: compose(data[IMAGE] if has_channels else _as_in_file(data[IMAGE], axes))}

    return apply


def _as_in_file(image: MetaTensor, axes: int) -> MetaTensor:
    values = image.as_tensor()[0]
    return MetaTensor(values.reshape(*values.shape, *[1] * max(0, axes - values.ndim)), affine=image.affine, meta=image.meta)
