"""A MONAI bundle as a model of ours: its preprocessing, network, inferer and postprocessing as configured; input and result are ours.

Bundles are taken unmodified. What of the configuration is used is a Recipe (`recipe.py`); what is not understood is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from node.domain.findings import Findings
from node.domain.modelcard import ModelCard, WeightsFile
from node.domain.result import Provenance
from node.domain.volume import Volume
from node.errors import BundleInvalid, OutsideIntendedUse
from node.inference.classify import classify
from node.inference.detect import Detector, load_detector
from node.inference.engines.onnx_export import Window
from node.inference.engines.select import EngineWish, open_engine
from node.inference.engines.serving import ServingEngine
from node.inference.engines.task import NetworkTask, Place, window_of
from node.inference.engines.torch_engine import require_device
from node.inference.locate import locate
from node.inference.recipe import CLASSIFICATION, DETECTION, LANDMARKS, SEGMENTATION, Recipe, read_recipe
from node.inference.segment import segment
from node.inference.state import read_state
from node.inference.weights import require_weights


class Bundle:
    """A loaded model, warm."""

    def __init__(self, card: ModelCard, engine: ServingEngine, recipe: Recipe, window: Window | None = None) -> None:
        """Use `load_bundle`. `window`: what the network is fed, where that is always the same."""
        self.card = card
        self.recipe = recipe
        self._engine = engine
        self._window = window

    @property
    def provenance(self) -> Provenance:
        """What made the scores."""
        return Provenance(
            engine=self._engine.describe(),
            weights_sha256=tuple(weights.sha256 for weights in self.card.weights),
            device_uid=self.card.device_uid,
            parity=self._engine.parity,
        )

    def predict(self, images: Sequence[Volume], progress: Callable[[float], None] = lambda _: None) -> Findings:
        """Answers what the network finds in `images`: the channels of the card on one grid, in their order, or single images."""
        wanted = max(1, len(self.card.channels))
        if len(images) != wanted and self.card.reads != "images":
            raise BundleInvalid(f"{self.card.name} takes {wanted} images on one grid, {len(images)} came")
        self._engine.refresh()
        findings = self._find(images, progress)
        return replace(findings, provenance_notes=(*findings.provenance_notes, *self._engine.take_notes()))

    def warm_up(self) -> None:
        """Runs the network once, so that the first study does not wait for kernels and memory; nothing where its input has no fixed size."""
        if self._window is not None:
            self._engine.infer(torch.zeros(self._window.batch(self._engine.preferred_batch)))

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()

    def _find(self, images: Sequence[Volume], progress: Callable[[float], None]) -> Findings:
        if self.recipe.task == CLASSIFICATION:
            return classify(images, self.card, self.recipe, self._engine, progress)
        if self.recipe.task == LANDMARKS:
            return locate(images, self.card, self.recipe, self._engine, progress)
        if self.card.reads == "images" and len(images) > 1:
            raise OutsideIntendedUse(f"{self.card.name} outlines one image at a time, {len(images)} came.")
        return only_named(segment(images, self.recipe, self._engine, progress), self.card)


def in_ranges(numbers: Sequence[int]) -> str:
    """Answers ascending numbers as a person writes them: `1, 3 to 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def only_named(findings: Findings, card: ModelCard) -> Findings:
    """Answers findings without the labels that the card does not name: background that is a channel, structures that nobody wants."""
    label_map = findings.label_map
    if label_map is None:
        return findings
    named = {segment.label_value for segment in card.segments}
    present = set(np.flatnonzero(label_map.pixels_of_planes()[:, 1:].any(axis=0)) + 1)
    left_out = sorted(int(value) for value in present - named)
    if not left_out:
        return findings
    if label_map.members:
        kept = replace(label_map, members=tuple(tuple(value for value in of if value in named) for of in label_map.members))
    else:
        table = np.array([value if value in named else 0 for value in range(256)], dtype=np.uint8)
        kept = replace(label_map, labels=table[label_map.labels])
    note = f"labels that the card does not name were left out: {in_ranges(left_out)}"
    return replace(findings, label_map=kept, provenance_notes=(*findings.provenance_notes, note))


def load_bundle(
    folder: Path, card: ModelCard, *, device: str = "cpu", threads: int = 0, engines: EngineWish | None = None
) -> Bundle | Detector:
    """Loads a bundle with the weights that its card names; on torch, where no other engine is wished for.

    A bundle is code: its configuration may hold expressions. Only bundles in the node's own models folder are loaded.

    Raises
    ------
    WeightsMissing, WeightsMismatch
        Before anything of the weights is read.
    BundleInvalid
        When a part is missing or not understood.
    """
    if task_of(card) == DETECTION:
        require_weights(card, folder)
        require_device(device)
        weights = card.weights[0]
        return load_detector(folder, card, lambda network: load_weights(network, folder / weights.file, weights, {}), device=device)
    network, recipe = read_network(folder, card)
    task = network_task(folder, card, network, recipe)
    engine = open_engine(network, task, Place(device, threads), engines or EngineWish())
    return Bundle(card, engine, recipe, task.window)


def read_network(folder: Path, card: ModelCard) -> tuple[torch.nn.Module, Recipe]:
    """Answers the network of a bundle with its weights, and how the bundle uses it; raises what `load_bundle` raises."""
    require_weights(card, folder)
    weights = card.weights[0]
    torchscript = folder / weights.file if weights.format == "torchscript" else None
    wanted = [segment.label_value for segment in card.segments]
    recipe = read_recipe(folder, task=task_of(card), torchscript=torchscript, wanted=wanted)
    network = recipe.make_network()
    if torchscript is None:
        if recipe.loads_torchscript or any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
            raise BundleInvalid(f"network_def of {folder.name} loads TorchScript, its card names no weights of format torchscript")
        load_weights(network, folder / weights.file, weights, recipe.weights_key_map)
    return recipe.finished(network), recipe


def network_task(folder: Path, card: ModelCard, network: torch.nn.Module, recipe: Recipe) -> NetworkTask:
    """Answers what an engine for the network is wanted for."""
    window, reason = window_of(network, recipe.inferer, recipe.in_channels)
    if recipe.task != SEGMENTATION:
        window, reason = None, "engines are compared by the labels of segmentations, which this network does not make"
    elif recipe.as_monai is not None:
        window, reason = None, "engines are compared by how radnode makes labels, and here MONAI makes them"
    return NetworkTask(
        model=card.name,
        folder=folder,
        window=window,
        why_no_window=reason,
        score=lambda output: recipe.tail.finish_scores(recipe.tail.score(output)),
        threshold=recipe.tail.decision.threshold,
        cpu_precision=recipe.cpu_precision,
    )


def task_of(card: ModelCard) -> str:
    """Answers what a model does, by what its card says it reports."""
    if card.detections:
        return DETECTION
    if card.segments:
        return SEGMENTATION
    return CLASSIFICATION if card.evaluations else LANDMARKS


def load_weights(network: torch.nn.Module, path: Path, weights: WeightsFile, key_map: Mapping[str, str]) -> None:
    """Puts a file of weights into a network. `key_map` maps a prefix of the file's keys to the prefix that the network uses."""
    try:
        state = read_state(path)
    except SafetensorError as error:
        raise BundleInvalid(f"{path} is no safetensors file: pickles are never loaded") from error
    renamed = {_renamed(key, key_map): value for key, value in state.items()}
    try:
        network.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise BundleInvalid(
            f"{weights.file} does not fit the network of {path.parents[1].name}: {_misfit(network, renamed) or error} → these weights "
            "belong to another network: name the right file (radnode model install --weights), or have network_def corrected by its author"
        ) from error


def _misfit(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """Answers what does not fit, in a few words; '' where it is not the names and sizes."""
    wanted = network.state_dict()
    absent, unknown = [key for key in wanted if key not in state], [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and wanted[key].shape != state[key].shape]
    sizes = [f"{key} ({_size(state[key])} in the file, {_size(wanted[key])} in the network)" for key in other]
    parts = (("absent", absent), ("unknown to it", unknown), ("of another size", sizes))
    return "; ".join(
        f"{len(of)} {'tensor is' if len(of) == 1 else 'tensors are'} {what}: {', '.join(of[:2])}{' …' if len(of) > 2 else ''}"
        for what, of in parts
        if of
    )


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "1"


def _renamed(key: str, key_map: Mapping[str, str]) -> str:
    for old, new in key_map.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
