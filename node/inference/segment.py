"""One run of a segmentation: preprocessing, network, the way back to the source grid, labels.

The scores of a part of the image are decided as soon as the last window over it was seen, and brought to the source before that where
the bundle wants it so: the scores of the whole image are never held. What the inferer is decides how: MONAI's sliding window is done
here (`sliding_window.py`, `stitcher.py`), any other runs as it is and its output goes the same way, part by part.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from node.domain.findings import Findings
from node.domain.volume import LabelMap, Volume
from node.errors import DeviceOutOfMemory, EngineError, OutsideIntendedUse
from node.inference.as_monai import segment_as_monai
from node.inference.engines import Engine
from node.inference.labelling import Labelling, LabelsOnGrid, LabelsOnSource
from node.inference.parallel import map_on_all_cores
from node.inference.preprocess import prepare
from node.inference.recipe import Recipe
from node.inference.restore import WayBack, bring_probability
from node.inference.sliding_window import Batches, DifferentSize, stitch
from node.inference.stitcher import Stitcher
from node.inference.windows import blocks_of, understands, windows_of


def segment(images: Sequence[Volume], recipe: Recipe, engine: Engine, progress: Callable[[float], None] = lambda _: None) -> Findings:
    """Answers what the network outlines on the grid of the first of `images`.

    Raises DeviceOutOfMemory when not even one window at a time fits; its text says what was tried.
    """
    progress(0.0)
    if recipe.as_monai is not None:
        with torch.inference_mode():
            return segment_as_monai(images, recipe.as_monai, recipe.inferer, engine, progress)
    tail, source = recipe.tail, images[0].source
    watch = _Watch()
    with torch.inference_mode():
        prepared = prepare(images, recipe.preprocessing, recipe.image_key)
        watch.lap("preprocess")
        way = WayBack(prepared, source)
        result: Labelling = LabelsOnGrid(prepared, tail) if tail.decides_first else LabelsOnSource(way, prepared, tail)
        batches = Batches(max(engine.preferred_batch, int(getattr(recipe.inferer, "sw_batch_size", 1))))
        with _told_as_ours(batches):
            _run(prepared.image, recipe, engine, result, batches, progress)
        watch.lap("stitch")
        decided = result.decided()
        if tail.decides_first:
            decided = tail.finish_on_grid(decided)
            decided = replace(decided, values=way.bring_labels(decided.values))
        labels, members = tail.finish_on_source(decided)
        watch.lap("restore")
    progress(1.0)
    probability = None
    if result.probability is not None:
        probability = partial(bring_probability, way, result.probability, lambda scores: tail.finish_scores(scores[None])[0])
    return Findings(
        LabelMap(labels, source, members),
        probability=probability,
        stages=watch.told(network_s=batches.network_s, restore_s=result.restore_s),
        provenance_notes=(*tail.notes, *batches.notes),
    )


def _run(
    image: torch.Tensor, recipe: Recipe, engine: Engine, result: Labelling, batches: Batches, progress: Callable[[float], None]
) -> None:
    if understands(recipe.inferer):
        windows = windows_of(recipe.inferer, image.shape[1:])  # type: ignore[arg-type]
        stitcher = Stitcher(windows, result, skirt=result.skirt, averaged=result.is_averaged)
        stitcher.progress = progress
        try:
            stitch(image, recipe.inferer, engine.infer, stitcher, batches)  # type: ignore[arg-type]
        except DifferentSize:
            pass
        else:
            return
    began = time.perf_counter()
    with _told_as_size(image):
        output = torch.as_tensor(recipe.inferer(image[None], engine.infer))[0].float()
    batches.network_s += time.perf_counter() - began
    map_on_all_cores(result, blocks_of(output, result.skirt))


@contextmanager
def _told_as_size(image: torch.Tensor) -> Iterator[None]:
    """Tells a network that cannot take a whole volume of this size from one that fails: trying again would not help."""
    try:
        yield
    except EngineError as error:
        words = str(error.__cause__).lower()
        if type(error) is not EngineError or not ("size" in words or "shape" in words):
            raise
        extent = "x".join(map(str, image.shape[1:]))
        raise OutsideIntendedUse(
            f"The bundle feeds its network whole volumes, and a volume of {extent} voxels does not suit it: it wants sizes that it can halve, "
            "or one size alone."
        ) from error


class _Watch:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self._laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a part."""
        now = time.perf_counter()
        self._laps[name] = now - self._last
        self._last = now

    def told(self, *, network_s: float, restore_s: float) -> dict[str, float]:
        """Answers the parts; what went on during stitching is told by itself."""
        stitch_s = max(0.0, self._laps["stitch"] - network_s - restore_s)
        return {**self._laps, "network": network_s, "stitch": stitch_s, "restore": self._laps["restore"] + restore_s}


@contextmanager
def _told_as_ours(batches: Batches) -> Iterator[None]:
    """Turns torch's word that the sums of the windows did not fit into an error of ours."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        tried = f" ({'; '.join(batches.notes)})" if batches.notes else ""
        raise DeviceOutOfMemory(f"too little memory to put the windows together{tried}") from error
