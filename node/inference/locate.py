"""One run of a network that finds points: by a heat map a point, or by their indices themselves."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from node.domain.findings import Findings, Landmark
from node.domain.modelcard import LandmarkDefinition, ModelCard
from node.domain.volume import Volume
from node.errors import BundleInvalid
from node.inference.classify import prepare
from node.inference.engines import Engine
from node.inference.preprocess import RAS_FROM_LPS
from node.inference.recipe import Recipe


def locate(
    images: Sequence[Volume], card: ModelCard, recipe: Recipe, engine: Engine, progress: Callable[[float], None] = lambda _: None
) -> Findings:
    """Answers the landmarks of the card in each image, or in the one volume.

    A network answers (points, i, j, k), a heat map a point: its highest voxel, where that reaches `min_score`. Or it answers
    (dimensions, points), indices of the prepared image: a point at zero is one that is not there.
    """
    stages = {"preprocess": 0.0, "network": 0.0}
    landmarks: list[Landmark] = []
    is_flat = card.reads == "images"
    cases = [[image] for image in images] if is_flat else [list(images)]
    for number, case in enumerate(cases):
        progress(number / len(cases))
        began = time.perf_counter()
        prepared = prepare(case, recipe, is_flat=is_flat)
        ready = time.perf_counter()
        output = torch.as_tensor(recipe.inferer(prepared.as_tensor()[None].float(), engine.infer))[0].float()
        stages["preprocess"] += ready - began
        stages["network"] += time.perf_counter() - ready
        patient_from_index = RAS_FROM_LPS @ np.asarray(prepared.affine, dtype=np.float64)
        landmarks += _landmarks(output, card, patient_from_index, dimensions=prepared.ndim - 1)
    progress(1.0)
    return Findings(landmarks=tuple(landmarks), stages=stages)


def _landmarks(output: torch.Tensor, card: ModelCard, patient_from_index: NDArray[np.float64], *, dimensions: int) -> Iterator[Landmark]:
    if output.numel() == output.shape[-2] * output.shape[-1] and output.shape[-2] in {2, dimensions}:
        output = output.reshape(output.shape[-2:])  # one frame, one volume
        dimensions = output.shape[0]
    are_indices = output.ndim == 2
    points = output.shape[1] if are_indices else output.shape[0]
    if not are_indices and output.ndim != dimensions + 1:
        raise BundleInvalid(f"{card.name} answers an array of shape {tuple(output.shape)}: neither heat maps nor points")
    for definition in card.landmarks:
        if definition.channel >= points:
            raise BundleInvalid(f"the card of {card.name} asks for point {definition.channel}, the network answers {points}")
        place = _given(output[:, definition.channel]) if are_indices else _highest(output[definition.channel], definition)
        if place is not None:
            index, score = place
            position = patient_from_index @ np.array([*index, *[0.0] * (3 - dimensions), 1.0])
            yield Landmark(definition, score, (float(position[0]), float(position[1]), float(position[2])))


def _given(index: torch.Tensor) -> tuple[tuple[float, ...], float] | None:
    return (tuple(index.tolist()), 1.0) if bool(index.any()) else None


def _highest(heat_map: torch.Tensor, definition: LandmarkDefinition) -> tuple[tuple[float, ...], float] | None:
    score = float(heat_map.max())
    if score < definition.min_score:
        return None
    where = np.unravel_index(int(heat_map.argmax()), tuple(heat_map.shape))
    return tuple(float(axis) for axis in where), min(score, 1.0)
