"""One run of a classifier: the questions of the card, answered for a series as a whole or for each single image."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import torch
from monai.data import MetaTensor

from node.domain.findings import Evaluation, Findings
from node.domain.modelcard import ModelCard
from node.domain.volume import Volume
from node.errors import BundleInvalid
from node.inference.engines import Engine
from node.inference.preprocess import as_meta_tensor
from node.inference.recipe import Recipe

_ROUNDING: Final = 1e-3


def classify(
    images: Sequence[Volume], card: ModelCard, recipe: Recipe, engine: Engine, progress: Callable[[float], None] = lambda _: None
) -> Findings:
    """Answers the evaluations of the card: of each image where the model reads images, else of all `images` as its channels.

    Raises
    ------
    BundleInvalid
        When the network's answer does not have the channels that the card names.
    """
    stages = {"preprocess": 0.0, "network": 0.0}
    evaluations: list[Evaluation] = []
    notes: dict[str, str] = {}
    cases = [[image] for image in images] if card.reads == "images" else [list(images)]
    for number, case in enumerate(cases):
        progress(number / len(cases))
        began = time.perf_counter()
        prepared = prepare(case, recipe, is_flat=card.reads == "images")
        ready = time.perf_counter()
        output = recipe.inferer(prepared.as_tensor()[None].float(), engine.infer)
        probabilities = recipe.activation(torch.as_tensor(output)[0].float().reshape(-1))
        stages["preprocess"] += ready - began
        stages["network"] += time.perf_counter() - ready
        plane = case[0].source.planes[0] if card.reads == "images" else None
        for definition in card.evaluations:
            asked = [answer.channel for answer in definition.answers]
            if max(asked) >= len(probabilities):
                raise BundleInvalid(f"the card of {card.name} asks for channel {max(asked)}, the network answers {len(probabilities)}")
            given = probabilities[asked]
            if len(asked) > 1 and not torch.isclose(given.sum(), torch.tensor(1.0), atol=_ROUNDING):
                # scores of answers that exclude each other (a sigmoid an answer) are shares of what they add up to
                given = given / given.sum() if given.sum() > 0 else torch.full_like(given, 1 / len(asked))
                notes[definition.concept.meaning] = f"{definition.concept.meaning}: the network's scores were scaled to add up to 1"
            evaluations.append(Evaluation(definition, tuple(given.tolist()), plane))
    progress(1.0)
    return Findings(evaluations=tuple(evaluations), stages=stages, provenance_notes=tuple(notes.values()))


def prepare(images: Sequence[Volume], recipe: Recipe, *, is_flat: bool = False) -> MetaTensor:
    """Answers what the network sees, (channels, i, j, k); of a single flat image (channels, columns, rows).

    A gray image stands in every channel of a network that was made for colours.
    """
    image = as_meta_tensor(images)
    if is_flat:
        image = MetaTensor(image.as_tensor()[..., 0], affine=image.affine, meta=image.meta)
    if len(images) == 1 < recipe.in_channels:
        image = MetaTensor(image.as_tensor().repeat_interleave(recipe.in_channels, dim=0), affine=image.affine, meta=image.meta)
    prepared: MetaTensor = recipe.preprocessing({recipe.image_key: image})[recipe.image_key]
    return prepared
